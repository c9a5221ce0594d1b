"""The reader's own MiniRay: my_miniray/, a copy of each stage with the exercises' functions open.

Nothing here overwrites what the reader has written. A function that is passed goes along into the
later stages by itself, wherever the stage's own is still the same there.
"""

import contextlib
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from exercises import catalogue, functions
from exercises.catalogue import Exercise
from exercises.progress import FOLDER, Progress
from stages import snapshots

SIDE = FOLDER / "side"
README = """\
This is your own MiniRay. Git ignores it, so it is yours to change, to keep and to throw away.

Each folder is a stage of the course, complete but for the functions that are yours to write: they
raise NotImplementedError, and say so. In the folder above this one:

    python -m exercises            where you are, and what is next
    python -m exercises check      check the next one
    python -m exercises demo 1     stage 1's demo, on your code
    python -m exercises train      in the end: eight ranks, on your code

A stage runs alone, too, once nothing in it is open. In this folder:

    python -m stage1_uds_worker.demo
    python -m unittest discover -s stage1_uds_worker -t .
"""


def folder_of(stage: int) -> Path:
    """Return where the reader's copy of a stage lies, or will lie."""
    return FOLDER / snapshots.NAMES[stage - 1]


def is_there(stage: int) -> bool:
    """Return whether the reader has a copy of a stage."""
    return folder_of(stage).is_dir()


def files_of(exercise: Exercise) -> list[Path]:
    """Return the files in which the reader writes."""
    if exercise.is_side:
        return [SIDE / f"{exercise.name}.py"]
    modules = dict.fromkeys(name.partition(".")[0] for name in exercise.functions)
    return [folder_of(exercise.stage) / f"{module}.py" for module in modules]


def text_of(stage: int, function: str) -> str | None:
    """Return the reader's text of a function; None if it is not there, or cannot be read."""
    module, _, name = function.partition(".")
    with contextlib.suppress(OSError, SyntaxError, ValueError, LookupError):
        return functions.cut((folder_of(stage) / f"{module}.py").read_text(), name)
    return None


def unreadable(stage: int) -> str:
    """Return which of the reader's files Python cannot read, and where; "" if it can."""
    for file in sorted(folder_of(stage).glob("*.py")):
        try:
            compile(file.read_bytes(), file, "exec")
        except (SyntaxError, ValueError) as error:
            line = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
            return f"{folder_of(stage).name}/{file.name}{line}, {error.__class__.__name__}: {error}"
    return ""


def is_started(exercise: Exercise) -> bool:
    """Return whether the reader has written something, or made the file unreadable."""
    if exercise.is_side:
        (file,) = files_of(exercise)
        return file.exists() and file.read_bytes() != exercise.starter.encode()
    if not is_there(exercise.stage):
        return False
    texts = [text_of(exercise.stage, name) for name in exercise.functions]
    return not all(text is not None and functions.is_open(text) for text in texts)


def prepare(stage: int, progress: Progress) -> list[str]:
    """Make what is missing of the reader's copy of a stage; return what there is to say of it."""
    said = []
    FOLDER.mkdir(parents=True, exist_ok=True)
    if not (FOLDER / "README.md").exists():
        (FOLDER / "README.md").write_text(README)
    fresh = not is_there(stage)
    exercises = catalogue.load()
    for file in sorted(catalogue.folder_of(stage).iterdir()):
        target = folder_of(stage) / file.name
        if not file.is_file() or target.exists():
            continue
        target.parent.mkdir(exist_ok=True)
        text = file.read_text()
        if file.suffix == ".py":
            text, _ = functions.replace(text, _openings(exercises, stage, file.stem))
        target.write_text(text)
        if not fresh:
            said.append(f"{file.name} was missing in {folder_of(stage).name}, and is there again")
    for exercise in exercises:
        if exercise.is_side and exercise.stage == stage and not files_of(exercise)[0].exists():
            SIDE.mkdir(exist_ok=True)
            files_of(exercise)[0].write_text(exercise.starter)
    if fresh:
        for exercise in exercises:
            if exercise.stage < stage and exercise.name in progress.passed:
                said += carry(exercise, stage, progress)
    return said


def _openings(exercises: list[Exercise], stage: int, module: str) -> dict[str, str]:
    """Return the open functions of a stage's module, by their names in it."""
    return {
        name.partition(".")[2]: exercise.opened(name)
        for exercise in exercises
        for name in exercise.functions
        if exercise.stage == stage and name.partition(".")[0] == module
    }


def carry_on(exercise: Exercise, progress: Progress) -> list[str]:
    """Take what the reader wrote into all later stages that are there; say what became of it."""
    said = []
    for stage in range(exercise.stage + 1, len(snapshots.NAMES) + 1):
        if is_there(stage):
            said += carry(exercise, stage, progress)
    return said


def carry(exercise: Exercise, stage: int, progress: Progress) -> list[str]:
    """Take a passed exercise's functions into the reader's copy of a later stage."""
    said = []
    for function in exercise.functions:
        words = f"stage {stage}: {catalogue.where(function)}"
        mine = text_of(exercise.stage, function)
        if mine is None or not catalogue.has(stage, function):
            continue  # the stage does without it
        if catalogue.own(stage, function) != catalogue.own(exercise.stage, function):
            said.append(f"{words} has changed since yours; this stage's own stands there")
            continue
        there = text_of(stage, function)
        key = f"{stage}/{function}"
        before = (catalogue.own(stage, function), progress.carried.get(key))
        if there == mine:
            said += [] if key in progress.carried else [f"{words} is yours"]
        elif there is None or (there not in before and not functions.is_open(there)):
            said.append(f"{words} has been changed there, by you, and stays as it is")
            continue
        else:
            _put(exercise.stage, stage, function, mine)
            said.append(f"{words} is yours")
        progress.carried[key] = mine
    return said


def _put(before: int, stage: int, function: str, text: str) -> None:
    """Put a function of one copy into another, with the helpers and imports that it needs."""
    module, _, name = function.partition(".")
    source = (folder_of(before) / f"{module}.py").read_text()
    target = folder_of(stage) / f"{module}.py"
    there = target.read_text()
    known = functions.all_names_bound(catalogue.source(before, module))
    known |= functions.all_names_bound(there)
    new, _ = functions.replace(there, {name: text})
    more = functions.companions(source, name, known)
    _write(target, functions.add_statements(new, more) if more else new)


def reset(exercise: Exercise) -> list[Path]:
    """Put the starter back; return where the reader's files are kept."""
    kept = []
    for file in files_of(exercise):
        if file.exists():
            folder = FOLDER / "kept"
            folder.mkdir(exist_ok=True)
            stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 1_000_000_000:09}"
            copy = folder / f"{exercise.name}.{file.stem}.{stamp}.py"
            shutil.copy(file, copy)
            kept.append(copy)
    if exercise.is_side:
        SIDE.mkdir(parents=True, exist_ok=True)
        _write(files_of(exercise)[0], exercise.starter)
        return kept
    for file in files_of(exercise):
        openings = _openings([exercise], exercise.stage, file.stem)
        own = catalogue.source(exercise.stage, file.stem)
        everything, _ = functions.replace(
            own, _openings(catalogue.load(), exercise.stage, file.stem)
        )
        try:
            text = file.read_text()
            lost = any(functions.find(text, name) is None for name in openings)
        except (OSError, SyntaxError, ValueError):  # nothing of it can be kept in its place
            lost = True
        _write(file, everything if lost else functions.replace(text, openings)[0])
    return kept


def _write(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    draft = file.with_name(f".{file.name}.new")
    draft.write_text(text)
    draft.replace(file)


def is_mine(exercise: Exercise, function: str, stage: int, progress: Progress) -> bool:
    """Return whether a function in the copy of a stage is the reader's, and passed."""
    text = text_of(stage, function)
    if exercise.name not in progress.passed or text is None or functions.is_open(text):
        return False
    return stage == exercise.stage or text == progress.carried.get(f"{stage}/{function}")


@dataclass
class Bench:
    """A copy to run: the reader's text, and the stage's own where the reader's is not to count."""

    root: Path  # what to put into Python's path
    package: str  # "" for a side exercise
    own: Path  # where the reader's files lie, of which these are copies
    # By the name of a file: the reader's line numbers.
    lines: dict[str, list[int]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where the files lie."""
        return self.root / self.package

    def number(self, file: Path, number: int) -> int:
        """Return what a line's number is in the reader's file."""
        lines = self.lines.get(file.name, [])
        return lines[number - 1] if 0 < number <= len(lines) else number

    def translate(self, text: str) -> str:
        """Return what a program has said of these files, with the reader's own and their lines."""

        here = Path.cwd()
        own = self.own.relative_to(here) if self.own.is_relative_to(here) else self.own

        def place(match: re.Match[str]) -> str:
            return f'{own / match[1]}", line {self.number(Path(match[1]), int(match[2]))}'

        copied = re.escape(str(self.folder))
        text = re.sub(rf'{copied}/([\w.]+)", line (\d+)', place, text)
        return text.replace(str(self.folder), str(own))


@contextlib.contextmanager
def bench_for(exercise: Exercise, progress: Progress) -> Iterator[Bench]:
    """Yield what to check an exercise on: the reader's functions, and whatever they need."""
    if exercise.is_side:
        (file,) = files_of(exercise)
        with _bench("", file.parent, {file.name: (file.read_bytes(), {})}) as made:
            yield made
        return
    with bench(exercise.stage, progress.passed, checked=exercise) as made:
        yield made


@contextlib.contextmanager
def bench(stage: int, trusted: list[str], checked: Exercise | None = None) -> Iterator[Bench]:
    """Yield a stage with the functions of these exercises, and of the one that is checked.

    A function that the reader has not written yet, or that is not right yet, is the stage's own.
    """
    files = {
        file.name: (file.read_bytes(), _stand_ins(stage, file.stem, trusted, checked))
        for file in sorted(folder_of(stage).glob("*.py"))
    }
    with _bench(folder_of(stage).name, folder_of(stage), files) as made:
        yield made


@contextlib.contextmanager
def bench_of(exercise: Exercise, texts: dict[str, str]) -> Iterator[Bench]:
    """Yield the stage's own with other functions, or the text of a side exercise under ""."""
    files: dict[str, tuple[bytes, dict[str, str]]] = {}
    if exercise.is_side:
        package, own = "", SIDE
        files[f"{exercise.name}.py"] = (texts[""].encode(), {})
    else:
        package, own = folder_of(exercise.stage).name, catalogue.folder_of(exercise.stage)
        for file in sorted(catalogue.folder_of(exercise.stage).glob("*.py")):
            here = {
                name.partition(".")[2]: text
                for name, text in texts.items()
                if name.partition(".")[0] == file.stem
            }
            files[file.name] = (file.read_bytes(), here)
    with _bench(package, own, files) as made:
        yield made


@contextlib.contextmanager
def _bench(
    package: str, own: Path, files: dict[str, tuple[bytes, dict[str, str]]]
) -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="my_miniray-") as root:
        made = Bench(Path(root).resolve(), package, own)
        made.folder.mkdir(exist_ok=True)
        for name, (data, stand_ins) in files.items():
            with contextlib.suppress(SyntaxError, ValueError):  # then it is tried as it is
                text, made.lines[name] = functions.replace(data.decode(), stand_ins)
                data = text.encode()
            (made.folder / name).write_bytes(data)
        yield made


def _stand_ins(
    stage: int, stem: str, trusted: list[str], checked: Exercise | None
) -> dict[str, str]:
    """Return the stage's own functions of a file that stand in for the reader's."""
    found = {}
    for exercise in catalogue.load():
        if exercise.stage != stage or exercise == checked:
            continue
        for function in exercise.functions:
            module, _, name = function.partition(".")
            if module == stem:
                text = text_of(stage, function)
                if exercise.name not in trusted or (text and functions.is_open(text)):
                    found[name] = catalogue.own(stage, function)
    return found


def open_names(stage: int, progress: Progress) -> list[str]:
    """Return the exercises of a stage for whose functions the stage's own stand in."""
    return [
        one.name
        for one in catalogue.load()
        if one.stage == stage
        and not one.is_side
        and not all(is_mine(one, name, stage, progress) for name in one.functions)
    ]
