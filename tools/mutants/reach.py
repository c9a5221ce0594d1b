"""Find out which tests execute which statement of the core, in whatever process they do it.

In a copy of the tree every statement in a function of the core gets a call before it, which notes
down the statement and the test that runs now. What is forked has these calls, too, and so has a
node: it is sent the core as it stands there. As a plugin of pytest this says which test runs now.
"""

import ast
import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

HERE = Path.cwd()
# Where what is noted stands in the copy of the tree: which test runs now, who executed what, and
# how each part of each test went.
FOLDER = Path(".mutants")
NOW, EXECUTED, WENT = FOLDER / "now", FOLDER / "executed", FOLDER / "went"
# Nothing stays open, as tests count descriptors; and nothing is kept back for the end of a process.
NOTE = """
def _executes(line, *, posix=__import__("posix"), noted=set(), rows=[]):
    try:
        test = posix.readlink({now!r})
        if (test, line) not in noted:
            noted.add((test, line))
            rows.append(f"{file}:{{line}}\\t{{test}}\\n")
            descriptor = posix.open({executed!r}, posix.O_WRONLY | posix.O_APPEND)
            posix.write(descriptor, "".join(rows).encode())
            rows.clear()
            posix.close(descriptor)
    except OSError:
        pass  # no test runs now; or this one has used up the descriptors, and sets some free
"""


@dataclasses.dataclass(frozen=True)
class Reach:
    """How long each test takes, and which ones execute a statement, which is a `file:line`."""

    seconds: dict[str, float]
    executed: dict[str, list[str]]
    failed: list[str]  # while they were watched: what else they execute is not known

    def tests_for(self, places: Iterable[str] | None, seconds: float = math.inf) -> list[str]:
        """Return the tests that execute one of some places, or all; the quickest come first.

        What they take together is no more than `seconds`.
        """
        found = {test for place in places or () for test in self.executed.get(place, ())}
        found = set(self.seconds) if places is None else found | set(self.failed)
        tests = sorted(found, key=lambda test: (self.seconds[test], test))
        sums = itertools.accumulate(self.seconds[test] for test in tests)
        return [test for test, total in zip(tests, sums, strict=True) if total <= seconds]


def places_of(file: str, line: int, modules: Mapping[str, ast.Module]) -> list[str] | None:
    """Return the statements that a change of a line can matter to; None stands for any.

    Within a function it is the innermost one there, outside of all what names the constant.
    """
    if (place := _statement_at(modules[file], line)) is not None:
        return [f"{file}:{place}"]
    around = next((node for node in modules[file].body if _has(node, line)), None)
    targets = around.targets if isinstance(around, ast.Assign) else []
    names = {node.id for part in targets for node in ast.walk(part) if isinstance(node, ast.Name)}
    uses = [
        (user, _statement_at(module, node.lineno))
        for user, module in modules.items()
        for node in ast.walk(module)
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load)
        if (node.id if isinstance(node, ast.Name) else node.attr) in names
    ]
    if not names or any(place is None for _, place in uses):
        return None
    return [f"{user}:{place}" for user, place in uses]


def add_notes(tree: Path, files: Iterable[str]) -> None:
    """Change modules in a copy of the tree so that they note down what is executed."""
    (tree / FOLDER).mkdir()
    (tree / EXECUTED).touch()
    for file in files:
        module = ast.parse((tree / file).read_text())
        for block in _blocks(module):
            block[:] = [part for node in block for part in (*_note_before(node), node)]
        note = NOTE.format(now=str(tree / NOW), executed=str(tree / EXECUTED), file=file)
        first = int(ast.get_docstring(module) is not None)
        module.body[first:first] = ast.parse(note).body
        (tree / file).write_text(ast.unparse(module))


def read_notes(tree: Path) -> Reach:
    """Return who executed what in a copy of the tree."""
    executed: dict[str, list[str]] = {}
    for row in sorted(set((tree / EXECUTED).read_text().splitlines())):
        place, _, test = row.partition("\t")
        executed.setdefault(place, []).append(test)
    seconds: dict[str, float] = {}
    failed = []
    for row in (tree / WENT).read_text().splitlines():
        outcome, took_s, test = row.split("\t", maxsplit=2)
        seconds[test] = seconds.get(test, 0.0) + float(took_s)
        failed += [test] if outcome == "failed" else []
    return Reach(seconds, executed, failed)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Say which test runs now, to all processes: where a symbolic link goes changes at once."""
    following = HERE / NOW.with_suffix(".next")
    following.symlink_to(item.nodeid)
    following.replace(HERE / NOW)
    return (yield)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note how a part of a test went: what was set up, the test itself, what was torn down."""
    with (HERE / WENT).open("a") as file:
        file.write(f"{report.outcome}\t{report.duration}\t{report.nodeid}\n")


def _functions(module: ast.Module) -> list[ast.FunctionDef]:
    """Return the functions of a module; what is around others comes before them."""
    return [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef)]


def _blocks(module: ast.Module) -> list[list[ast.stmt]]:
    """Return every sequence of statements in a module's functions."""
    parts = [part for function in _functions(module) for part in ast.walk(function)]
    kinds = ("body", "orelse", "finalbody")
    blocks = [getattr(part, kind, None) for part in parts for kind in kinds]
    return list({id(block): block for block in blocks if isinstance(block, list)}.values())


def _note_before(node: ast.stmt) -> list[ast.stmt]:
    return [] if _is_docstring(node) else ast.parse(f"_executes({node.lineno})").body


def _statement_at(module: ast.Module, line: int) -> int | None:
    """Return where the innermost statement in a function begins that has a line, or None."""
    found = None
    for function in filter(lambda node: _has(node, line), _functions(module)):
        # The defaults in its head are used inside.
        found = next(
            (node.lineno for node in function.body if not _is_docstring(node)), function.lineno
        )
        for node in ast.walk(function):
            if isinstance(node, ast.stmt) and node is not function and not _is_docstring(node):
                found = node.lineno if _has(node, line) else found
    return found


def _has(node: ast.stmt, line: int) -> bool:
    return node.lineno <= line <= (node.end_lineno or node.lineno)


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
