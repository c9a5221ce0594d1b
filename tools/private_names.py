"""Find names that begin with an underscore and are used outside the module that they belong to."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from tools.count_lines import PACKAGE

# Of Python's own and of objects that are nobody's but the module's.
FOREIGN = {
    "os": {"_exit"},
    "sys": {"_current_frames"},  # which the documentation has, for debuggers
    # What Python does at its end, without the end; multiprocessing does so in its children.
    "threading": {"_shutdown"},
    "atexit": {"_run_exitfuncs"},
    "turn": {"_is_owned"},  # of a lock, and the only way to ask it; threading.Condition does, too
    "classes": {"_fields", "_name_"},  # of NamedTuples and Enums, whose documentation has them
    "values": {"_metadata"},  # of a state_dict
    "completion": {"_actions", "_choices_actions"},  # argparse shows its options nowhere else
    "codec": {"_owner"},  # put on a ctypes array, to keep alive what it is a view of
}


def find_strays() -> list[str]:
    """Return "module:line: name" for each private name that is used from another module.

    A subclass is another module's, too: it neither reads nor replaces what its base keeps to
    itself.
    """
    trees = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
    classes = {
        node.name: node
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    found = []
    for path, tree in trees.items():
        strays = [*_imported(tree), *_attributes(tree, path.stem), *_taken(tree, classes)]
        found += [f"{_place(path)}:{line}: {name}" for line, name in strays]
    return found


def _place(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def _is_private(name: str) -> bool:
    # What ends with one, too, is for others to call: Python, an Enum, a notebook.
    return name.startswith("_") and not name.endswith("_")


def _imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, one.name) for one in node.names if _is_private(one.name))


def _attributes(tree: ast.Module, module: str) -> Iterator[tuple[int, str]]:
    """Yield private attributes that no class or function of this module has."""
    own = set(_defined(tree)) | FOREIGN.get(module, set())
    imported = {
        one.asname or one.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for one in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_private(node.attr):
            holder = node.value.id if isinstance(node.value, ast.Name) else ""
            if node.attr in FOREIGN.get(holder, set()):
                continue
            if node.attr not in own or holder in imported:
                yield node.lineno, ast.unparse(node)


def _taken(tree: ast.Module, classes: dict[str, ast.ClassDef]) -> Iterator[tuple[int, str]]:
    """Yield what a class has of its own under a name that a base elsewhere keeps to itself."""
    here = {node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    for node in here:
        for base in _bases(node, classes):
            if base not in here:
                for name in sorted(set(_defined(node)) & set(_defined(base))):
                    yield node.lineno, f"{node.name} has {name} of {base.name}"


def _bases(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> Iterator[ast.ClassDef]:
    for one in node.bases:
        base = classes.get(ast.unparse(one).rpartition(".")[2])
        if base is not None:
            yield base
            yield from _bases(base, classes)


def _defined(tree: ast.AST) -> Iterator[str]:
    """Yield the private names that a piece of code defines, or sets on `self` or on `cls`."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                pass
            case ast.Name(id=name, ctx=ast.Store()):
                pass
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                pass
            case _:
                continue
        if _is_private(name) and name != "_":
            yield name


if __name__ == "__main__":
    print(*find_strays(), sep="\n")
    sys.exit(bool(find_strays()))
