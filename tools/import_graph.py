"""Which module of miniray imports which: measured from the code, for tests and for the site."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tools.count_lines import PACKAGE

# They are above everything: one offers names and imports when asked, the other is the program.
ABOVE_ALL = ("__init__", "__main__")


def read_graph() -> dict[str, set[str]]:
    """Return for each module of miniray above `cli/` what it imports of the others."""
    paths = [path for path in sorted(PACKAGE.glob("*.py")) if path.stem not in ABOVE_ALL]
    return {path.stem: imports_of(path) for path in paths}


def imports_of(path: Path) -> set[str]:
    """Return the modules of miniray that one imports, at any level of its code.

    A name that is for types alone is no import, and what a module starts when it is run as a
    program is above it.
    """
    return set(_imports(ast.parse(path.read_text())))


def find_layers(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the modules in layers, each of which imports from those before it alone.

    Raises ValueError for imports that go in a circle.
    """
    layers: list[list[str]] = []
    below: set[str] = set()
    while left := sorted(set(graph) - below):
        layer = [name for name in left if graph[name] <= below]
        if not layer:
            raise ValueError(f"these import each other in a circle, or stand on one: {left}")
        layers.append(layer)
        below.update(layer)
    return layers


def find_direct(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return the imports without those that are also imported by what a module imports."""

    def below(name: str) -> set[str]:
        return graph[name].union(*map(below, graph[name]))

    return {
        name: {one for one in imported if not any(one in below(other) for other in imported)}
        for name, imported in graph.items()
    }


def _imports(tree: ast.AST) -> Iterator[str]:
    match tree:
        case ast.If(test=test) if ast.unparse(test) in (
            "__name__ == '__main__'",
            "TYPE_CHECKING",
        ):
            return
        case ast.FunctionDef(name="main"):
            return
        case ast.Import(names=names):
            for name in names:
                package, _, module = name.name.partition(".")
                if package == "miniray":
                    yield module.partition(".")[0] or "__init__"
        case ast.ImportFrom(module=source, names=names, level=level):
            here = "miniray." if level else ""
            package, _, module = f"{here}{source or ''}".partition(".")
            if package != "miniray":
                return
            if module:
                yield module.partition(".")[0]
                return
            for name in names:
                is_module = (PACKAGE / f"{name.name}.py").exists() or name.name == "cli"
                # The version is a constant that stands above everything the package imports.
                if name.name != "__version__":
                    yield name.name if is_module else "__init__"
    for child in ast.iter_child_nodes(tree):
        yield from _imports(child)
