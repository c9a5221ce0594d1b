"""Find the exercises, and make each one's starter from its solution."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent
BEGIN, END = "# begin yours", "# end yours"


@dataclass(frozen=True)
class WrongAnswer:
    """A mistake that people really make, and what to say about it."""

    name: str
    check: str
    outcome: str
    happened: str
    misconception: str
    symptom: str
    hint: str


@dataclass(frozen=True)
class Exercise:
    """One exercise: its folder holds everything there is to it."""

    name: str
    stage: int
    order: int
    title: str
    task: str
    folder: Path
    wrong_answers: tuple[WrongAnswer, ...]

    @property
    def answer(self) -> Path:
        """The file that the reader edits."""
        return self.folder / "answer.py"

    @property
    def solution(self) -> str:
        return (self.folder / "solution.py").read_text()

    @property
    def hints(self) -> list[str]:
        """Three, each telling more than the one before."""
        return [
            part.partition("\n")[2].strip()
            for part in re.split(r"(?m)^## ", (self.folder / "hints.md").read_text())[1:]
        ]

    def is_started(self) -> bool:
        """Return whether the reader's file is more than the starter."""
        starter = make_starter(self.solution).encode()
        return self.answer.exists() and self.answer.read_bytes() != starter


def load(root: Path = ROOT) -> list[Exercise]:
    """Return all exercises, in the order in which to do them."""
    exercises = [_load(file) for file in root.glob("stage*/*/exercise.toml")]
    return sorted(exercises, key=lambda one: (one.stage, one.order))


def _load(file: Path) -> Exercise:
    fields: dict[str, Any] = tomllib.loads(file.read_text())
    wrong_answers = tuple(
        WrongAnswer(
            name=one["name"],
            check=one["check"],
            outcome=one.get("outcome", "wrong"),
            happened=one.get("happened", ""),
            misconception=one["misconception"],
            symptom=one["symptom"],
            hint=one["hint"].strip(),
        )
        for one in fields["wrong"]
    )
    return Exercise(
        name=file.parent.name,
        stage=int(file.parent.parent.name.removeprefix("stage")),
        order=fields["order"],
        title=fields["title"],
        task=fields["task"].strip(),
        folder=file.parent,
        wrong_answers=wrong_answers,
    )


def make_starter(solution: str) -> str:
    """Return a solution without what stands between its marks, which stay."""
    lines, ours = [], True
    for line in solution.splitlines(keepends=True):
        if line.strip().startswith(END):
            ours = True
        if ours:
            lines.append(line)
        if line.strip().startswith(BEGIN):
            ours = False
    return "".join(lines)


def apply_patch(text: str, patch: str) -> str:
    """Return a text changed as a unified diff says; raise ValueError where it does not fit."""
    lines, changed, at = text.splitlines(), [], 0
    for hunk in re.split(r"(?m)^@@ ", patch)[1:]:
        head, _, body = hunk.partition("\n")
        match = re.match(r"-(\d+)", head)
        if match is None:
            raise ValueError(f"no hunk: {head}")
        start = max(int(match[1]) - 1, 0)
        changed += lines[at:start]
        at = start
        for line in body.splitlines():
            if line[:1] in ("-", " ", ""):
                if at >= len(lines) or lines[at] != line[1:]:
                    raise ValueError(f"the patch does not fit at line {at + 1}: {line}")
                at += 1
            if line[:1] in ("+", " ", ""):
                changed.append(line[1:])
    return "\n".join([*changed, *lines[at:]]) + "\n"
