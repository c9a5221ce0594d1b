"""The parts of the stages: the lines, tests and exercises of what one learns at a sitting."""

import ast
import functools
import importlib
import importlib.util
import sys
import tomllib
import types
import unittest
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stages import snapshots

FILE = Path(__file__).with_name("parts.toml")
LINES_MIN, LINES_MAX = 80, 150


@dataclass(frozen=True)
class Part:
    """A part of a stage, as parts.toml describes it."""

    number: str  # "3.2": stage 3, part 2
    title: str
    code: dict[str, list[str]]  # by file, the names of the pieces whose new lines belong to it
    tests: list[str]  # "test_file", "test_file.Class" or "test_file.Class.test_method"
    exercises: list[str]
    more: list[str]  # exercises for whoever has not had enough
    why: str  # for a part that is shorter or longer than others

    @property
    def stage(self) -> int:
        return int(self.number.partition(".")[0])

    @property
    def package(self) -> str:
        return snapshots.NAMES[self.stage - 1]

    @property
    def new_lines(self) -> dict[str, list[int]]:
        """By file, the numbers of the code lines that are new in the stage and belong here."""
        found: dict[str, list[int]] = {}
        for line in new_lines(self.stage):
            if line.part == self.number:
                found.setdefault(line.module, []).append(line.number)
        return found

    @property
    def size(self) -> int:
        """How many code lines are new."""
        return sum(map(len, self.new_lines.values()))


@dataclass(frozen=True)
class NewLine:
    """A code line that is new in its stage."""

    module: str
    number: int
    piece: str
    part: str  # "" if it belongs to none


def load() -> list[Part]:
    """Return all parts, in their order."""
    parts = []
    for number, fields in tomllib.loads(FILE.read_text()).items():
        code = fields.pop("code")
        more, why = fields.pop("more", []), fields.pop("why", "")
        parts.append(Part(number=number, code=code, more=more, why=why, **fields))
    return parts


def find(number: str) -> Part:
    """Return one part; raise ValueError with those that there are."""
    parts = load()
    for part in parts:
        if part.number == number:
            return part
    there = ", ".join(part.number for part in parts)
    raise ValueError(f"there is no part {number!r}; name one of {there}")


def modules(stage: int) -> dict[str, str]:
    """Return the text of each of a stage's modules, in reading order, scripts for training too."""
    snapshot = snapshots.load(str(stage))
    scripts = {name: text for name, text in snapshot.others.items() if name == "train"}
    return snapshot.modules | scripts


@functools.cache
def new_lines(stage: int) -> list[NewLine]:
    """Return every code line that the stage before has not, with the part that it belongs to."""
    before = modules(stage - 1) if stage > 1 else {}
    owners = {
        (module, name): part.number
        for part in load()
        if part.stage == stage
        for module, names in part.code.items()
        for name in names
    }
    found = []
    for module, text in modules(stage).items():
        pieces = piece_of_each_line(text)
        for number in snapshots.added_lines(before.get(module, ""), text):
            piece = pieces[number]
            part = owners.get((module, piece)) or owners.get((module, "*"), "")
            found.append(NewLine(module, number, piece, part))
    return found


def piece_of_each_line(source: str) -> dict[int, str]:
    """Return for each line the function, "Class.method" or class it is in, else "(module)"."""
    return dict(_walk(ast.parse(source), "", 0))


def _walk(node: ast.Module | ast.ClassDef, name: str, start: int) -> Iterator[tuple[int, str]]:
    for one in node.body:
        end = one.end_lineno or one.lineno
        match one:
            case ast.ClassDef():
                yield from ((line, one.name) for line in range(start + 1, one.lineno + 1))
                yield from _walk(one, one.name, one.lineno)
            case ast.FunctionDef():
                piece = f"{name}.{one.name}".lstrip(".")
                yield from ((line, piece) for line in range(start + 1, end + 1))
            case _:
                yield from ((line, name or "(module)") for line in range(start + 1, end + 1))
        start = end


def show(part: Part) -> str:
    """Return a part's code: whole functions, and of anything else the lines that are new."""
    shown = []
    for module, new in part.new_lines.items():
        text = modules(part.stage)[module]
        many = f"{len(new)} new line{'s' if len(new) > 1 else ''}"
        shown += [f"# {part.package}/{module}.py: {many}", *_pieces(text, {*new}), "", ""]
    return "\n".join(shown).rstrip() + "\n"


def _pieces(text: str, new: set[int]) -> Iterator[str]:
    """Yield the lines of a file's pieces that have new lines, each class above its methods."""
    lines, piece_of = text.splitlines(), piece_of_each_line(text)
    functions = {
        node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)
    }
    documented = {
        node.name: {node.lineno, *range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)}
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ClassDef) and ast.get_docstring(node)
    }
    shown_class = ""
    for piece in dict.fromkeys(piece_of[number] for number in sorted(new)):
        owner, _, name = piece.rpartition(".")
        numbers = [number for number in piece_of if piece_of[number] == piece]
        if name not in functions:
            head = documented.get(name, set())  # a docstring is no code, and goes with its class
            numbers = [one for one in numbers if one in new or (one in head and min(head) in new)]
            shown_class = name
        yield from [""] if owner else ["", ""]
        if owner and owner != shown_class:
            yield from ["", next(line for line in lines if line.startswith(f"class {owner}"))]
            shown_class = owner
        yield from "\n".join(lines[number - 1] for number in numbers).strip("\n").splitlines()


def test_ids(part: Part) -> list[str]:
    """Return a part's tests, method by method: "test_file.Class.test_method"."""
    return [
        one
        for given in part.tests
        for one in all_tests(part.stage)
        if one == given or one.startswith(f"{given}.")
    ]


def all_tests(stage: int) -> list[str]:
    """Return the tests that are new in a stage, method by method."""
    folder = snapshots.REPOSITORY / "stages"
    before = {path.name for path in (folder / snapshots.NAMES[stage - 2]).glob("test_*.py")}
    return [
        f"{path.stem}.{node.name}.{method.name}"
        for path in sorted((folder / snapshots.NAMES[stage - 1]).glob("test_*.py"))
        if stage == 1 or path.name not in before
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef)
        for method in node.body
        if isinstance(method, ast.FunctionDef) and method.name.startswith("test_")
    ]


def run_tests(part: Part, package: str) -> bool:
    """Run a part's tests on a package, the stage or the reader's copy; return whether they pass.

    Raises ValueError if there is no such package.
    """
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ValueError(f"there is no {package.replace('.', '/')} here: {error}") from error
    loader = unittest.TestLoader()
    suite = unittest.TestSuite()
    for name in test_ids(part):
        module, _, test = name.partition(".")
        suite.addTest(loader.loadTestsFromName(test, _load_tests(part, package, module)))
    runner = unittest.TextTestRunner(verbosity=2, resultclass=_InWords)  # type: ignore[arg-type]
    return runner.run(suite).wasSuccessful()


class _InWords(unittest.TextTestResult):
    def getDescription(self, test: unittest.TestCase) -> str:
        return test.id().rpartition(".")[2].removeprefix("test_").replace("_", " ")


def _load_tests(part: Part, package: str, module: str) -> types.ModuleType:
    """Import a stage's tests into a package, so that they import that package's modules."""
    name = f"{package}.{module}"
    if name in sys.modules or importlib.util.find_spec(name):
        return importlib.import_module(name)
    path = snapshots.REPOSITORY / "stages" / part.package / f"{module}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    sys.modules[name] = loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def make_list() -> str:
    """Return a line for each part, for a terminal."""
    lines = []
    for part in load():
        if part.number.endswith(".1"):
            lines += ["", f"stage {part.stage}"]
        exercises = ", ".join(part.exercises)
        lines.append(f"  {part.number}  {part.title:28}{part.size:4} lines   {exercises}")
    return "\n".join(lines[1:])
