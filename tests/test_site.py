"""What the site says is true: its blocks run, its code is the code, its pages hold together."""

import ast
import html
import importlib.util
import json
import re
import shutil
import socket
import subprocess
import sys
import textwrap
import tomllib
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks import vs
from exercises import catalogue, trace
from miniray.cli import record
from stages import parts
from tools import import_graph
from tools.site import blocks, frames, imports, mistakes, names, snippets, times, traces
from tools.site import parts as part_pages
from tools.site.drawings import pen
from tools.site.drawings.sheets import DRAW

DOCS = blocks.DOCS
PAGES = blocks.pages()
CHAPTERS = sorted((DOCS / "tutorial").glob("stage*.md"))
CONSOLE = [one for page in PAGES for one in blocks.find(page, "console") if not one.is_included]
CHAPTER_WORDS_MAX, PART_MINUTES_MAX = 2600, 12  # what is said of names beside listings included
BEFORE, AFTER = (
    ("How it dies",),
    (
        "It lives", "A true story", "What holds", "Break it", "What changed", "Check yourself",
        "How others do it",
    ),
)  # fmt: skip
STAGE_PARTS = parts.load()
TIMES = tomllib.loads((blocks.REPOSITORY / "tests" / "newcomer" / "times.toml").read_text())


def page_id(page: Path) -> str:
    return str(page.relative_to(DOCS))


@pytest.fixture
def built(built_site: Path) -> Path:
    """Return where the site has been built."""
    return built_site


class TestBlocks:
    @pytest.mark.slow
    @pytest.mark.parametrize("page", PAGES, ids=page_id)
    def test_every_python_block_runs(self, page: Path) -> None:
        blocks.run_python(page)

    @pytest.mark.slow
    @pytest.mark.parametrize("block", CONSOLE, ids=str)
    def test_every_transcript_is_what_the_command_prints(self, block: blocks.Block) -> None:
        printed = blocks.run_console(block)
        assert blocks.agrees(block.lines, printed), "\n".join(printed)

    def test_there_are_transcripts_in_every_chapter(self) -> None:
        assert {one.page for one in CONSOLE} >= set(CHAPTERS)

    @pytest.mark.slow
    @pytest.mark.site
    @pytest.mark.parametrize("page", PAGES, ids=page_id)
    def test_as_many_blocks_are_found_as_are_rendered(self, page: Path, built: Path) -> None:
        """A block that the finder overlooks would be shown and never run."""
        found = Counter(one.language for one in blocks.find(page))
        for name in re.findall(r'--8<-- "generated/([\w-]+\.md)"', page.read_text()):
            included = (DOCS / "generated" / name).read_text()
            found += Counter(re.findall(r"(?m)^ *```([\w-]+)", included))
        text = (built / page.relative_to(DOCS).with_suffix(".html")).read_text()
        text = re.sub(r'(?s)<details class="mkdocstrings-source">.*?</details>', "", text)
        shown = Counter(re.findall(r'<div class="language-([\w-]+) highlight">', text))
        if page.name == "api.md":  # its blocks are docstrings, which the tests of the package run
            return
        assert shown == found

    def test_a_transcript_may_differ_in_numbers_and_in_nothing_else(self) -> None:
        shown = ["$ run", "worker 12 took 0.5 s", "...", "7 left"]
        assert blocks.agrees(shown, ["$ run", "worker 3456 took 12.25 s", "more", "more", "0 left"])
        assert blocks.agrees(shown, ["$ run", "worker 1 took 1 s", "0 left"])
        assert not blocks.agrees(shown, ["$ run", "worker 12 died after 0.5 s", "7 left"])
        assert not blocks.agrees(shown, ["$ run", "worker 12 took 0.5 s", "none left"])
        assert not blocks.agrees(shown[:2], ["$ run", "worker 12 took 0.5 s", "Traceback"])

    def test_a_block_that_fails_is_named_with_its_line(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(blocks, "DOCS", tmp_path)
        page = tmp_path / "page.md"
        page.write_text("# T\n\n```python\nx = 1\n```\n\nmore\n\n```python\nassert x == 2\n```\n")
        with pytest.raises(RuntimeError, match="line 10"):
            blocks.run_python(page)
        page.write_text(page.read_text().replace("== 2", "== 1"))
        assert blocks.run_python(page) == 2

    def test_hints_are_pieces_of_code_that_parse(self) -> None:
        for exercise in catalogue.load():
            for piece in re.findall(r"(?s)```python\n(.*?)```", "\n".join(exercise.hints)):
                ast.parse("def hint():\n while True:\n" + textwrap.indent(piece, "    "))


class TestChapters:
    @pytest.mark.parametrize("page", CHAPTERS, ids=page_id)
    def test_a_chapter_has_its_parts_between_a_death_and_a_life(self, page: Path) -> None:
        stage = int(page.stem.removeprefix("stage"))
        own = [f"{one.number} {one.title}" for one in STAGE_PARTS if one.stage == stage]
        after = [name for name in AFTER if stage > 1 or name != "What changed"]
        assert re.findall(r"(?m)^## (.+)$", page.read_text()) == [*BEFORE, *own, *after]
        assert 2 <= len(own) <= 3
        texts = times.sections(page)
        assert f"$ python -m stages.story dies {stage}\n" in texts["How it dies"]
        assert f"$ python -m stages.story survives {stage}\n" in texts["It lives"]

    @pytest.mark.parametrize("page", CHAPTERS, ids=page_id)
    def test_its_front_matter_and_length(self, page: Path) -> None:
        _, front, _ = page.read_text().split("---\n", 2)
        fields = dict(line.split(": ", 1) for line in front.splitlines())
        assert {"title", "prereq", "gpu"} <= fields.keys()
        assert fields["gpu"] in ("never", "optional")
        assert times.count(page.read_text()).words <= CHAPTER_WORDS_MAX

    def test_pages_to_read_say_how_long_they_take(self) -> None:
        names = ("setup.md", "labs.md", "MINIRAY.md", "MULTI_GPU_DESIGN.md")
        folders = [*(DOCS / "tutorial").glob("*.md"), *(DOCS / "guides").glob("*.md")]
        for page in [*folders, *(DOCS / name for name in names)]:
            assert f'\n--8<-- "generated/{times.name_of(page)}"\n' in page.read_text(), page

    @pytest.mark.parametrize("part", STAGE_PARTS, ids=lambda part: part.number)
    def test_a_part_has_a_question_a_picture_code_its_point_and_exercises(
        self, part: parts.Part
    ) -> None:
        text = part_pages.text_of(part)
        name = part.number.replace(".", "-")
        assert text.strip().startswith(f'--8<-- "generated/part-{name}.md"')
        assert f'--8<-- "generated/point-{name}.md"' in text
        assert len(re.findall(r"(?m)^\?\?\? predict ", text)) == 1
        picture = r'<!-- drawing: [\w-]+ -->|generated/[\w-]+\.(svg|html)"|!\[[^]]+\]\([^)]+\.svg'
        assert re.search(picture, text), "it has no picture"
        assert re.search(r"(?m)^ *\$ |^python -m stages\.", text), "it runs nothing"
        for exercise in part.exercises:
            assert anchor_of(exercise) in times.EXERCISE.findall(text)
        assert len(part.exercises) <= 2
        assert part.exercises or part.number == "5.1", "whose tensors part 5.3 counts"
        assert part_pages.count(part).minutes <= PART_MINUTES_MAX

    @pytest.mark.parametrize("part", STAGE_PARTS, ids=lambda part: part.number)
    def test_what_a_part_shows_is_what_stages_show_prints(self, part: parts.Part) -> None:
        found = [match.groups() for match in snippets.REFERENCE.finditer(part_pages.text_of(part))]
        # A part may take up again how the job of its own chapter died.
        shown = [one for one in found if one[0] != f"story/chapter{part.stage}"]
        assert 2 <= len(shown) <= 5
        printed = [line.strip() for line in parts.show(part).splitlines()]
        for module, name in shown:
            assert module.startswith(part.package), "a chapter shows its own stage"
            piece = snippets.cut(module, name).splitlines()
            assert len(piece) <= snippets.LINES_MAX
            lines = [line.strip() for line in piece]
            assert any(
                printed[start : start + len(lines)] == lines for start in range(len(printed))
            ), f"{name} is of another part"

    def test_every_exercise_and_lab_is_in_a_chapter(self) -> None:
        from exercises.labs import NAMES

        text = "".join(page.read_text() for page in CHAPTERS)
        named = [name for part in STAGE_PARTS for name in (*part.exercises, *part.more)]
        assert sorted(named) == sorted(exercise.name for exercise in catalogue.load())
        for name in named:
            assert f"exercises.md#{anchor_of(name)})" in text, name
        for lab in NAMES:
            assert lab in text
            assert lab in (DOCS / "labs.md").read_text()

    @pytest.mark.parametrize("page", CHAPTERS, ids=lambda page: page.stem)
    def test_what_a_chapter_says_an_exercise_is_is_one_of_its_functions(self, page: Path) -> None:
        text = page.read_text()
        for exercise in catalogue.load():
            link = rf"\]\(\.\./exercises\.md#{anchor_of(exercise.name)}\)([^\[\n]*)"
            own = {name.rpartition(".")[2] for name in exercise.functions}
            for after in re.findall(link, text):
                assert {*re.findall(r"`(\w+)`", after)} <= own, (exercise.name, after)


def anchor_of(exercise: str) -> str:
    """Return the anchor of an exercise's heading."""
    titles = {one.name: one.title for one in catalogue.load()}
    return titles[exercise].lower().replace(" ", "-")


class TestEverything:
    """The last page shows a recording, because it takes half a minute and three clusters."""

    RECORDING = (DOCS / "tutorial" / "everything.txt").read_text()

    def test_its_losses_are_those_of_the_run_that_chapter_5_executes(self) -> None:
        step = re.compile(r"(?m)^   step +(\d+)  loss ([\d.]+)$")
        recorded = step.findall(self.RECORDING)
        (run,) = (
            one.text
            for one in CONSOLE
            if one.page.name == "stage5.md" and "survives 5" in one.lines[0]
        )
        assert {*recorded} == {*step.findall(run)}
        steps = [int(number) for number, _ in recorded]
        assert steps == [*range(7), *range(4, 10), *range(8, 12)], "from checkpoint to checkpoint"

    def test_what_it_says_is_what_the_code_says(self) -> None:
        folder = blocks.REPOSITORY / "stages" / "story"
        code = "".join((folder / name).read_text() for name in ("everything.py", "ranks.py"))
        for line in self.RECORDING.splitlines():
            if not re.match(r"   (step|rank|TimeoutError)|\[node", line):
                words = re.split(r"\d|: ", line.strip())[0]
                assert words in code.replace('"\n            f"', ""), line


class TestReadme:
    README = blocks.REPOSITORY / "README.md"
    PORT = "10000"

    @pytest.mark.slow
    def test_everything_in_it_runs_as_pasted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With another port, which is free; the server is the one that README says to start."""
        monkeypatch.setenv("MINIRAY_KEY_FILE", str(tmp_path / "key"))
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = str(probe.getsockname()[1])
        text = self.README.read_text()
        assert text.count(self.PORT) == 2
        page = tmp_path / "README.md"
        page.write_text(text.replace(self.PORT, port))
        for block in blocks.find(page, "python"):
            if block.title:
                (tmp_path / block.title).write_text(block.text)
        command = next(
            line
            for block in blocks.find(page)
            for line in block.lines
            if line.startswith("python -m miniray.worker_server ")
        )
        server = subprocess.Popen(
            [sys.executable, *command.split()[1:]],
            cwd=tmp_path,
            env=blocks._environment() | {"PYTHONPATH": str(blocks.REPOSITORY)},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert server.stdout
            assert port in server.stdout.readline()
            assert blocks.run_python(page) == 10
        finally:
            server.terminate()
            server.communicate(timeout=30)

    def test_it_says_how_long_the_course_takes(self) -> None:
        minutes = sum(part_pages.count_chapter(page).minutes for page in CHAPTERS)
        more = sum(one.minutes for one in catalogue.load())
        hours, others = (f"{round(one / 30) / 2:g} hours" for one in (minutes, more))
        parts = f"{len(STAGE_PARTS)} parts of at most {PART_MINUTES_MAX} minutes"
        said = f"{parts}, with the stories around them about {hours}"
        assert f"{said} in all, and {others} of exercises." in self.README.read_text()

    def test_its_first_screen_says_what_it_is_for_whom_and_what_for(self) -> None:
        screen = self.README.read_text().split("![")[0]
        assert len(screen.splitlines()) <= 30
        for words in ("A course, and the package", "for you", "Afterwards", "stages.story dies 1"):
            assert words in screen


class TestTimes:
    def test_each_kind_of_thing_is_counted_once(self) -> None:
        text = textwrap.dedent(
            """\
            ---
            title: not counted
            ---
            Three words, [here](../exercises.md#framing).

            ??? predict "Two words"

                One

            ```python
            x = 1

            y = 2
            ```

            ```console
            $ python -m thing
            printed
            ```

            ```sh
            python -m exercises lab kill-worker
            python -m exercises check framing
            ```
            """
        )
        counts = times.count(text)
        expected = {"words": 7, "code_lines": 2, "shown_lines": 1, "runs": 1, "predictions": 1}
        expected |= {"labs": 1, "exercises": 1, "skimmed_lines": 0}
        (framing,) = [one for one in catalogue.load() if one.name == "framing"]
        assert vars(counts) == {**expected, "exercise_minutes": framing.minutes}

    def test_the_first_edition_takes_what_its_reader_said(self) -> None:
        first = TIMES["first_edition"]
        low, high = first["minutes"]
        for chapter in first["chapters"]:
            minutes = times.Counts(**chapter).minutes
            assert low - first["tolerance"] <= minutes <= high + first["tolerance"], chapter

    @pytest.mark.parametrize("session", ["second_edition", "third_session"])
    def test_a_chapter_takes_about_what_a_newcomer_estimates(self, session: str) -> None:
        said = TIMES[session]
        for page, minutes in zip(CHAPTERS, said["read_and_run_minutes"], strict=True):
            apart = abs(part_pages.count_chapter(page).minutes - minutes)
            assert apart <= said["tolerance"], page.stem

    @pytest.mark.parametrize("session", ["second_edition", "third_session"])
    def test_the_exercises_of_a_stage_take_about_what_a_newcomer_estimates(
        self, session: str
    ) -> None:
        not_there_yet = TIMES["second_edition"]["not_there_yet"]
        tried = [one for one in catalogue.load() if one.name not in not_there_yet]
        for stage, minutes in enumerate(TIMES[session]["exercise_minutes"], 1):
            said = sum(one.minutes for one in tried if one.stage == stage)
            assert abs(said - minutes) <= TIMES[session]["exercise_tolerance"], stage


class TestNames:
    def test_every_name_in_a_listing_is_told_before_it_or_beside_it(self) -> None:
        assert names.untold(CHAPTERS) == {}

    def test_a_name_that_nobody_told_is_found(self) -> None:
        code = (
            "def take(self):\n    return _later(self._desk, socket.TCP_CORK, len(self.items()))\n"
        )
        known = names.python_names()
        found = [name for name in names.names_in(code) if name not in known]
        assert sorted(found) == ["TCP_CORK", "_desk", "_later"]

    def test_words_below_a_listing_are_read_and_words_after_them_are_not(
        self, tmp_path: Path
    ) -> None:
        page = tmp_path / "page.md"
        shown = '```python\n--8<-- "generated/code/stage2_remote_worker/channel/wait.py"\n```'
        page.write_text(f"before\n\n{shown}\n\nbeside\n\nstill\n\nafter\n")
        (one,) = names.listings(page)
        assert (one.before.split(), one.below.split()) == (["before"], ["beside", "still"])
        assert one.code.startswith("def wait(")


class TestPieces:
    def test_a_piece_is_the_code_itself(self) -> None:
        piece = snippets.cut("stage1_uds_worker/wire", "encode")
        assert piece in (blocks.REPOSITORY / "stages/stage1_uds_worker/wire.py").read_text()
        assert piece.startswith("def encode(")
        with pytest.raises(ValueError, match="has no nothing"):
            snippets.cut("stage1_uds_worker/wire", "nothing")

    def test_an_incident_shows_about_ten_lines_before_and_after(self) -> None:
        page = (DOCS / "from-stage5-to-miniray.md").read_text()
        shown = snippets.PIECE.findall(page)
        assert shown == list(snippets.PIECES)
        for before, after in zip(shown[::2], shown[1::2], strict=True):
            assert (before.split("-")[1], after.split("-")[1]) == ("before", "after")
            assert snippets.PIECES[before][0].startswith("stages/stage5")
            assert snippets.PIECES[after][0].startswith("miniray/")
        for name in shown:
            piece = snippets.cut_piece(name)
            assert 3 <= len(piece.splitlines()) <= 14
            assert not piece.startswith(" ")
            file = (blocks.REPOSITORY / snippets.PIECES[name][0]).read_text()
            assert f'title="{snippets.PIECES[name][0]}' in page
            assert all(line.strip() in file for line in piece.splitlines())

    def test_a_piece_that_is_not_there_any_more_is_said(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = "miniray/group.py"
        for first, last, words in (
            ("def _explained(", "return", "has 0 lines that begin"),
            ("    def ", "return", r"has \d+ lines that begin"),
            ("def _explains(", "nowhere", "no line that begins with 'nowhere' after"),
        ):
            monkeypatch.setitem(snippets.PIECES, "broken", (file, first, last))
            with pytest.raises(ValueError, match=words):
                snippets.cut_piece("broken")

    def test_frames_are_taken_apart_without_a_rest(self) -> None:
        for vector in frames.make_vectors():
            stops = [field["stop"] for field in vector["fields"]]
            starts = [field["start"] for field in vector["fields"]]
            assert starts == [0, *stops[:-1]]
            assert stops[-1] == len(vector["hex"]) // 2 == len(vector["reads"]) + 1
            for reads in vector["reads"]:
                assert sum(got for _, got in reads) == stops[-1]
                assert all(got <= wanted for wanted, got in reads)
        with pytest.raises(ValueError, match="in no field"):
            frames.take_apart(b"MRY1\x01\x00\x00\x00\x02{}and more")

    def test_the_picture_of_imports_is_of_the_code_as_it_is(self) -> None:
        direct = import_graph.find_direct(import_graph.read_graph())
        drawn = imports.draw()
        names = re.findall(r'<text class="title"[^>]*>(\w+)</text>', "".join(drawn.parts))
        assert sorted(names) == sorted(direct)
        assert drawn.as_svg("imports") == imports.draw().as_svg("imports")
        boxes = imports.find_layers(direct)
        lines = imports.find_lines(direct, boxes)
        for name, imported in direct.items():
            assert all(boxes[name] < boxes[other] for other in imported)
            reached = {(name, boxes[name])}
            for above, below in sorted(lines, key=lambda line: line[0][1]):
                reached |= {below} if above in reached else set()
            assert {(other, boxes[other]) for other in imported} <= reached

    @pytest.mark.parametrize("stage", range(1, 6))
    def test_a_recorded_run_is_drawn_whole(self, stage: int) -> None:
        run = traces.record(stage)
        arrows = traces.find_arrows(run["events"])
        what = Counter(event["what"] for event in run["events"])
        received = [n for n, event in enumerate(run["events"]) if event["what"] == "receives"]
        assert {target for _, target in arrows} >= set(received)
        drawn = traces.as_svg(run)
        assert drawn.count("<circle") + drawn.count('class="kill"') == len(run["events"])
        assert drawn.count('class="kill"') == what["is killed"] == (stage != 2)

    @pytest.mark.parametrize("late", [3, 9])
    def test_a_node_that_notes_late_whom_it_forked_changes_no_name(self, late: float) -> None:
        def event(at_s: float, pid: int, what: str, text: str = "") -> dict[str, Any]:
            return {"at_s": at_s, "pid": pid, "what": what, "text": text}

        events = [event(0, 1, "is", "coordinator")]
        for keeper, forked_s in ((10, late), (11, 6)):
            server, worker = keeper + 10, keeper + 20
            events += [event(0, keeper, "is", "keeper"), event(1, keeper, "forks", str(server))]
            events += [event(2, worker, "is", "worker"), event(2, worker, "begins", str(server))]
            events.append(event(forked_s, server, "forks", str(worker)))
        names = trace.name_processes(sorted(events, key=lambda one: one["at_s"]))
        assert (names[30], names[31]) == ("worker 1", "worker 2")

    @pytest.mark.parametrize("stage", range(1, 6))
    def test_the_same_run_is_the_same_diagram_but_for_pids_ports_and_times(
        self, stage: int
    ) -> None:
        def shape(run: dict[str, object]) -> list[tuple[str, list[str]]]:
            assert isinstance(run["events"], list)
            assert isinstance(run["processes"], list)
            return [
                (
                    process,
                    [
                        re.sub(r"\d+", "N", traces.words(event))
                        for event in run["events"]
                        if event["process"] == process
                    ],
                )
                for process in run["processes"]
            ]

        assert shape(traces.record(stage)) == shape(traces.record(stage))


class TestMistakes:
    def test_every_wrong_answer_is_in_one_group(self) -> None:
        assert mistakes.find_misplaced(catalogue.load()) == [], f"see {mistakes.GROUPS.name}"

    def test_the_page_says_what_one_sees_and_not_what_to_do(self) -> None:
        exercises = catalogue.load()
        page = mistakes.as_markdown(exercises)
        assert "## " + mistakes.LAST not in page
        assert "the process table is full of `<defunct>`" in page
        for exercise in exercises:
            for wrong in exercise.wrong_answers:
                assert wrong.misconception in page
                assert wrong.hint not in page
                assert " ".join(wrong.hint.split()) not in page

    def test_what_is_not_sorted_yet_is_shown_all_the_same(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        groups = tmp_path / "mistakes.toml"
        text = mistakes.GROUPS.read_text().replace("zombies/never_reaped", "zombies/not_there")
        groups.write_text(text)
        monkeypatch.setattr(mistakes, "GROUPS", groups)
        exercises = catalogue.load()
        assert mistakes.find_misplaced(exercises) == [
            "zombies/never_reaped is in no group",
            "zombies/not_there is no wrong answer",
        ]
        _, _, rest = mistakes.as_markdown(exercises).partition(mistakes.LAST)
        assert "After a day the process table" in rest
        assert rest.count("???") == 1


PHONE_PX = 390 - 32  # what the theme leaves of a phone that is 390 wide
SVG = "{http://www.w3.org/2000/svg}"


class TestDrawings:
    @pytest.mark.parametrize("name", DRAW)
    def test_the_file_is_what_the_pen_draws(self, name: str) -> None:
        file = DOCS / "images" / "drawings" / f"{name}.svg"
        assert file.read_text() == DRAW[name]().as_svg(), "run: python -m tools.site"

    def test_no_drawing_is_left_over(self) -> None:
        files = (DOCS / "images" / "drawings").iterdir()
        assert sorted(file.name for file in files) == sorted(f"{name}.svg" for name in DRAW)

    @pytest.mark.parametrize("name", DRAW)
    def test_who_does_not_see_it_is_told(self, name: str) -> None:
        root = ElementTree.fromstring(DRAW[name]().as_svg())
        assert root.get("role") == "img"
        named = {
            one.get("id"): one.text for one in root if one.tag in (f"{SVG}title", f"{SVG}desc")
        }
        assert (root.get("aria-labelledby") or "").split() == list(named)
        title, description = named.values()
        assert title
        assert description
        assert len(description) > 2 * len(title)

    @pytest.mark.parametrize("name", DRAW)
    def test_it_has_no_colours_but_the_pages(self, name: str) -> None:
        text = DRAW[name]().as_svg()
        used = re.findall(r"(?:fill|stroke|color)(?:=\"|:)([^\";}]+)", text)
        assert used
        for colour in used:
            assert colour in ("none", "currentColor") or colour.startswith("var(--"), colour
        assert not re.search(r"#[0-9a-fA-F]{3}|rgb|hsl", text)

    @pytest.mark.parametrize("name", DRAW)
    def test_its_words_can_be_read_on_a_phone(self, name: str) -> None:
        root = ElementTree.fromstring(DRAW[name]().as_svg())
        left, top, width, height = map(float, (root.get("viewBox") or "").split())
        assert (left, width) == (0, pen.WIDTH)
        assert not list(root.iterfind(".//*[@font-size]")), "one size for all of them"
        assert float(root.get("font-size") or 0) * PHONE_PX / width >= 11
        lines = list(root.iter(f"{SVG}text"))
        words = [word for one in lines for word in (one.text or "").split() if len(word) > 1]
        assert len(words) <= 24, "it is a drawing"
        for one in lines:
            assert 11 <= float(one.get("y") or 0) - top <= height - 4

    @pytest.mark.parametrize("name", DRAW)
    def test_it_is_on_one_page(self, name: str) -> None:
        comment = f"<!-- drawing: {name} -->"
        found = [page_id(page) for page in PAGES for _ in range(page.read_text().count(comment))]
        assert len(found) == 1, found

    def test_a_comment_becomes_a_figure_and_code_stays_code(self) -> None:
        markdown = pytest.importorskip("markdown", reason="markdown is not installed: make docs")
        extensions = ["tools.site.drawings.embed", "pymdownx.superfences", "admonition"]

        def convert(text: str) -> str:
            return str(markdown.markdown(text, extensions=extensions))

        page = convert("before\n\n<!-- drawing: zombie -->\n\nafter")
        assert page.startswith('<p>before</p>\n<figure class="sheet"><svg')
        assert "<code>waitpid</code>" in page
        assert page.endswith("</figcaption></figure>\n<p>after</p>")
        assert "<figure" in convert("!!! note\n\n    <!-- drawing: zombie -->\n")
        assert "<figure" not in convert("```\n<!-- drawing: zombie -->\n```\n")
        with pytest.raises(ValueError, match="no drawing ghost; there are descriptors-before-fork"):
            convert("<!-- drawing: ghost -->")


class Page(HTMLParser):
    """A built page's links, anchors, and whatever it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if found.get("id"):
            self.ids.add(str(found["id"]))
        if tag == "a" and found.get("href"):
            self.links.append(str(found["href"]))
        if tag in ("script", "img", "iframe", "source") and found.get("src"):
            self.loads.append(str(found["src"]))
        if tag == "link" and found.get("rel") in ("stylesheet", "preload", "preconnect", "icon"):
            self.loads.append(str(found["href"]))


@pytest.mark.slow
@pytest.mark.site
class TestBuilt:
    def test_every_link_and_anchor_leads_somewhere(self, built: Path) -> None:
        parsed = {file.resolve(): Page(file.read_text()) for file in built.rglob("*.html")}
        assert len(parsed) >= len(PAGES)
        for file, page in parsed.items():
            if file.name == "404.html":
                continue
            for link in page.links:
                if re.match(r"[a-z]+:", link):
                    continue
                path, _, anchor = html.unescape(link).partition("#")
                target = (file.parent / path).resolve() if path else file
                target = target / "index.html" if target.is_dir() else target
                assert target.exists(), f"{file.name}: {link}"
                if anchor and target in parsed:
                    assert anchor in parsed[target].ids | {"__comments"}, f"{file.name}: {link}"

    def test_no_symptom_is_taken_for_a_tag(self, built: Path) -> None:
        text = (built / "mistakes.html").read_text()
        assert "&lt;defunct&gt;" in text
        assert "<defunct" not in text

    def test_nothing_is_loaded_from_elsewhere(self, built: Path) -> None:
        for file in built.rglob("*.html"):
            for address in Page(file.read_text()).loads:
                assert not re.match(r"(https?:)?//", address), f"{file.name}: {address}"
        for sheet in built.rglob("*.css"):
            assert not re.search(r"url\(['\"]?(https?:)?//", sheet.read_text()), sheet.name

    def test_zensical_builds_it_too(self, built: Path, tmp_path: Path) -> None:
        if not importlib.util.find_spec("zensical"):
            pytest.skip("zensical is not installed: make docs")
        for name in ("docs", "examples", "miniray", "tools", "mkdocs.yml"):
            source = blocks.REPOSITORY / name
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, tmp_path / name)
        done = subprocess.run(
            [sys.executable, "-m", "zensical", "build"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        chapter = (tmp_path / "site" / "tutorial" / "stage1.html").read_text()
        assert "frame-inspector" in chapter
        drawn = [
            file.read_text().count('<svg xmlns="http://www.w3.org/2000/svg" class="sheet"')
            for file in (tmp_path / "site").rglob("*.html")
        ]
        assert sum(drawn) == len(DRAW)
        assert "def encode" in re.sub(r"<[^>]+>", "", chapter)


class TestComparison:
    @pytest.mark.slow
    @pytest.mark.parametrize("system", vs.SYSTEMS)
    def test_each_system_does_the_task(self, system: str) -> None:
        if not vs.is_installed(system):
            assert system not in ("miniray", "torchrun")
            pytest.skip(f"{system} is not installed: pip install ray distributed mpi4py ...")
        assert list(vs.run(system)["squares"]) == [0, 1, 4, 9]

    def test_every_system_has_a_script_and_a_section(self) -> None:
        page = (DOCS / "vs" / "index.md").read_text()
        for system, (name, *_) in vs.SYSTEMS.items():
            assert f"## {name} {{#{system}}}" in page
            assert f'--8<-- "vs/with_{system}.py"' in page


class TestRecord:
    def test_a_script_is_recorded_on_both_sides(self, tmp_path: Path) -> None:
        script = tmp_path / "script.py"
        script.write_text(
            "import sys\nfrom miniray import Worker\n\n\ndef double(channel):\n"
            "    for number in channel:\n        channel.send(2 * number)\n\n\n"
            "with Worker(double, name='doubler') as worker:\n"
            "    worker.send(int(sys.argv[1]))\n    print(worker.recv(timeout=10))\n"
        )
        done = subprocess.run(
            [sys.executable, "-m", "miniray", "record", "-o", "out.json", str(script), "21"],
            cwd=tmp_path,
            env=blocks._environment() | {"PYTHONPATH": str(blocks.REPOSITORY)},
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stdout) == (0, "42\n"), done.stderr
        assert "out.json" in done.stderr
        events = json.loads((tmp_path / "out.json").read_text())["traceEvents"]
        names = {one["args"]["name"] for one in events if one["ph"] == "M"}
        assert {"coordinator", "doubler"} <= names
        calls = [one for one in events if one["ph"] == "X"]
        assert all(one["dur"] >= 0 for one in calls)
        assert len({one["pid"] for one in calls}) == 2
        said = [(one["name"], one["args"].get("message")) for one in calls]
        for call in (("send", "21"), ("recv", "21"), ("send", "42"), ("recv", "42")):
            assert call in said

    def test_what_was_raised_is_recorded_and_the_methods_are_put_back(self, tmp_path: Path) -> None:
        from miniray import Channel, Worker, WorkerExited

        before = Channel.send, Channel.recv, Channel.close
        output = tmp_path / "out.json"
        with record.recording(str(output)), Worker(lambda channel: None) as worker:
            with pytest.raises(WorkerExited):
                worker.recv(timeout=10)
        assert (Channel.send, Channel.recv, Channel.close) == before
        assert "WorkerExited" in output.read_text()

    def test_a_script_that_is_not_there(self, capsys: pytest.CaptureFixture[str]) -> None:
        from miniray.cli import main

        assert main(["record", "/no/such/script.py"]) == 2
        assert "no script /no/such/script.py" in capsys.readouterr().err


def test_the_docs_extra_has_what_the_site_needs() -> None:
    text = (blocks.REPOSITORY / "pyproject.toml").read_text()
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    assert any(one.startswith("mkdocs-material") for one in extras["docs"])
