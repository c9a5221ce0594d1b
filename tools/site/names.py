"""Find the names in the listings of the course that nobody has told the reader of.

A name that stands in a listing is Python's own, or stands in the listing itself, or in an earlier
one, or has been said in words: earlier in the course, or in the two paragraphs below the listing.
"""

import ast
import builtins
import importlib
import inspect
import keyword
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.site import snippets
from tools.site.blocks import DOCS, FENCE, INCLUDE

CHAPTERS = [DOCS / "tutorial" / f"stage{number}.md" for number in range(1, 6)]
# Whose names are Python's own. What has capitals in it is said in words all the same: nobody
# knows what TCP_NODELAY is from knowing Python.
MODULES = [
    "argparse",
    "collections",
    "contextlib",
    "dataclasses",
    "functools",
    "hashlib",
    "hmac",
    "io",
    "json",
    "math",
    "os",
    "pathlib",
    "re",
    "select",
    "shlex",
    "signal",
    "socket",
    "struct",
    "subprocess",
    "sys",
    "threading",
    "time",
    "traceback",
    "typing",
]
WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Listing:
    """A piece of code on a page, the words before it, and the paragraphs below it."""

    page: Path
    line: int
    code: str
    before: str
    below: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(DOCS)}:{self.line}"


def listings(page: Path) -> Iterator[Listing]:
    """Yield the included Python listings of a page."""
    lines = page.read_text().splitlines()
    words: list[str] = []
    number = 0
    while number < len(lines):
        match = FENCE.match(lines[number])
        if match is None:
            words.append(lines[number])
            number += 1
            continue
        end = number + 1
        while lines[end].strip() != match["fence"]:
            end += 1
        inner = [line.strip() for line in lines[number + 1 : end]]
        if match["language"] == "python" and all(line.startswith(INCLUDE) for line in inner):
            text = "\n".join(_read(line) for line in inner)
            below = "\n".join("\n".join(lines[end + 1 :]).strip("\n").split("\n\n")[:2])
            yield Listing(page, number + 1, text, "\n".join(words), below)
        number = end + 1


def _read(include: str) -> str:
    name = include.removeprefix(INCLUDE).rstrip('"')
    match = snippets.REFERENCE.match(include)
    return snippets.cut(match[1], match[2]) if match else (DOCS / name).read_text()


def untold(pages: list[Path]) -> dict[str, list[str]]:
    """Return for each listing of the course, by where it stands, the names that nobody told."""
    known = python_names()
    told: set[str] = set()
    found: dict[str, list[str]] = {}
    for page in pages:
        for one in listings(page):
            here = told | {*WORD.findall(one.before)} | {*WORD.findall(one.below)}
            missing = [name for name in names_in(one.code) if name not in known | here]
            if missing:
                found[str(one)] = missing
            told |= {*WORD.findall(one.code)}
        told |= {*WORD.findall(page.read_text())}
    return found


def names_in(code: str) -> list[str]:
    """Return the names that a piece of code uses and does not make itself, in their order."""
    tree = ast.parse(code)
    made = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg | ast.keyword)}
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.ClassDef():
                made.add(node.name)
            case ast.Name(ctx=ast.Store()):
                made.add(node.id)
            case ast.ExceptHandler() if node.name:
                made.add(node.name)
    used: dict[str, None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            used[node.id] = None
        elif isinstance(node, ast.Attribute):
            used[node.attr] = None
    return [name for name in used if name not in made]


def python_names() -> set[str]:
    """Return what somebody knows who knows Python: no constants, which are the system's."""
    names = {*dir(builtins), *keyword.kwlist, "self", "cls", *MODULES}
    for kind in (str, bytes, bytearray, memoryview, dict, list, set, tuple, int, float, object):
        names |= {*dir(kind)}
    for module in map(importlib.import_module, MODULES):
        for name, value in vars(module).items():
            names.add(name)
            if inspect.isclass(value):
                names |= {*dir(value)}
    builtin = {*dir(builtins)}
    return {name for name in names if name in builtin or not re.fullmatch(r"[A-Z][A-Z0-9_]+", name)}
