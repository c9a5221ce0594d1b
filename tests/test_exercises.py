"""The exercises hold together, and the companion recognises every mistake in its catalogue."""

import ast
import compileall
import contextlib
import json
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
from xml.etree import ElementTree

import pytest

from exercises import (
    catalogue,
    checking,
    companion,
    functions,
    mine,
    progress,
    report,
    runner,
    trace,
    train,
    trial,
)
from exercises.catalogue import Exercise, WrongAnswer
from stages import parts, snapshots
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
HANG_S = 1.0  # for a check that hangs whatever it is given
PATIENCE_S = 6.0  # instead of the reader's 1.7 seconds: this machine may be busy
EXERCISES_MIN, WRONG_ANSWERS_MIN = 15, 60


def exercise_id(value: Exercise | WrongAnswer) -> str:
    return value.name


def solution_of(exercise: Exercise) -> dict[str, str]:
    """Return the stage's own text of each function, or the solution of a side exercise."""
    if exercise.is_side:
        return {"": exercise.solution}
    return {name: catalogue.own(exercise.stage, name) for name in exercise.functions}


def starter_of(exercise: Exercise) -> dict[str, str]:
    if exercise.is_side:
        return {"": exercise.starter}
    return {name: exercise.opened(name) for name in exercise.functions}


def named(name: str) -> Exercise:
    return next(one for one in EXERCISES if one.name == name)


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
        assert exercise.why
        assert 5 <= exercise.minutes <= 40
        assert 3 <= len(exercise.wrong_answers) <= 18
        checks = [name for name, _ in runner.find_checks(exercise)]
        for wrong in exercise.wrong_answers:
            assert any(re.fullmatch(wrong.check, name) for name in checks), wrong.check
            assert wrong.misconception.endswith(".")
            assert wrong.symptom
            assert wrong.hint
        mutants = (exercise.folder / "mutants").iterdir()
        assert {path.stem for path in mutants} == {wrong.name for wrong in exercise.wrong_answers}

    @pytest.mark.parametrize("exercise", EXERCISES, ids=exercise_id)
    def test_the_starter_is_the_solution_without_what_is_yours(self, exercise: Exercise) -> None:
        assert not (exercise.folder / "answer.py").exists(), "the reader writes in my_miniray/"
        if exercise.is_side:
            remaining = iter(exercise.solution.splitlines())
            assert all(line in remaining for line in exercise.starter.splitlines())
            assert len(exercise.starter.splitlines()) < len(exercise.solution.splitlines())
            return
        assert {*exercise.remarks} == {*exercise.functions}
        for name, text in solution_of(exercise).items():
            opened = exercise.opened(name)
            assert functions.is_open(opened)
            assert not functions.is_open(text)
            head = [ast.parse(one).body[0] for one in (text, opened)]
            assert isinstance(head[0], ast.FunctionDef)
            assert isinstance(head[1], ast.FunctionDef)
            assert ast.dump(head[0].args) == ast.dump(head[1].args)
            assert ast.get_docstring(head[0]) == ast.get_docstring(head[1])
            assert max(map(len, opened.splitlines())) <= 100

    def test_a_function_is_one_exercise(self) -> None:
        names = [name for one in EXERCISES for name in one.functions]
        assert len(set(names)) == len(names)
        assert sum(not one.is_side for one in EXERCISES) >= 15

    def test_a_function_is_an_exercise_of_the_stage_that_brings_it(self) -> None:
        """Else it would stand in the reader's copy of an earlier stage, complete."""
        for exercise in EXERCISES:
            for name in exercise.functions:
                before = exercise.stage > 1 and catalogue.has(exercise.stage - 1, name)
                if before:
                    assert catalogue.own(exercise.stage - 1, name) != catalogue.own(
                        exercise.stage, name
                    ), name

    def test_the_map_follows_the_chapters(self) -> None:
        """Part by part, and at a stage's end what is for those who have not had enough."""
        for stage in companion.STAGES:
            here = [part for part in parts.load() if part.stage == stage]
            told = [name for part in here for name in part.exercises]
            told += [name for part in here for name in part.more]
            assert [one.name for one in EXERCISES if one.stage == stage] == told

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
    def test_the_solution_passes_and_leaves_nothing(self, exercise: Exercise) -> None:
        with mine.bench_of(exercise, solution_of(exercise)) as bench:
            outcomes = runner.run(exercise, bench, PATIENCE_S)
        assert [one for one in outcomes if one.kind != runner.PASSED] == []
        assert len(outcomes) == len(runner.find_checks(exercise))
        assert not processes.descendants()

    @pytest.mark.parametrize("exercise", EXERCISES, ids=exercise_id)
    def test_the_starter_does_not_pass(self, exercise: Exercise) -> None:
        with mine.bench_of(exercise, starter_of(exercise)) as bench:
            assert runner.run(exercise, bench, 0.5)[-1].kind != runner.PASSED

    @pytest.mark.thorough
    @pytest.mark.parametrize(("exercise", "wrong"), MARKED, ids=exercise_id)
    def test_a_wrong_answer_gets_exactly_its_hint(
        self, exercise: Exercise, wrong: WrongAnswer
    ) -> None:
        with mine.bench_of(exercise, exercise.mistaken(wrong.name)) as bench:
            outcome = run_each(exercise, bench, wrong, HANG_S)
            found = runner.diagnose(exercise, outcome)
            if outcome.kind == runner.HUNG and (found is None or found.name != wrong.name):
                # On a busy machine it may not have come yet to where it hangs.
                outcome = run_each(exercise, bench, wrong, PATIENCE_S)
                found = runner.diagnose(exercise, outcome)
        assert outcome.kind != runner.PASSED
        assert found is not None, outcome
        assert found.name == wrong.name, outcome


def run_each(
    exercise: Exercise, bench: mine.Bench, wrong: WrongAnswer, hang_s: float
) -> runner.Outcome:
    """Run the checks up to the first that fails; `hang_s` seconds for one that is to hang."""
    compileall.compile_dir(bench.folder, quiet=2)
    with runner.parent_of_orphans():
        for name, check in runner.find_checks(exercise):
            hangs = wrong.outcome == runner.HUNG and re.fullmatch(wrong.check, name)
            deadline = time.monotonic() + (hang_s if hangs else PATIENCE_S)
            outcome = runner._run_one(name, check, bench, deadline)
            if outcome.kind != runner.PASSED:
                break
    return outcome


REPEAT = """
import sys
from exercises import catalogue, mine, runner

(exercise,) = [one for one in catalogue.load() if one.name == sys.argv[1]]
texts = {name: catalogue.own(exercise.stage, name) for name in exercise.functions}
with mine.bench_of(exercise, texts or {"": exercise.solution}) as bench:
    for _ in range(int(sys.argv[2])):
        last = runner.run(exercise, bench, float(sys.argv[3]))[-1]
        if last.kind != runner.PASSED:
            sys.exit(f"{exercise.name}: {last}")
"""


@pytest.mark.slow
def test_solutions_pass_many_times_under_load() -> None:
    """All of them at once, which is load enough for two cores."""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", REPEAT, one.name, "15", "30"],
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
        with mine.bench_of(exercise, {"": text}) as bench:
            return runner.run(exercise, bench, budget_s)[-1]

    def test_it_runs_the_readers_file_and_not_the_solution(self, made_up: Exercise) -> None:
        (made_up.folder / "solution.py").write_text("raise SystemExit('the solution was run')\n")
        outcome = self.run(made_up, "def work():\n    raise LookupError('it is mine')\n")
        assert (outcome.kind, outcome.happened) == (runner.RAISED, "LookupError: it is mine")
        assert outcome.where == "made_up.py:2"

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
        assert (outcome.kind, outcome.where) == (runner.HUNG, "made_up.py:7")
        assert outcome.happened == "hung in deep: 3 of 5 bytes had arrived"
        details = "\n".join(outcome.details)
        assert 'File "made_up.py", line 7 in deep' in details
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

    def test_nothing_is_left_of_a_process_that_always_leaves_a_successor(
        self, made_up: Exercise
    ) -> None:
        text = """
import os


def work():
    if os.fork() == 0:
        os.setsid()
        while os.fork() == 0:  # whoever has a child ends, and the child goes on
            pass
        os._exit(0)
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
        text = "import time\n\n\ndef work():\n    time.sleep(60)\n"
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                self.run(made_up, text, 30)
        finally:
            signal.signal(signal.SIGALRM, before)
        assert not processes.descendants()

    def test_a_syntax_error_has_its_line(self, made_up: Exercise) -> None:
        outcome = self.run(made_up, "def work():\n    return (\n")
        assert outcome.kind == runner.RAISED
        assert outcome.happened.startswith("SyntaxError")
        assert outcome.where.startswith("made_up.py:")

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


@pytest.mark.thorough
def test_a_child_that_goes_on_as_its_parent_does_not_fork_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a first honest attempt did, for eight minutes: "32349 of its own 17 tests failed"."""
    monkeypatch.setattr(trial, "PROCESSES_MAX", 40)
    exercise = named("who_closes_what")
    texts = solution_of(exercise)
    fork, start = "process.fork", "worker.Worker.__init__"
    texts[fork] = texts[fork].replace("run() & 0xFF", "run()")
    texts[start] = texts[start].replace(
        "return run_work", "run_work"
    )  # so there is None for a code
    with mine.bench_of(exercise, texts) as bench:
        outcome = runner.run(exercise, bench, PATIENCE_S)[-1]
        assert outcome.kind != runner.PASSED  # so that the stage's tests are not even begun
        tests = trial.run_tests(bench, lambda count: None)
    assert any("processes at once" in one.happened for one in tests.failures)
    assert len(tests.failures) <= tests.count
    assert not processes.descendants()


@pytest.mark.thorough
def test_what_a_child_printed_is_told_with_the_test_that_failed() -> None:
    exercise = named("who_closes_what")
    texts = solution_of(exercise)
    texts["channel.close_inherited"] = (
        "def close_inherited():\n    raise LookupError('it is mine')\n"
    )
    with mine.bench_of(exercise, texts) as bench:
        tests = trial.run_tests(bench, lambda count: None)
    assert tests.failures
    assert tests.failures[0].said[-1] == "LookupError: it is mine"
    assert "it is mine" in report.tests_failed(exercise, [], tests)


MODULE = """\
import os

LIMIT = 3


class Box:
    # What comes before it stays.
    def put(self, value: int) -> int:
        \"""Put a value in.\"""
        # The first line.
        return value


def helper() -> int:
    return LIMIT


def get() -> int:
    return helper() + len(os.sep)
"""


class TestFunctions:
    def test_a_function_is_cut_without_its_indentation(self) -> None:
        text = functions.cut(MODULE, "Box.put")
        assert text.splitlines()[0] == "def put(self, value: int) -> int:"
        assert text.splitlines()[-1] == "    return value"
        with pytest.raises(LookupError, match=r"no function Box\.get"):
            functions.cut(MODULE, "Box.get")

    def test_an_opened_function_keeps_its_head_and_docstring(self) -> None:
        opened = functions.open_up(functions.cut(MODULE, "Box.put"), "Yours.", "not yet")
        assert opened == (
            "def put(self, value: int) -> int:\n"
            '    """Put a value in."""\n'
            "    # Yours.\n"
            '    raise NotImplementedError("not yet")\n'
        )
        assert functions.is_open(opened)
        assert not functions.is_open(functions.cut(MODULE, "get"))

    def test_replaced_lines_know_their_number_in_the_old_text(self) -> None:
        long = "def put(self, value):\n" + "    value += 1\n" * 5 + "    return value\n"
        new, numbers = functions.replace(
            MODULE, {"Box.put": long, "nowhere": "def nowhere(): ...\n"}
        )
        assert functions.cut(new, "Box.put") == long
        assert functions.cut(new, "get") == functions.cut(MODULE, "get")
        lines, old = new.splitlines(), MODULE.splitlines()
        at = lines.index("def get() -> int:")
        assert old[numbers[at] - 1] == lines[at]
        assert numbers[lines.index("    def put(self, value):")] == 8

    def test_companions_are_what_a_function_needs_besides(self) -> None:
        found = functions.companions(MODULE, "get", {"os"})
        assert found == ["LIMIT = 3\n", "def helper() -> int:\n    return LIMIT\n"]
        assert functions.companions(MODULE, "get", {"os", "helper"}) == []


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
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=ignored)
    return tmp_path


def write(root: Path, exercise: Exercise, texts: dict[str, str], stage: int = 0) -> None:
    """Write functions into the reader's copy below this root, which has to be there."""
    if exercise.is_side:
        (root / "my_miniray" / "side" / f"{exercise.name}.py").write_text(texts[""])
    for name, text in texts.items():
        if name:
            file = file_of(root, stage or exercise.stage, name)
            new, _ = functions.replace(file.read_text(), {name.partition(".")[2]: text})
            file.write_text(new)


def file_of(root: Path, stage: int, name: str) -> Path:
    module = name.partition(".")[0]
    return root / "my_miniray" / snapshots.NAMES[stage - 1] / f"{module}.py"


def put_on_record(root: Path, exercise: Exercise) -> None:
    """Note that an exercise is passed, as a check does that has run the stage's tests."""
    file = root / "my_miniray" / ".progress.json"
    record = json.loads(file.read_text())
    record["passed"] = [*dict.fromkeys([*record["passed"], exercise.name])]
    file.write_text(json.dumps(record))


def normalise(text: str, root: Path) -> str:
    text = re.sub(r"\d+\.\d s$", "N s", text, flags=re.MULTILINE)
    text = re.sub(r'(File "checks.py", line )\d+', r"\1N", text)
    text = re.sub(r"(sockets and pipes: )\d+", r"\1N", text)
    return text.replace(str(root), "ROOT").replace(f"{Path(sys.executable).name} -m", "python -m")


class TestCompanion:
    """What it says, word for word: tests/golden; UPDATE_GOLDEN=1 writes what it says now."""

    def golden(self, name: str, said: str) -> None:
        file = GOLDEN / f"{name}.txt"
        if os.environ.get("UPDATE_GOLDEN"):
            GOLDEN.mkdir(exist_ok=True)
            file.write_text(said)
        assert said == file.read_text()

    def solve(self, root: Path, name: str) -> None:
        run_companion("start", str(named(name).stage), root=root)
        write(root, named(name), solution_of(named(name)))

    def mistake(self, root: Path, name: str, wrong: str) -> None:
        run_companion("start", str(named(name).stage), root=root)
        write(root, named(name), solution_of(named(name)))
        write(root, named(name), named(name).mistaken(wrong))

    def test_the_map_at_the_start(self, copy: Path) -> None:
        done = run_companion(root=copy)
        assert done.returncode == 0, done.stderr
        self.golden("map", normalise(done.stdout, copy))

    def test_the_start(self, copy: Path) -> None:
        done = run_companion("start", root=copy)
        assert done.returncode == 0, done.stderr
        again = run_companion("start", root=copy)
        self.golden("start", normalise(f"{done.stdout}\n{again.stdout}", copy))

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
        self.golden("hung", normalise(done.stdout, copy))

    def test_passing_and_what_comes_next(self, copy: Path) -> None:
        self.solve(copy, "framing")
        done = run_companion("check", "framing", root=copy)
        assert done.returncode == 0
        self.golden("passed", normalise(done.stdout, copy))
        after = run_companion(root=copy)
        assert "passed   framing" in after.stdout
        assert "1 of " in after.stdout
        assert "next: python -m exercises check last_words" in normalise(after.stdout, copy)

    def test_hints_come_one_by_one_and_are_remembered(self, copy: Path) -> None:
        said = [run_companion("hint", "framing", root=copy).stdout for _ in range(4)]
        assert [one.count("hint ") for one in said[:1]] == [said[0].count("hint ")]
        for level, text in enumerate((*said[:3], said[2]), 1):
            assert f"hint {min(level, 3)} of 3" in text
        assert "hint 2 of 3" not in said[0]
        assert "hint 1 of 3" in said[3]
        assert "--give-up" in said[3]

    def test_a_hint_is_for_what_was_checked_last(self, copy: Path) -> None:
        run_companion("check", "zombies", root=copy)
        assert "check zombies" in run_companion("hint", root=copy).stdout
        self.solve(copy, "zombies")
        run_companion("check", "zombies", root=copy)
        assert "check framing" in run_companion("hint", root=copy).stdout

    def test_checks_alone_are_not_on_record(self, copy: Path) -> None:
        self.solve(copy, "framing")
        done = run_companion("check", "framing", "--quick", root=copy)
        assert done.returncode == 0
        self.golden("quick", normalise(done.stdout, copy))
        assert "0 of " in run_companion(root=copy).stdout

    def test_the_solution_is_for_those_who_passed_or_insist(self, copy: Path) -> None:
        refused = run_companion("solution", "framing", root=copy)
        assert refused.returncode == 1
        assert "--give-up" in refused.stderr
        given = run_companion("solution", "framing", "--give-up", root=copy)
        assert given.returncode == 0
        assert "PRELUDE.pack" in given.stdout

    def test_reset_keeps_the_readers_file(self, copy: Path) -> None:
        self.solve(copy, "framing")
        assert run_companion("check", "framing", root=copy).returncode == 0
        done = run_companion("reset", "framing", root=copy)
        assert done.returncode == 0
        (kept,) = (copy / "my_miniray" / "kept").glob("framing.wire.*.py")
        assert "PRELUDE.pack" in kept.read_text()
        assert run_companion("check", "framing", root=copy).returncode == 1

    def test_an_unknown_name_is_set_up_with_a_guess(self, copy: Path) -> None:
        done = run_companion("check", "short_read", root=copy)
        assert done.returncode == 2
        assert "did you mean short_reads?" in done.stderr

    def test_a_file_that_cannot_be_read_is_set_up(self, copy: Path) -> None:
        run_companion("start", root=copy)
        answer = file_of(copy, 1, "wire")
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


def test_after_a_training_comes_what_the_map_says() -> None:
    record = progress.Progress(passed=["framing"])
    following = report.next_of(EXERCISES, record)
    assert following
    run = report.Run(losses=[1.0], alone=[1.0], held=[1])
    said = report.trained(run, [], following)
    assert said.endswith("check last_words")
    assert "next:" not in report.trained(run, [], None)


class TestMine:
    """What the reader writes stays, counts, and goes along."""

    def check(self, root: Path, name: str, *more: str) -> "subprocess.CompletedProcess[str]":
        return run_companion("check", name, *more, root=root, timeout=60)

    def solve(self, root: Path, name: str) -> None:
        run_companion("start", str(named(name).stage), root=root)
        write(root, named(name), solution_of(named(name)))

    def test_a_wrong_answer_gets_its_hint_where_it_was_written(self, copy: Path) -> None:
        self.solve(copy, "zombies")
        write(copy, named("zombies"), named("zombies").mistaken("raw_status"))
        done = self.check(copy, "zombies")
        assert done.returncode == 1
        assert "768 is 3 x 256" in " ".join(done.stdout.split())
        assert "zombies" not in run_companion(root=copy).stdout.partition("passed")[2]

    def test_a_line_is_that_of_the_readers_file_although_others_stand_in(self, copy: Path) -> None:
        self.solve(copy, "who_closes_what")
        broken = "def fork(run):\n    raise ValueError(run)\n"
        write(copy, named("who_closes_what"), {"process.fork": broken})
        lines = file_of(copy, 1, "process").read_text().splitlines()
        number = lines.index("    raise ValueError(run)") + 1
        assert "zombies" in "".join(lines[: number - 1])  # what is above it is open still
        assert f"process.py:{number}\n" in self.check(copy, "who_closes_what").stdout
        hangs = "def fork(run):\n    os.read(os.pipe()[0], 1)\n"
        write(copy, named("who_closes_what"), {"process.fork": hangs})
        done = self.check(copy, "who_closes_what")
        assert done.returncode == 3
        assert f"process.py:{number}\n" in done.stdout
        assert f'File "process.py", line {number} in fork' in done.stdout

    def test_a_function_that_is_open_still_is_told(self, copy: Path) -> None:
        self.solve(copy, "zombies")
        write(
            copy,
            named("zombies"),
            {"process.Process.stop": named("zombies").opened("process.Process.stop")},
        )
        done = self.check(copy, "zombies")
        assert done.returncode == 1
        assert "is yours to write: zombies" in " ".join(done.stdout.split())
        assert "one of its functions is not written yet" in done.stdout

    def test_a_traceback_names_the_readers_file_and_line(self, copy: Path) -> None:
        self.solve(copy, "who_closes_what")
        raising = "    try:\n        raise ValueError(run)\n"
        broken = f"def fork(run):\n{raising}    finally:\n        traceback.print_exc()\n"
        write(copy, named("who_closes_what"), {"process.fork": broken})
        file = file_of(copy, 1, "process")
        number = file.read_text().splitlines().index("        raise ValueError(run)") + 1
        said = self.check(copy, "who_closes_what").stdout
        assert "/my_miniray-" not in said
        assert f'File "{file.relative_to(copy)}", line {number}, in fork' in said
        run_companion("start", "1", root=copy)
        demo = run_companion("demo", "1", root=copy)
        assert demo.returncode == 0, demo.stderr
        assert "/my_miniray-" not in demo.stdout + demo.stderr
        assert f'File "{file_of(copy, 1, "channel").relative_to(copy)}", line ' in demo.stdout

    def test_a_demo_says_which_file_python_cannot_read(self, copy: Path) -> None:
        run_companion("start", "1", root=copy)
        file_of(copy, 1, "wire").write_text("def encode(:\n")
        done = run_companion("demo", "1", root=copy)
        assert done.returncode == 2
        assert "cannot read your stage1_uds_worker/wire.py:1, SyntaxError" in done.stderr
        assert "Traceback" not in done.stderr

    def test_an_exercise_needs_no_other_one(self, copy: Path) -> None:
        self.solve(copy, "last_words")
        write(copy, named("framing"), {"wire.encode": "def encode(kind, body):\n    return 7\n"})
        done = self.check(copy, "last_words")  # with the stage's own tests, which need them all
        assert done.returncode == 0, done.stdout
        assert "stage 1's own 17 tests, on your copy" in done.stdout

    def test_what_breaks_the_stage_does_not_pass(self, copy: Path) -> None:
        self.solve(copy, "framing")
        file = file_of(copy, 1, "worker")
        file.write_text(file.read_text().replace("_goodbye = WorkerExited", ""))
        done = self.check(copy, "framing")
        assert done.returncode == 1
        assert "and the stage does not work" in done.stdout
        assert re.search(
            r"\d+ of stage 1's own 17 tests, on your copy, \d+\.\d s failed:", done.stdout
        )
        assert re.search(r"test_worker\.py:\d+ in test_", done.stdout)
        assert self.check(copy, "framing", "--quick").returncode == 0

    def test_nothing_is_overwritten_and_what_is_missing_comes_back(self, copy: Path) -> None:
        self.solve(copy, "framing")
        mine_now = file_of(copy, 1, "wire").read_text() + "\n# a remark of mine\n"
        file_of(copy, 1, "wire").write_text(mine_now)
        file_of(copy, 1, "errors").unlink()
        for command in (("start",), ("start", "1"), ("check", "framing", "--quick"), ("demo", "1")):
            assert run_companion(*command, root=copy).returncode == 0
            assert file_of(copy, 1, "wire").read_text() == mine_now
        own = (REPOSITORY / "stages" / snapshots.NAMES[0] / "errors.py").read_text()
        assert file_of(copy, 1, "errors").read_text() == own
        run_companion("reset", "framing", root=copy)
        run_companion("start", root=copy)
        assert "# a remark of mine" in file_of(copy, 1, "wire").read_text()
        (kept,) = (copy / "my_miniray" / "kept").iterdir()
        assert kept.read_text() == mine_now

    def test_what_is_passed_goes_along_with_what_it_needs(self, copy: Path) -> None:
        self.solve(copy, "last_words")
        file = file_of(copy, 1, "channel")
        text = file.read_text().replace("traceback.format_exc()", "tell(error)")
        tell = "def tell(error):\n    return ''.join(tb.format_exception(error))\n\n\n"
        text = text.replace("def run_work", tell + "def run_work")
        file.write_text(
            text.replace("import weakref\n", "import traceback as tb\nimport weakref\n")
        )
        run_companion("start", "2", root=copy)  # a copy that is there already
        done = self.check(copy, "last_words")
        assert done.returncode == 0, done.stdout
        assert "stage 2: channel.py: run_work is yours" in done.stdout
        run_companion("start", "5", root=copy)  # and one that is made later
        for stage in (2, 5):
            carried = file_of(copy, stage, "channel").read_text()
            assert functions.cut(carried, "run_work") == functions.cut(file.read_text(), "run_work")
            assert "import traceback as tb\n" in carried
            assert functions.cut(carried, "tell")
        whole = run_companion("check", "short_reads", "--quick", root=copy)
        assert "not started yet" in whole.stdout
        write(copy, named("short_reads"), solution_of(named("short_reads")))
        assert self.check(copy, "short_reads").returncode == 0  # stage 2's tests, through it

    def test_a_function_that_a_later_stage_changes_is_the_stages_own(self, copy: Path) -> None:
        self.solve(copy, "framing")
        self.check(copy, "framing")
        said = run_companion("start", "2", root=copy).stdout
        assert "stage 2: wire.py: encode has changed since yours; this stage's own" in said
        assert "decode_prelude" not in said  # which stage 2 does without
        source = file_of(copy, 2, "wire").read_text()
        assert functions.cut(source, "encode") == catalogue.own(2, "wire.encode")

    def test_what_the_reader_has_changed_later_on_stays(self, copy: Path) -> None:
        self.solve(copy, "last_words")
        run_companion("start", "2", root=copy)
        other = "def run_work(work_fn, channel):\n    return 7\n"
        write(copy, named("last_words"), {"channel.run_work": other}, stage=2)
        done = self.check(copy, "last_words")
        assert "has been changed there, by you, and stays as it is" in done.stdout
        assert functions.cut(file_of(copy, 2, "channel").read_text(), "run_work") == other

    def test_a_reader_may_begin_at_stage_4(self, copy: Path) -> None:
        done = run_companion("start", "4", root=copy)
        assert "first: quoting" in done.stdout
        assert "next: python -m exercises check quoting" in normalise(
            run_companion(root=copy).stdout, copy
        )
        source = file_of(copy, 4, "channel").read_text()
        assert functions.cut(source, "run_work") == catalogue.own(4, "channel.run_work")
        self.solve(copy, "quoting")
        assert self.check(copy, "quoting", "--quick").returncode == 0
        assert not (copy / "my_miniray" / snapshots.NAMES[0]).exists()

    def test_it_works_from_any_directory(self, copy: Path, tmp_path: Path) -> None:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        done = subprocess.run(
            [sys.executable, str(copy / "exercises"), "start"],
            cwd=elsewhere,
            env={**os.environ, "PYTHONPATH": ""},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert file_of(copy, 1, "wire").exists()
        assert f"{copy / 'exercises'} check framing" in done.stdout


@pytest.mark.slow
def test_all_of_it_from_start_to_train(copy: Path) -> None:
    """What the stages' own functions pass when they are cut out, and put in by hand."""
    stages = range(1, len(snapshots.NAMES) + 1)
    for stage in stages:
        assert run_companion("start", str(stage), root=copy).returncode == 0
        for exercise in (one for one in EXERCISES if one.stage == stage):
            write(copy, exercise, solution_of(exercise))
        here = [one for one in EXERCISES if one.stage == stage and not one.is_side]
        for exercise in EXERCISES:
            if exercise.stage == stage:
                whole = exercise is here[-1] and stage < 5  # its tests take a minute
                tests = [] if whole else ["--quick"]
                done = run_companion("check", exercise.name, *tests, root=copy, timeout=60)
                assert done.returncode == 0, done.stdout
                assert (f"stage {stage} runs on your code now" in done.stdout) >= whole
                put_on_record(copy, exercise)
        if stage < 5:  # its training follows
            shown = run_companion("demo", str(stage), root=copy, timeout=60)
            assert shown.returncode == 0, shown.stderr
            assert f"stage {stage}, on your code" in shown.stdout
    done = run_companion("train", "--steps", "4", "--name", "Ada & co", root=copy, timeout=90)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the same training" in done.stdout
    yours = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("  yours")]
    assert {
        *("channel.Channel._recv_frame", "auth._prove", "worker_server.keep_node"),
        *("nccl.memory_bytes", "nccl.create_nccl_configs"),
    } <= {*yours}
    picture = (copy / "my_miniray" / "certificate.svg").read_text()
    ElementTree.fromstring(picture)
    assert "Ada &amp; co" in picture
    for name in yours:
        assert f"\u2713 {name}" in picture


@pytest.mark.thorough
def test_a_newcomers_session_goes_as_it_went(copy: Path) -> None:
    """From broken first attempts to three solved exercises, by what the companion says."""
    session = tomllib.loads((NEWCOMER / "session.toml").read_text())
    said = ["# A newcomer's session\n"]
    passed = set()
    for number, attempt in enumerate(session["attempt"], 1):
        name = attempt["exercise"]
        run_companion("start", str(named(name).stage), root=copy)
        write(copy, named(name), named(name).named(attempt["yours"]))
        done = run_companion("check", name, root=copy)
        if done.returncode == 0:
            passed.add(name)
        said += [
            f"## {number}. {name}\n",
            f"{attempt['thinks']}\n",
            f"```py\n{attempt['yours']}```\n",
            f"```text\n$ python -m exercises check {name}\n{done.stdout}```\n",
        ]
    assert passed == {"framing", "who_closes_what", "quoting"}
    transcript = NEWCOMER / "transcript.md"
    text = normalise("\n".join(said), copy)
    if os.environ.get("UPDATE_GOLDEN"):
        transcript.write_text(text)
    assert text == transcript.read_text()


def owner(name: str, *, mine: bool, written: bool) -> train.Owner:
    fate = "dropped in stage 2" if written else ""
    return train.Owner("framing", f"wire.{name}", mine, written, fate, "")


def test_the_certificate_counts_what_was_written_and_what_of_that_ran() -> None:
    run = report.Run(losses=[1.0], alone=[1.0], held=[1])
    found = [
        owner("ran", mine=True, written=False),
        owner("gone", mine=False, written=True),
        owner("open", mine=False, written=False),
    ]
    picture = train.certificate(run, found, "Ada")
    assert "2 functions were written by hand, 1 of them ran here" in picture
    assert re.search("wire.gone <[^>]*>dropped in stage 2<", picture)
    assert "all of them ran" in train.certificate(run, found[:1], "Ada")
    assert "no function was written by hand" in train.certificate(run, found[2:], "Ada")


def test_what_became_of_a_function_is_what_the_stages_have() -> None:
    fates = {
        function: train.fate_of(function, one.stage)
        for one in EXERCISES
        for function in one.functions
    }
    assert fates["wire.decode_prelude"] == "dropped in stage 2"
    assert fates["wire.encode"] == "changed in stage 2"
    assert fates["channel.run_work"] == "not brought along, or changed by you"


def test_a_test_that_could_not_run_is_told(tmp_path: Path) -> None:
    package = tmp_path / "half"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "test_it.py").write_text(
        "import unittest\n\n\nclass TestIt(unittest.TestCase):\n"
        "    def test_one(self):\n        pass\n\n"
        "    @unittest.skip('torch is not installed')\n    def test_two(self):\n        pass\n"
    )
    ran = trial.run_tests(mine.Bench(tmp_path, "half", package), lambda count: None)
    assert (ran.count, ran.failures, ran.skipped) == (2, [], ["torch is not installed"])
    said = report.success(named("shards"), [], ran, [], None)
    assert "; 1 of them skipped: torch is not installed" in said


def test_a_record_that_cannot_be_read_is_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "FOLDER", tmp_path)
    (tmp_path / ".progress.json").write_text("{")
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
