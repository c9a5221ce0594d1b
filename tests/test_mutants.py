"""The tool that tests the tests: which mutants it makes, and that it tells killed from alive."""

import ast
import dataclasses
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.support import poll
from tools.count_lines import REPOSITORY
from tools.mutants.__main__ import Laboratory, Plan, make_all, read_core, sample
from tools.mutants.edits import make_mutants
from tools.mutants.reach import Reach, places_of

ALONE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "true"]
TOY = """\
def is_adult(age):
    return age >= 18


def shout(text):
    for _ in range(3):
        pass
    return text.upper()
"""
TEST_OF_TOY = """\
import subprocess
import toy

def test_toy():
    subprocess.Popen(["sleep", "{seconds}"], start_new_session=True)
    assert toy.is_adult(18)
    assert toy.shout("a") == "A"
"""


def changes(source: str) -> set[str]:
    """Return the changed lines of every mutant of a source."""
    return {
        line.strip()
        for mutant in make_mutants("toy.py", source)
        for line in set(mutant.after.splitlines()) - set(mutant.before.splitlines())
    }


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a < b", {"a <= b", "a >= b"}),
        ("a is None", {"a is not None"}),
        ("a and b", {"a or b"}),
        ("x = not a", {"x = (a)"}),
        ("x = a + b", {"x = a - b"}),
        ("x -= a", {"x += a"}),
        ("x = [5]", {"x = [6]", "x = [4]"}),
        ("x = [True]", {"x = [False]"}),
        ("LIMIT = 4 * 1024", {"LIMIT = 100 * (4 * 1024)"}),
        ("call(a)", {"pass"}),
        ("x = call(a, b=c)", {"x = call(a)"}),
        ("assert a < 3, 4", set()),
        ("x: int | None = None", set()),
        ('raise ValueError(f"{a + 1} is too much")', {"pass"}),
    ],
)
def test_a_line_has_these_mutants(line: str, expected: set[str]) -> None:
    assert changes(f"{line}\n") == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return a < b", {"return a <= b", "return a >= b", "return True", "return False"}),
        ("return a.b", {"return None"}),
        ("if a: b", {"if not (a): b"}),
        ("with self.lock: b", {"if True: b"}),
        ("with suppress(OSError): b", {"if True: b"}),
        ("with open(a): b", set()),
        ("while a: break", {"while not (a): break", "while a: continue"}),
    ],
)
def test_a_functions_body_has_these_mutants(body: str, expected: set[str]) -> None:
    assert changes(f"def function(self):\n    {body}\n") == expected


def test_a_handler_and_what_comes_finally_can_go() -> None:
    source = "try:\n    a\nexcept OSError:\n    b = c\nfinally:\n    d = e\n"
    assert changes(source) == {"raise", "pass"}


def test_a_default_can_change() -> None:
    assert changes("def function(a=STOP_S, *, b=None): c\n") == {
        "def function(a=None, *, b=None): c"
    }


@pytest.mark.slow
def test_every_mutant_of_the_core_is_python_and_knows_its_place() -> None:
    mutants = make_all()
    for mutant in mutants:
        compile(mutant.after, mutant.file, "exec")
        assert mutant.after != mutant.before
        assert mutant.old_line in str(mutant)
    assert len(mutants) > 1000


def test_a_sample_is_spread_over_functions_and_drawn_by_its_seed() -> None:
    mutants = make_all()
    functions = {(mutant.file, mutant.function) for mutant in mutants}
    drawn = sample(mutants, len(functions), seed=7)
    assert {(mutant.file, mutant.function) for mutant in drawn} == functions
    assert drawn == sample(mutants, len(functions), seed=7) != sample(mutants, 300, seed=8)


def test_the_list_names_what_is_there() -> None:
    plan = Plan()
    missing = [test for test in plan.tests if not (REPOSITORY / test).exists()]
    assert not missing, "bring tests/mutants.toml up to date"
    for mutant in plan.make_named():
        compile(mutant.after, mutant.file, "exec")
    for one in plan.survivors:
        assert one["line"] in (REPOSITORY / one["file"]).read_text()
        assert one["why"]


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    if subprocess.run(ALONE, capture_output=True).returncode != 0:
        pytest.skip("no process namespaces here")
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    (tmp_path / "toy.py").write_text(TOY)
    return tmp_path


@pytest.mark.slow
def test_a_covered_mutant_is_killed_an_equivalent_one_lives_and_nothing_is_left(toy: Path) -> None:
    seconds = str(1000 + time.monotonic())  # by which its processes are told from all others
    (toy / "test_toy.py").write_text(TEST_OF_TOY.replace("{seconds}", seconds))
    with Laboratory(1, repository=toy) as laboratory:
        deaths = {
            line: laboratory.how_it_died(mutant, ["test_toy.py"])
            for mutant in make_mutants("toy.py", TOY)
            for line in ("return age > 18", "return None", "for _ in range(4):")
            if line in mutant.after
        }
    assert deaths["for _ in range(4):"] is None
    assert "test_toy" in str(deaths["return age > 18"])
    assert "test_toy" in str(deaths["return None"])
    assert (toy / "toy.py").read_text() == TOY

    def left() -> list[psutil.Process]:
        everything = psutil.process_iter(["cmdline"])
        return [one for one in everything if seconds in (one.info["cmdline"] or ())]

    poll.until(lambda: not left(), what="the end of what the test started")


@pytest.mark.slow
def test_a_mutant_that_hangs_is_killed(toy: Path) -> None:
    (toy / "test_toy.py").write_text("import signal\ndef test_toy():\n    signal.pause()\n")
    mutant = make_mutants("toy.py", TOY)[0]
    with Laboratory(1, repository=toy, deadline_s=2) as laboratory:
        assert laboratory.how_it_died(mutant, ["test_toy.py"]) == "hung for 2s"


def test_tests_that_do_not_run_are_no_death(toy: Path) -> None:
    (toy / "test_toy.py").touch()
    mutant = make_mutants("toy.py", TOY)[0]
    with Laboratory(1, repository=toy) as laboratory:
        with pytest.raises(RuntimeError, match="no test ran"):
            laboratory.how_it_died(mutant, ["test_toy.py::test_gone"])


BRANCHES = """\
LIMIT = 3
USED_OUTSIDE = 4
ALSO = USED_OUTSIDE


def outer(a=LIMIT):
    \"""Say what.\"""
    if a:
        return [
            LIMIT,
        ]
    elif a is None:
        return a

    def inner(b=5):
        return b
"""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (6, ["toy.py:8"]),  # a default is used inside
        (7, ["toy.py:8"]),  # a mutant by hand may begin where the docstring does
        (8, ["toy.py:8"]),
        (10, ["toy.py:9"]),
        (12, ["toy.py:12"]),
        (13, ["toy.py:13"]),
        (15, ["toy.py:16"]),
        (16, ["toy.py:16"]),
        (1, ["toy.py:8", "toy.py:9", "other.py:2"]),  # where the constant is named
        (2, None),  # who knows who needs ALSO
    ],
)
def test_a_line_matters_where_it_is_executed(line: int, expected: list[str] | None) -> None:
    other = "def more(toy):\n    return toy.LIMIT\n"
    modules = {"toy.py": ast.parse(BRANCHES), "other.py": ast.parse(other)}
    places = places_of("toy.py", line, modules)
    assert places == expected or sorted(places) == sorted(expected)


def test_the_quickest_of_the_tests_that_execute_a_place_come_first() -> None:
    seconds = {"a": 3.0, "b": 2.0, "c": 1.0}
    reach = Reach(seconds, {"toy.py:1": ["a"], "toy.py:2": ["a", "b"]}, failed=[])
    assert reach.tests_for(["toy.py:1", "toy.py:2"]) == ["b", "a"]
    assert reach.tests_for(["toy.py:3"]) == []
    assert reach.tests_for(None, seconds=3.5) == ["c", "b"]
    assert dataclasses.replace(reach, failed=["c"]).tests_for(["toy.py:1"]) == ["c", "a"]
    assert reach.tests_for(None) == ["c", "b", "a"]


TEST_OF_BRANCHES = """\
import os, subprocess, sys
import toy

def test_here():
    assert toy.is_adult(18)

def test_in_what_is_forked():
    if (child := os.fork()) == 0:
        toy.shout("a")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0

def test_in_a_python_that_is_sent_the_source():
    code = open(toy.__file__).read() + "\\nshout('a')"
    subprocess.run([sys.executable, "-IS", "-c", code], env={}, cwd="/", check=True)

def test_nothing():
    pass
"""


@pytest.mark.slow
def test_what_a_tests_processes_execute_is_known(toy: Path) -> None:
    (toy / "test_toy.py").write_text(TEST_OF_BRANCHES)
    with Laboratory(1, repository=toy) as laboratory:
        reach = laboratory.find_reach(["test_toy.py"], ["toy.py"])
    assert len(reach.seconds) == 4
    assert reach.executed["toy.py:2"] == ["test_toy.py::test_here"]
    elsewhere = ["test_in_a_python_that_is_sent_the_source", "test_in_what_is_forked"]
    assert reach.executed["toy.py:8"] == [f"test_toy.py::{name}" for name in elsewhere]


@pytest.mark.slow
def test_what_fails_without_a_mutant_is_found_before(toy: Path) -> None:
    (toy / "test_toy.py").write_text("def test_toy():\n    assert False\n")
    with Laboratory(1, repository=toy) as laboratory:
        with pytest.raises(RuntimeError, match="without any mutant: FAILED test_toy"):
            laboratory.find_reach(["test_toy.py"], ["toy.py"])


@pytest.mark.slow
def test_what_a_test_executes_on_a_node_is_known() -> None:
    test = "tests/test_cluster.py::test_env_and_workdir_are_the_nodes"
    with Laboratory(1) as laboratory:
        reach = laboratory.find_reach([test], read_core())
    files = {place.partition(":")[0] for place in reach.executed}
    assert {"miniray/bootstrap.py", "miniray/node_server.py", "miniray/child.py"} <= files
