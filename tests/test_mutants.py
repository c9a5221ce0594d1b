"""The tool that tests the tests: which mutants it makes, and that it tells killed from alive."""

import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.support import poll
from tools.count_lines import REPOSITORY
from tools.mutants.__main__ import Laboratory, Plan, make_all, sample
from tools.mutants.edits import make_mutants

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
    tests = {test for group in plan.tests.values() for test in group}
    tests |= {test for one in plan.named for test in one.get("tests", ())}
    missing = [test for test in tests if not (REPOSITORY / test.partition("::")[0]).exists()]
    assert not missing, "bring tests/mutants.toml up to date"
    for mutant, steps in plan.make_named():
        compile(mutant.after, mutant.file, "exec")
        assert any(steps)
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
            line: laboratory.how_it_died(mutant, [["test_toy.py"]])
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
        assert laboratory.how_it_died(mutant, [["test_toy.py"]]) == "hung for 2s"


def test_tests_that_do_not_run_are_no_death(toy: Path) -> None:
    mutant = make_mutants("toy.py", TOY)[0]
    with Laboratory(1, repository=toy) as laboratory:
        with pytest.raises(RuntimeError, match="no test ran"):
            laboratory.how_it_died(mutant, [["test_gone.py"]])
