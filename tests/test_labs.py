"""Every lab runs, and finds what it says; the list of labs; a name that there is not."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from exercises.labs import NAMES
from exercises.labs.lab import Lab, Record, perform
from tools import count_lines

REPOSITORY = count_lines.REPOSITORY
PARTS = ("Prediction", "Run", "What was left", "Why")
SLOW = ("dead-rank", "cut-link", "orphan")
LIMIT_S = 60


def lab(*arguments: str, key_file: Path) -> subprocess.CompletedProcess[str]:
    """Run the companion's command, with output to a pipe and nobody to ask."""
    return subprocess.run(
        [sys.executable, "-m", "exercises", "lab", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "MINIRAY_KEY_FILE": str(key_file)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name",
    [pytest.param(one, marks=pytest.mark.slow if one in SLOW else ()) for one in NAMES],
)
def test_a_lab_finds_what_it_says(name: str, key_file: Path) -> None:
    if name == "dead-rank" and not importlib.util.find_spec("torch"):
        pytest.skip("torch is not installed")
    key = key_file.read_text()
    done = lab(name, "--yes", key_file=key_file)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if line in PARTS] == list(PARTS)
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert max(map(len, lines)) <= 100
    assert key_file.read_text() == key


def test_without_a_name_they_are_listed_with_the_command(key_file: Path) -> None:
    done = lab(key_file=key_file)
    assert done.returncode == 0, done.stderr
    for name in NAMES:
        assert sum(line.split()[:1] == [name] for line in done.stdout.splitlines()) == 1
    assert " -m exercises lab " in done.stdout


def test_a_name_that_there_is_not_gets_the_closest(key_file: Path) -> None:
    done = lab("kill-workers", "--yes", key_file=key_file)
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean kill-worker?" in done.stderr


def test_a_prediction_is_read_and_compared() -> None:
    script = "import sys; from exercises import labs; sys.exit(labs.main('half-frame', ask=True))"
    words_by_answer = {
        "c\n": "You predicted what happened, c: ",
        "b\n": "You predicted b. ",
        "z\nB\n": "one of a, b, c, d, or Enter for none\n  your prediction: \nRun\n",
        "\n": "The right prediction is c: ",
    }
    for given, words in words_by_answer.items():
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=REPOSITORY,
            input=given,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert words in done.stdout


def claim_too_much(record: Record) -> None:
    record.left("a number", "2", claim=False, expected="1")


def break_off(record: Record) -> None:
    raise TimeoutError("nobody came")


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (claim_too_much, "a number: expected 1, found 2"),
        (break_off, "the run ended early, with TimeoutError: nobody came"),
    ],
)
def test_what_is_not_as_the_lab_says_is_told(
    run: Callable[[Record], None], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = Lab("a title", 1, "What?", ("this", "that"), 0, run, "Because.")
    assert perform(lab, "a-lab", ask=False) == 1
    assert f"Differs here: {words}" in capsys.readouterr().out


def test_a_lab_that_lacks_something_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    lab = Lab("a title", 1, "What?", ("this", "that"), 0, break_off, "Because.", lambda: "no torch")
    assert perform(lab, "a-lab", ask=False) == 2
    assert capsys.readouterr() == ("", "a-lab: no torch\n")
