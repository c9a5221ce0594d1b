"""Cut functions and classes out of the code, for the pages that show them.

A page includes `generated/code/PACKAGE/MODULE/NAME.py`; this writes that file from NAME, which is
`function`, `Class` or `Class.method`, in the module.
"""

import ast
import re
import textwrap
from pathlib import Path

from tools.site.blocks import DOCS, REPOSITORY, pages

GENERATED = DOCS / "generated"
REFERENCE = re.compile(r'--8<-- "generated/code/([\w/]+)/([\w.]+)\.py"')
LINES_MAX = 28


def references() -> list[tuple[Path, str, str]]:
    """Return (page, module's path without .py, name) for everything that a page includes."""
    return [
        (page, match[1], match[2])
        for page in pages()
        for match in REFERENCE.finditer(page.read_text())
    ]


def cut(module: str, name: str) -> str:
    """Return the source of a function, class or constant of a module, without indentation."""
    file = _find(module)
    source = file.read_text()
    body: list[ast.stmt] = ast.parse(source).body
    node: ast.stmt | None = None
    for part in name.split("."):
        node = next((one for one in body if _name(one) == part), None)
        if node is None:
            raise ValueError(f"{file.relative_to(REPOSITORY)} has no {name}")
        body = getattr(node, "body", [])
    assert node is not None
    first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
    lines = source.splitlines()[first - 1 : node.end_lineno]
    return textwrap.dedent("\n".join(lines)) + "\n"


def _find(module: str) -> Path:
    for folder in ("stages", ""):
        file = REPOSITORY / folder / f"{module}.py"
        if file.exists():
            return file
    raise ValueError(f"there is no module {module}")


def _name(node: ast.stmt) -> str | None:
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    return getattr(node, "name", None)


def write() -> int:
    """Write every file that is included; return how many."""
    for _, module, name in references():
        file = GENERATED / "code" / module / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(cut(module, name))
    return len(references())
