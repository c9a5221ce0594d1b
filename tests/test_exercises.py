"""The exercises hold together, and the companion recognises every mistake in its catalogue."""

import ast
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from exercises import catalogue, checking, companion, progress, report, runner, trace
from exercises.catalogue import Exercise, WrongAnswer
from tests.support import poll, processes

REPOSITORY = Path(__file__).resolve().parents[1]
EXERCISES = catalogue.load()
MISTAKES = [(one, wrong) for one in EXERCISES for wrong in one.wrong_answers]
# A hang takes as long as the deadline.
MARKED = [
    pytest.param(one, wrong, marks=pytest.mark.slow if wrong.outcome == runner.HUNG else ())
    for one, wrong in MISTAKES
]
GOLDEN = Path(__file__).with_name("golden")
NEWCOMER = Path(__file__).with_name("newcomer")
PATIENCE_S = 6.0  # instead of the reader's 1.7 seconds: this machine may be busy
EXERCISES_MIN, WRONG_ANSWERS_MIN = 15, 60


def exercise_id(value: Exercise | WrongAnswer) -> str:
    return value.name


@pytest.fixture
def answer(tmp_path: Path) -> Path:
    return tmp_path / "answer.py"


class TestCatalogue:
    def test_there_are_enough(self) -> None:
        assert len(EXERCISES) >= EXERCISES_MIN
        assert len(MISTAKES) >= WRONG_ANSWERS_MIN
        for stage in companion.STAGES:
            assert sum(one.stage == stage for one in EXERCISES) >= 3

    def test_names_are_unlike_and_orders_complete(self) -> None:
        assert len({one.name for one in EXERCISES}) == len(EXERCISES)
        for stage in companion.STAGES:
            orders = [one.order for one in EXERCISES if one.stage == stage]
            assert orders == [*range(1, len(orders) + 1)]

    @pytest.mark.parametrize("exercise", EXERCISES, ids=exercise_id)
    def test_an_exercise_has_all_its_parts(self, exercise: Exercise) -> None:
        assert exercise.title
        assert exercise.task
        assert len(exercise.hints) == 3
        assert 3 <= len(exercise.wrong_answers) <= 6
        checks = [name for name, _ in runner.find_checks(exercise)]
        for wrong in exercise.wrong_answers:
            assert wrong.check in checks
            assert wrong.misconception.endswith(".")
            assert wrong.symptom
            assert wrong.hint
        patches = {path.stem for path in (exercise.folder / "mutants").glob("*.patch")}
        assert patches == {wrong.name for wrong in exercise.wrong_answers}

    @pytest.mark.parametrize("exercise", EXERCISES, ids=exercise_id)
    def test_the_starter_is_made_from_the_solution_and_solving_only_adds_lines(
        self, exercise: Exercise
    ) -> None:
        committed = subprocess.run(
            ["git", "show", f":{exercise.answer.relative_to(REPOSITORY)}"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )
        text = committed.stdout if committed.returncode == 0 else exercise.answer.read_text()
        starter = catalogue.make_starter(exercise.solution)
        assert text == starter, "run: python -m exercises reset NAME"
        remaining = iter(exercise.solution.splitlines())
        assert all(line in remaining for line in starter.splitlines())
        assert len(starter.splitlines()) < len(exercise.solution.splitlines())

    def test_the_companion_needs_nothing_but_python(self) -> None:
        script = (
            "import sys; before = set(sys.modules); import exercises.companion, exercises.labs;"
            "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
        )
        done = subprocess.run(
            [sys.executable, "-S", "-c", script], cwd=REPOSITORY, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert {*done.stdout.split()} - sys.stdlib_module_names <= {"exercises", "stages"}


class TestChecks:
    @pytest.mark.parametrize("exercise", EXERCISES, ids=exercise_id)
    def test_the_solution_passes_and_leaves_nothing(self, exercise: Exercise, answer: Path) -> None:
        answer.write_text(exercise.solution)
        outcomes = runner.run(exercise, answer, PATIENCE_S)
        assert [one for one in outcomes if one.kind != runner.PASSED] == []
        assert len(outcomes) == len(runner.find_checks(exercise))

    @pytest.mark.parametrize("exercise", EXERCISES, ids=exercise_id)
    def test_the_starter_does_not_pass(self, exercise: Exercise, answer: Path) -> None:
        answer.write_text(catalogue.make_starter(exercise.solution))
        assert runner.run(exercise, answer, 0.5)[-1].kind != runner.PASSED

    @pytest.mark.thorough
    @pytest.mark.parametrize(("exercise", "wrong"), MARKED, ids=exercise_id)
    def test_a_wrong_answer_gets_exactly_its_hint(
        self, exercise: Exercise, wrong: WrongAnswer, answer: Path
    ) -> None:
        patch = (exercise.folder / "mutants" / f"{wrong.name}.patch").read_text()
        answer.write_text(catalogue.apply_patch(exercise.solution, patch))
        budget_s = 2.5 if wrong.outcome == runner.HUNG else PATIENCE_S
        outcome = runner.run(exercise, answer, budget_s)[-1]
        assert outcome.kind != runner.PASSED
        found = runner.diagnose(exercise, outcome)
        assert found is not None, outcome
        assert found.name == wrong.name, outcome


REPEAT = """
import sys
from exercises import catalogue, runner

(exercise,) = [one for one in catalogue.load() if one.name == sys.argv[1]]
for _ in range(int(sys.argv[2])):
    last = runner.run(exercise, exercise.folder / "solution.py", float(sys.argv[3]))[-1]
    if last.kind != runner.PASSED:
        sys.exit(f"{exercise.name}: {last}")
"""


@pytest.mark.slow
def test_solutions_pass_fifty_times_under_load() -> None:
    """All of them at once, which is load enough for two cores."""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", REPEAT, one.name, "50", "30"],
            cwd=REPOSITORY,
            stderr=subprocess.PIPE,
            text=True,
        )
        for one in EXERCISES
    ]
    said = [process.communicate(timeout=300)[1] for process in running]
    assert "".join(said) == ""
    assert [process.returncode for process in running] == [0] * len(EXERCISES)


class TestChecksAreWrittenWell:
    @pytest.mark.parametrize("exercise", EXERCISES, ids=exercise_id)
    def test_nothing_is_asserted_without_a_message(self, exercise: Exercise) -> None:
        tree = ast.parse((exercise.folder / "checks.py").read_text())
        assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("check_"):
                assert ast.get_docstring(node), f"{node.name} does not say what we did"


class TestTrace:
    @pytest.mark.parametrize("stage", companion.STAGES)
    def test_a_stage_is_recorded(self, stage: int) -> None:
        events = trace.record(stage)
        assert events == sorted(events, key=lambda event: event["at_s"])
        names = set(trace.name_processes(events).values())
        assert "coordinator" in names
        assert "worker 1" in names
        assert ("server 1" in names) == (stage >= 3)
        told = [(event["what"], event["text"]) for event in events]
        assert ("sends", "12") in told
        assert ("receives", "144") in told
        if stage != 2:  # whose server works itself
            assert ("is killed", "SIGKILL") in told
            assert any(what == "learns" and "WorkerDied" in text for what, text in told)

    def test_its_text_has_a_row_for_each_event_and_a_column_for_each_process(self) -> None:
        events = [
            {"at_s": 1.0, "pid": 7, "what": "is", "text": "coordinator"},
            {"at_s": 1.0, "pid": 7, "what": "forks", "text": "9"},
            {"at_s": 1.001, "pid": 9, "what": "is", "text": "worker"},
            {"at_s": 1.002, "pid": 9, "what": "begins", "text": "7"},
            {"at_s": 1.003, "pid": 7, "what": "sends", "text": "12"},
        ]
        column = " " * trace.COLUMN
        assert trace.as_text(events).splitlines() == [
            "      ms  coordinator".ljust(10 + trace.COLUMN) + "worker 1",
            "     0.0  forks worker 1",
            f"     2.0  {column}begins forked by coordinator",
            "     3.0  sends 12",
        ]


CHECK = '''
from exercises.checking import expect, note
import os, signal, subprocess, sys

def check_it(answer):
    """call answer.work()"""
    answer.work()
'''


@pytest.fixture
def made_up(tmp_path: Path) -> Exercise:
    """Return an exercise whose only check calls `work()`."""
    folder = tmp_path / "stage1" / "made_up"
    (folder / "mutants").mkdir(parents=True)
    (folder / "checks.py").write_text(CHECK)
    (folder / "solution.py").write_text(
        "def work():\n    # begin yours\n    pass\n    # end yours\n"
    )
    (folder / "hints.md").write_text("# Hints\n\n## 1\n\none\n\n## 2\n\ntwo\n\n## 3\n\nthree\n")
    (folder / "exercise.toml").write_text(
        'order = 1\ntitle = "Made up"\ntask = "Do it."\nwrong = []\n'
    )
    (made,) = catalogue.load(tmp_path)
    return made


class TestRunner:
    def run(self, exercise: Exercise, text: str, budget_s: float = 1.5) -> runner.Outcome:
        exercise.answer.write_text(text)
        return runner.run(exercise, exercise.answer, budget_s)[-1]

    def test_it_runs_the_readers_file_and_not_the_solution(self, made_up: Exercise) -> None:
        (made_up.folder / "solution.py").write_text("raise SystemExit('the solution was run')\n")
        outcome = self.run(made_up, "def work():\n    raise LookupError('it is mine')\n")
        assert (outcome.kind, outcome.happened) == (runner.RAISED, "LookupError: it is mine")
        assert outcome.where == "answer.py:2"

    def test_a_hang_is_ended_in_time_and_described(self, made_up: Exercise) -> None:
        text = """import os, socket
from exercises.checking import note


def deep(sock):
    note('3 of 5 bytes had arrived')
    return sock.recv(1)


def work():
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.recv(1)
    deep(ours)
"""
        started = time.monotonic()
        outcome = self.run(made_up, text, budget_s=0.5)
        assert time.monotonic() - started < 10
        assert (outcome.kind, outcome.where) == (runner.HUNG, "answer.py:7")
        assert outcome.happened == "hung in deep: 3 of 5 bytes had arrived"
        details = "\n".join(outcome.details)
        assert 'File "answer.py", line 7 in deep' in details
        assert re.search(r"open sockets and pipes: \d+; pids of children: \d+", details)

    def test_an_endless_loop_in_the_answers_import_is_ended(self, made_up: Exercise) -> None:
        outcome = self.run(made_up, "while True:\n    pass\n", budget_s=0.4)
        assert outcome.kind == runner.HUNG

    def test_nothing_is_left_of_an_answer_that_forks_and_hides(self, made_up: Exercise) -> None:
        text = """
import os, signal


def work():
    for _ in range(3):
        if os.fork() == 0:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                signal.pause()
"""
        assert self.run(made_up, text).kind == runner.PASSED
        assert not processes.descendants()

    def test_a_child_that_comes_back_does_not_speak_for_its_parent(self, made_up: Exercise) -> None:
        text = """
import os


def work():
    if os.fork() == 0:
        raise ValueError
    os.wait()
"""
        assert self.run(made_up, text).kind == runner.PASSED

    def test_a_crash_is_no_pass(self, made_up: Exercise) -> None:
        outcome = self.run(made_up, "import os\n\n\ndef work():\n    os.kill(os.getpid(), 9)\n")
        assert outcome.kind == runner.RAISED
        assert "SIGKILL" in outcome.happened

    def test_an_answer_that_closes_every_descriptor_and_goes_on_is_ended(
        self, made_up: Exercise
    ) -> None:
        text = (
            "import os\n\n\ndef work():\n    os.closerange(0, 200)\n    while True:\n        pass\n"
        )
        assert self.run(made_up, text, budget_s=0.5).kind == runner.HUNG

    def test_a_crash_is_seen_at_once_although_its_children_live(self, made_up: Exercise) -> None:
        text = """
import os, signal


def work():
    if os.fork() == 0:
        signal.pause()
    os.kill(os.getpid(), signal.SIGKILL)
"""
        started = time.monotonic()
        outcome = self.run(made_up, text, budget_s=30)
        assert time.monotonic() - started < 20
        assert "SIGKILL" in outcome.happened
        assert not processes.descendants()

    def test_output_without_end_is_cut(self, made_up: Exercise) -> None:
        text = "def work():\n    for _ in range(40_000):\n        print('x' * 1000)\n"
        outcome = self.run(made_up, text, budget_s=10)
        assert outcome.kind == runner.RAISED
        assert "File too large" in outcome.happened
        assert max(map(len, outcome.details)) < 100

    def test_ctrl_c_in_a_check_leaves_nothing(self, made_up: Exercise) -> None:
        made_up.answer.write_text("import time\n\n\ndef work():\n    time.sleep(60)\n")
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                runner.run(made_up, made_up.answer, 30)
        finally:
            signal.signal(signal.SIGALRM, before)
        assert not processes.descendants()

    def test_a_syntax_error_has_its_line(self, made_up: Exercise) -> None:
        outcome = self.run(made_up, "def work():\n    return (\n")
        assert outcome.kind == runner.RAISED
        assert outcome.happened.startswith("SyntaxError")
        assert outcome.where.startswith("answer.py:")

    def test_what_it_prints_is_shown_when_it_fails(self, made_up: Exercise) -> None:
        outcome = self.run(made_up, "def work():\n    print('look')\n    raise ValueError\n")
        assert "  look" in outcome.details

    def test_the_budget_leaves_room_below_two_seconds(self) -> None:
        assert runner.BUDGET_S <= 1.8

    def test_a_patch_that_does_not_fit_is_an_error(self) -> None:
        patch = "--- a\n+++ b\n@@ -1,2 +1,1 @@\n one\n-two\n"
        assert catalogue.apply_patch("one\ntwo\nthree\n", patch) == "one\nthree\n"
        with pytest.raises(ValueError, match="does not fit at line 2"):
            catalogue.apply_patch("one\n2\n", patch)


def run_companion(*argv: str, root: Path, timeout: float = 30) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "exercises", *argv],
        cwd=root,
        env={**os.environ, "PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a directory with a copy of the exercises and stages, as a reader has them."""
    for name in ("exercises", "stages"):
        ignored = shutil.ignore_patterns("__pycache__", ".progress")
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=ignored)
    for exercise in catalogue.load(tmp_path / "exercises"):
        exercise.answer.write_text(catalogue.make_starter(exercise.solution))
    return tmp_path


def normalise(text: str, root: Path) -> str:
    return text.replace(str(root), "ROOT").replace(f"{Path(sys.executable).name} -m", "python -m")


class TestCompanion:
    """What it says, word for word: tests/golden; UPDATE_GOLDEN=1 writes what it says now."""

    def golden(self, name: str, said: str) -> None:
        file = GOLDEN / f"{name}.txt"
        if os.environ.get("UPDATE_GOLDEN"):
            GOLDEN.mkdir(exist_ok=True)
            file.write_text(said)
        assert said == file.read_text()

    def folder(self, root: Path, name: str) -> Path:
        (found,) = root.glob(f"exercises/stage*/{name}")
        return found

    def solve(self, root: Path, name: str) -> None:
        folder = self.folder(root, name)
        (folder / "answer.py").write_text((folder / "solution.py").read_text())

    def mistake(self, root: Path, name: str, wrong: str) -> None:
        folder = self.folder(root, name)
        patch = (folder / "mutants" / f"{wrong}.patch").read_text()
        text = catalogue.apply_patch((folder / "solution.py").read_text(), patch)
        (folder / "answer.py").write_text(text)

    def test_the_map_at_the_start(self, copy: Path) -> None:
        done = run_companion(root=copy)
        assert done.returncode == 0, done.stderr
        self.golden("map", normalise(done.stdout, copy))

    def test_a_starter_is_not_started_yet(self, copy: Path) -> None:
        done = run_companion("check", root=copy)
        assert done.returncode == 1
        self.golden("not-started", normalise(done.stdout, copy))

    def test_a_wrong_answer(self, copy: Path) -> None:
        self.mistake(copy, "short_reads", "single_recv")
        done = run_companion("check", "short_reads", root=copy)
        assert done.returncode == 1
        self.golden("wrong", normalise(done.stdout, copy))

    def test_a_hang(self, copy: Path) -> None:
        self.mistake(copy, "who_closes_what", "parent_keeps_the_childs_end")
        done = run_companion("check", "who_closes_what", root=copy)
        assert done.returncode == 3
        said = re.sub(r'(File "(?!answer)[^"]*", line )\d+', r"\1N", done.stdout)
        self.golden("hung", normalise(re.sub(r"pipes: \d+", "pipes: N", said), copy))

    def test_passing_and_what_comes_next(self, copy: Path) -> None:
        self.solve(copy, "framing")
        done = run_companion("check", "framing", root=copy)
        assert done.returncode == 0
        self.golden("passed", normalise(done.stdout, copy))
        after = run_companion(root=copy)
        assert "passed   framing" in after.stdout
        assert "1 of " in after.stdout
        assert "next: python -m exercises check who_closes_what" in normalise(after.stdout, copy)

    def test_hints_come_one_by_one_and_are_remembered(self, copy: Path) -> None:
        said = [run_companion("hint", "framing", root=copy).stdout for _ in range(4)]
        assert [one.count("hint ") for one in said[:1]] == [said[0].count("hint ")]
        for level, text in enumerate((*said[:3], said[2]), 1):
            assert f"hint {min(level, 3)} of 3" in text
        assert "hint 2 of 3" not in said[0]
        assert "hint 1 of 3" in said[3]
        assert "--give-up" in said[3]

    def test_the_solution_is_for_those_who_passed_or_insist(self, copy: Path) -> None:
        refused = run_companion("solution", "framing", root=copy)
        assert refused.returncode == 1
        assert "--give-up" in refused.stderr
        given = run_companion("solution", "framing", "--give-up", root=copy)
        assert given.returncode == 0
        assert "struct.pack" in given.stdout

    def test_reset_keeps_the_readers_file(self, copy: Path) -> None:
        self.solve(copy, "framing")
        assert run_companion("check", "framing", root=copy).returncode == 0
        done = run_companion("reset", "framing", root=copy)
        assert done.returncode == 0
        (kept,) = (copy / "exercises" / ".progress").glob("framing.*.py")
        assert "struct.pack" in kept.read_text()
        assert run_companion("check", "framing", root=copy).returncode == 1

    def test_an_unknown_name_is_set_up_with_a_guess(self, copy: Path) -> None:
        done = run_companion("check", "short_read", root=copy)
        assert done.returncode == 2
        assert "did you mean short_reads?" in done.stderr

    def test_a_file_that_cannot_be_read_is_set_up(self, copy: Path) -> None:
        answer = self.folder(copy, "framing") / "answer.py"
        answer.write_bytes(b"\xff\xfe")
        assert "Python cannot read your file" in run_companion("check", root=copy).stdout
        answer.unlink()
        answer.mkdir()
        done = run_companion("check", "framing", root=copy)
        assert done.returncode == 2
        assert "cannot go on" in done.stderr
        assert "Traceback" not in done.stderr

    def test_doctor_has_a_line_for_each_need(self, copy: Path) -> None:
        done = run_companion("doctor", root=copy)
        assert done.returncode == 0, done.stdout
        for need in ("Python", "pidfd", "fork", "loopback", "open files", "ssh", "torch"):
            assert need in done.stdout

    def test_diff_compares_stages(self, copy: Path) -> None:
        assert "remote_worker.py" in run_companion("diff", "1", "2", root=copy).stdout

    def test_without_a_terminal_there_is_no_colour(self, copy: Path) -> None:
        assert "\x1b" not in run_companion(root=copy).stdout

    def test_watch_checks_again_when_the_file_is_saved(self, copy: Path) -> None:
        with self.watching(copy, "framing") as (process, said):
            poll.until(lambda: "not started yet" in said(), timeout_s=20)
            self.mistake(copy, "framing", "little_endian")
            poll.until(lambda: "0a 00 00 00" in said(), timeout_s=20)
            self.solve(copy, "framing")
            poll.until(lambda: "framing: passed" in said(), timeout_s=20)
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130

    @contextlib.contextmanager
    def watching(
        self, root: Path, name: str
    ) -> Iterator[tuple["subprocess.Popen[bytes]", "object"]]:
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                [sys.executable, "-u", "-m", "exercises", "check", name, "--watch"],
                cwd=root,
                stdin=subprocess.DEVNULL,
                stdout=output,
            )

            def said() -> str:
                return os.pread(output.fileno(), 1 << 20, 0).decode()

            try:
                yield process, said
            finally:
                if process.poll() is None:
                    process.kill()
                process.wait()


@pytest.mark.thorough
def test_a_newcomers_session_goes_as_it_went(copy: Path) -> None:
    """From broken first attempts to three solved exercises, by what the companion says."""
    session = tomllib.loads((NEWCOMER / "session.toml").read_text())
    said = ["# A newcomer's session\n"]
    passed = set()
    for number, attempt in enumerate(session["attempt"], 1):
        name = attempt["exercise"]
        (answer,) = copy.glob(f"exercises/stage*/{name}/answer.py")
        exercise = next(one for one in EXERCISES if one.name == name)
        pieces = catalogue.make_starter(exercise.solution).split(f"    {catalogue.END}\n")
        yours = [text.removeprefix("\n") for text in attempt["yours"]]
        assert len(pieces) == len(yours) + 1
        marks = zip(pieces, [*(f"{text}    {catalogue.END}\n" for text in yours), ""], strict=True)
        answer.write_text("".join(one for pair in marks for one in pair))
        done = run_companion("check", name, root=copy)
        if done.returncode == 0:
            passed.add(name)
        said += [
            f"## {number}. {name}\n",
            f"{attempt['thinks']}\n",
            "```py\n" + "...\n".join(yours) + "```\n",
            f"```text\n$ python -m exercises check {name}\n{done.stdout}```\n",
        ]
    assert passed == {"framing", "who_closes_what", "quoting"}
    transcript = NEWCOMER / "transcript.md"
    text = normalise("\n".join(said), copy)
    if os.environ.get("UPDATE_GOLDEN"):
        transcript.write_text(text)
    assert text == transcript.read_text()


def test_a_record_that_cannot_be_read_is_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "FOLDER", tmp_path)
    (tmp_path / "progress.json").write_text("{")
    assert progress.Progress.load() == progress.Progress()


def test_a_note_is_what_stands() -> None:
    checking.note("3 of 5 bytes")
    assert checking._notes == ["3 of 5 bytes"]


@pytest.mark.parametrize(
    ("page", "make"),
    [
        ("exercises.md", lambda: report.exercises_as_markdown(EXERCISES, companion.STAGES)),
    ],
)
def test_the_sites_pages_are_made_from_the_same_files(page: str, make: Callable[[], str]) -> None:
    expected = make()
    assert (REPOSITORY / "docs" / page).read_text() == expected, "run: python -m exercises pages"
