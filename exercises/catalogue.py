"""Find the exercises. Most of them *are* functions of a stage: its own text is the solution."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exercises import functions
from stages import snapshots

ROOT = Path(__file__).resolve().parent
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
    """One exercise: its folder holds everything there is to it, but for the stage's functions.

    `functions` are the names of those that the reader writes, such as "process.Process.stop". A
    side exercise has none: its folder has a solution.py, of which the starter is made.
    """

    name: str
    stage: int
    order: int
    title: str
    task: str
    why: str
    minutes: int
    folder: Path
    functions: tuple[str, ...]
    remarks: dict[str, str]
    wrong_answers: tuple[WrongAnswer, ...]

    @property
    def is_side(self) -> bool:
        """Whether no stage has a function of this kind."""
        return not self.functions

    @property
    def solution(self) -> str:
        """Ours: the stage's functions, or the file of a side exercise."""
        if self.is_side:
            return (self.folder / "solution.py").read_text()
        return self._show({name: own(self.stage, name) for name in self.functions})

    @property
    def starter(self) -> str:
        """What the reader begins with."""
        if self.is_side:
            return make_starter(self.solution)
        return self._show({name: self.opened(name) for name in self.functions})

    def _show(self, texts: dict[str, str]) -> str:
        """Return functions as one text, each with where it stands."""
        return "\n\n".join(f"# {where(name)}\n{text}" for name, text in texts.items())

    def opened(self, function: str) -> str:
        """Return a function of the stage as the reader gets it."""
        error = f"{function.partition('.')[2]} is yours to write: {self.name}"
        return functions.open_up(
            own(self.stage, function), self.remarks.get(function, "Yours."), error
        )

    @property
    def hints(self) -> list[str]:
        """Three, each telling more than the one before."""
        return [
            part.partition("\n")[2].strip()
            for part in re.split(r"(?m)^## ", (self.folder / "hints.md").read_text())[1:]
        ]

    def mistaken(self, wrong: str) -> dict[str, str]:
        """Return the text of each function, by its name, with a mistake of the catalogue.

        A side exercise has one text, under the name "".
        """
        if self.is_side:
            patch = (self.folder / "mutants" / f"{wrong}.patch").read_text()
            return {"": apply_patch(self.solution, patch)}
        return self.named((self.folder / "mutants" / f"{wrong}.py").read_text())

    def named(self, text: str) -> dict[str, str]:
        """Return functions written one below the other, by the names that the exercise has."""
        full = {name.rpartition(".")[2]: name for name in self.functions}
        return {full[name]: one for name, one in functions.by_name(text).items()}


def where(function: str) -> str:
    """Return what a person calls a function: the file, and the name in it."""
    module, _, name = function.partition(".")
    return f"{module}.py: {name}"


def own(stage: int, function: str) -> str:
    """Return the stage's own text of a function; raise LookupError if it has none."""
    module, _, name = function.partition(".")
    return functions.cut(source(stage, module), name)


def has(stage: int, function: str) -> bool:
    """Return whether a stage has a function of this name."""
    module, _, name = function.partition(".")
    file = folder_of(stage) / f"{module}.py"
    return file.exists() and functions.find(file.read_text(), name) is not None


def source(stage: int, module: str) -> str:
    """Return the text of a stage's module."""
    return (folder_of(stage) / f"{module}.py").read_text()


def folder_of(stage: int) -> Path:
    """Return where a stage lies."""
    return ROOT.parent / "stages" / snapshots.NAMES[stage - 1]


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
        why=fields.get("why", "").strip(),
        minutes=fields.get("minutes", 15),
        folder=file.parent,
        functions=tuple(fields.get("functions", ())),
        remarks=fields.get("remarks", {}),
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
