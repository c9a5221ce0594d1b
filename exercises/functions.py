"""Find a function in a module's text, cut it out, put another in its place, open it for the reader.

A function is named as in its module: `encode`, `Process.stop`. Nothing is imported or run.
"""

import ast
import re
import textwrap
from dataclasses import dataclass

Function = ast.FunctionDef | ast.AsyncFunctionDef
WIDTH = 92


@dataclass(frozen=True)
class Place:
    """Where a function stands: lines from 1, the last one included."""

    first: int
    last: int
    indent: int
    node: Function


def find(source: str, name: str) -> Place | None:
    """Return where a function is, or None. Raises SyntaxError for what is no Python."""
    *classes, last = name.split(".")
    body: list[ast.stmt] = ast.parse(source).body
    for part in classes:
        found = [one for one in body if isinstance(one, ast.ClassDef) and one.name == part]
        if not found:
            return None
        body = found[-1].body
    nodes = [one for one in body if isinstance(one, Function) and one.name == last]
    if not nodes:
        return None
    node = nodes[-1]
    first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
    return Place(first, node.end_lineno or node.lineno, node.col_offset, node)


def cut(source: str, name: str) -> str:
    """Return a function's text, without its indentation; raise LookupError if it is not there."""
    place = find(source, name)
    if place is None:
        raise LookupError(f"there is no function {name}")
    return textwrap.dedent("".join(_lines(source)[place.first - 1 : place.last]))


def replace(source: str, texts: dict[str, str]) -> tuple[str, list[int]]:
    """Put other texts in the place of functions.

    Returns the new source, and for each of its lines the number that it has in the old one: all of
    a replaced function has the number of its first line. A function that is not there is left out.
    """
    numbered = [(line, number) for number, line in enumerate(_lines(source), 1)]
    places = {name: find(source, name) for name in texts}
    there = [(place, texts[name]) for name, place in places.items() if place is not None]
    for place, text in sorted(there, key=lambda one: -one[0].first):
        new = textwrap.indent(textwrap.dedent(text).rstrip("\n") + "\n", " " * place.indent)
        numbered[place.first - 1 : place.last] = [(line, place.first) for line in _lines(new)]
    return "".join(line for line, _ in numbered), [number for _, number in numbered]


def open_up(text: str, remark: str, error: str) -> str:
    """Return a function with its head and docstring, and a body that says whose it is.

    `remark` becomes comments, `error` the text of the NotImplementedError.
    """
    node = _only(text)
    lines = _lines(text)
    documented = ast.get_docstring(node) is not None
    if documented:
        head = lines[: node.body[0].end_lineno]
    else:
        head = lines[: node.body[0].lineno - 1]
        while head[-1].strip().startswith("#") or not head[-1].strip():
            head.pop()
    indent = " " * node.body[0].col_offset
    words = " ".join(remark.split())
    remarks = [
        f"{line}\n"
        for line in textwrap.wrap(
            words, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
        )
    ]
    return "".join([*head, *remarks, f'{indent}raise NotImplementedError("{error}")\n'])


def is_open(text: str) -> bool:
    """Return whether a function has nothing to do but to say that it is not written yet."""
    node = _only(text)
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    match body:
        case [ast.Raise(exc=ast.Call(func=ast.Name(id="NotImplementedError")))]:
            return True
    return False


def by_name(text: str) -> dict[str, str]:
    """Return the functions of a text that holds nothing else, by their names."""
    lines = _lines(text)
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, Function):
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            found[node.name] = "".join(lines[first - 1 : node.end_lineno])
    return found


def companions(source: str, name: str, known: set[str]) -> list[str]:
    """Return the imports, helpers and constants that a function uses and that are not `known`.

    They are statements of its module, in the order in which they stand there.
    """
    statements = {}
    tree = ast.parse(source)
    for node in tree.body:
        for bound in names_bound(node):
            statements[bound] = node
    place = find(source, name)
    assert place is not None
    needed: set[ast.stmt] = set()
    todo: list[ast.AST] = [place.node]
    while todo:
        for inner in ast.walk(todo.pop()):
            used = inner.id if isinstance(inner, ast.Name) else ""
            statement = statements.get(used)
            if statement is not None and used not in known and statement not in needed:
                needed.add(statement)
                todo.append(statement)
    lines = _lines(source)
    return [
        "".join(lines[node.lineno - 1 : node.end_lineno]) for node in tree.body if node in needed
    ]


def names_bound(node: ast.stmt) -> list[str]:
    """Return the names that a statement of a module gives a meaning."""
    match node:
        case ast.Import() | ast.ImportFrom():
            return [(one.asname or one.name).partition(".")[0] for one in node.names]
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return [node.name]
        case ast.Assign():
            return [one.id for one in ast.walk(node) if isinstance(one, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
    return []


def all_names_bound(source: str) -> set[str]:
    """Return all names that a module gives a meaning."""
    return {name for node in ast.parse(source).body for name in names_bound(node)}


def add_statements(source: str, statements: list[str]) -> str:
    """Return a module with more statements, behind its last import."""
    imports = [
        one for one in ast.parse(source).body if isinstance(one, ast.Import | ast.ImportFrom)
    ]
    at = (imports[-1].end_lineno or 0) if imports else 0
    lines = _lines(source)
    return "".join([*lines[:at], *(f"{one.rstrip()}\n" for one in statements), *lines[at:]])


def _only(text: str) -> Function:
    (node,) = ast.parse(textwrap.dedent(text)).body
    assert isinstance(node, Function)
    return node


def _lines(text: str) -> list[str]:
    return re.findall(r"[^\n]*\n|[^\n]+$", text)  # as Python counts them, and not as Unicode does
