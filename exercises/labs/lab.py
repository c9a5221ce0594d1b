"""What every lab is made of: a question, lines that say what happened when, and what was left."""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from exercises.checking import children
from exercises.report import paint, wrap

AS_SAID, DIFFERS, SET_UP = 0, 1, 2
LETTERS = "abcd"


class Record:
    """What happens in a run, and what it leaves.

    `say` prints a line with the seconds since the run began. `left` notes a measurement, whether
    it is as the lab says, and what it should be.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._lines = 0
        self.rows: list[tuple[str, str]] = []
        self.differences: list[str] = []

    def say(self, text: str) -> None:
        self._lines += 1
        head = f"  {self._lines:2}. {self.seconds():6.3f} s  "
        print(head + wrap(text, " " * len(head)).lstrip(), flush=True)

    def seconds(self) -> float:
        return time.monotonic() - self._began

    def left(self, what: str, found: str, *, claim: bool, expected: str) -> None:
        self.rows.append((what, found))
        if not claim:
            self.differences.append(f"{what}: expected {expected}, found {found}")


@dataclass(frozen=True)
class Lab:
    """One lab. `right` is the index of the answer that `run` shows to be right.

    `missing`, if there is one, returns what this machine lacks, or None.
    """

    title: str
    stage: int
    question: str
    answers: tuple[str, ...]
    right: int
    run: Callable[[Record], None]
    why: str
    missing: Callable[[], str | None] = lambda: None


def perform(lab: Lab, name: str, *, ask: bool) -> int:
    """Ask, run, measure and explain; return 0 if all is as the lab says, 1 if not, 2 for needs."""
    if lack := lab.missing():
        print(f"{name}: {lack}", file=sys.stderr)
        return SET_UP
    print(paint(f"{name}: {lab.title} (stage {lab.stage})", "bold"))
    given = _predict(lab, ask=ask)
    print(_head("Run"), flush=True)
    record, descriptors = Record(), _count_descriptors()
    try:
        lab.run(record)
    except BrokenPipeError:  # whoever read our lines has left
        raise
    except Exception as error:
        record.differences.append(f"the run ended early, with {type(error).__name__}: {error}")
    _measure_ourselves(record, descriptors)
    print(_head("What was left"))
    width = max(len(what) for what, _ in record.rows) + 4
    for what, found in record.rows:
        print(f"  {paint(what.ljust(width - 2), 'bold')}{wrap(found, ' ' * width).lstrip()}")
    print(_head("Why"))
    print(wrap(lab.why, "  "))
    print("\n" + wrap(_compare(lab, given), "  "))
    for difference in record.differences:
        print("\n" + wrap(f"Differs here: {difference}", "  "))
    return DIFFERS if record.differences else AS_SAID


def _head(text: str) -> str:
    return "\n" + paint(text, "bold") + "\n"


def _predict(lab: Lab, *, ask: bool) -> str:
    """Print the question and the answers; return the letter that the reader gave, if asked."""
    print(_head("Prediction") + "\n" + wrap(lab.question, "  ") + "\n")
    for letter, answer in zip(LETTERS, lab.answers, strict=False):
        print(f"    {letter}  {wrap(answer, ' ' * 7).lstrip()}")
    if not ask:
        print("\n  not asked: --yes, or no terminal")
        return ""
    letters = LETTERS[: len(lab.answers)]
    print()
    while True:
        print("  your prediction: ", end="", flush=True)
        line = sys.stdin.readline()
        given = line.strip().lower()
        if not line or given[:1] in (*letters, ""):  # who only presses Enter has none
            return given[:1]
        print(f"  one of {', '.join(letters)}, or Enter for none")


def _compare(lab: Lab, given: str) -> str:
    """Say what the right prediction was, beside the one that was given."""
    right = f"{LETTERS[lab.right]}: {lab.answers[lab.right]}"
    if not given:
        return f"The right prediction is {right}"
    if given == LETTERS[lab.right]:
        return f"You predicted what happened, {right}"
    return f"You predicted {given}. What happened is {right}"


def _count_descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) - 1  # one of them lists the directory


def _measure_ourselves(record: Record, before: int) -> None:
    """Note whether this process has children or descriptors that it had not before the run."""
    pids, now = children(), _count_descriptors()
    found = ", ".join(map(str, pids)) or "none, and no zombies"
    record.left("our children", found, claim=not pids, expected="none")
    found = f"{now}, as before" if now == before else f"{now}, and {before} before"
    record.left("our descriptors", found, claim=now == before, expected=str(before))


def state_of(pid: int) -> str:
    """Return what the kernel says of a process: running, asleep, a zombie or gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            letter = file.read().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"
    return {"R": "running", "S": "asleep", "Z": "a zombie"}.get(letter, f"in state {letter}")


def ms(seconds: float) -> str:
    """Return a time in words."""
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
