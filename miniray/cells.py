"""The text of a notebook's function, which goes along where others have a module to import.

A function goes as its own text, with that of every function and class of the notebook that it
names, the imports of what else it names, and constants: numbers, text, and tuples of them. Anything
else that it names stays here, and is refused by its name. On the other side the text is run in
`__main__`, so that a class is called the same on both.
"""

import __future__

import ast
import builtins
import contextlib
import inspect
import linecache
import math
import symtable
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

from miniray.work_fn import main_module

TEXT_CHARS_MAX = 1024 * 1024
PLAIN = (type(None), bool, int, float, complex, str, bytes)

# What it binds; the cell, as tracebacks call it; the line there; the text.
Piece = tuple[str, str, int, str]

_defined: dict[str, Piece] = {}


def collect(function: str) -> list[Piece]:
    """Return the text of "__main__.function", and of all that it names, in the order to run it.

    Of a function that has a module that is nothing. Raises TypeError, with what to do, for one
    whose text is not known, or that names what does not go as text.
    """
    module, _, name = function.rpartition(".")
    if module != "__main__" or main_module() != (None, None):
        return []
    pieces: dict[str, Piece] = {}
    _add(name, (), pieces)
    if name not in pieces:
        raise _refuse((name,), "this notebook has nothing of that name", "run its cell")
    if (chars := sum(len(text) for *_, text in pieces.values())) > TEXT_CHARS_MAX:
        raise _refuse((name,), f"with what it names it has {chars} characters", "send the data")
    return list(pieces.values())


def define(pieces: Iterable[Iterable[Any]]) -> None:
    """Run in `__main__` what another process collected, but for what is there already."""
    for name, file, line, text in pieces:
        piece = name, file, line, text
        if _defined.get(name) != piece:
            _show_in_tracebacks(file, line, text)
            code = compile("\n" * (line - 1) + text, file, "exec", dont_inherit=True)
            exec(code, vars(sys.modules["__main__"]))
            _defined[name] = piece


def _show_in_tracebacks(file: str, line: int, text: str) -> None:
    lines, new = linecache.getlines(file), [f"{one}\n" for one in text.split("\n")]
    lines += ["\n"] * (line - 1 + len(new) - len(lines))
    lines[line - 1 : line - 1 + len(new)] = new
    linecache.cache[file] = sum(map(len, lines)), None, lines, file


def _add(name: str, above: tuple[str, ...], pieces: dict[str, Piece]) -> None:
    """Add what binds a name here, after what that needs itself."""
    here = vars(sys.modules["__main__"])
    if name in pieces or name in above or name not in here:  # a builtin, or nothing yet
        return
    value, path = here[name], (*above, name)
    builtin = getattr(builtins, name, None)
    if builtin is not None and inspect.unwrap(value) is builtin:  # IPython wraps open
        return
    if text := _literal(value):
        text = f"{name} = {text}"
    if text := text or _import(name, value):
        pieces[name] = name, "<notebook>", 1, text
        return
    called = getattr(value, "__qualname__", None)
    if getattr(value, "__module__", None) != "__main__" or not isinstance(called, str):
        kind = type(value).__name__
        remedy = "pass it as an argument, send it, or make it within"
        raise _refuse(
            path, f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind} stays here", remedy
        )
    if here.get(called) is not value:
        known = "a lambda" if "<lambda>" in called else called
        problem = f"it is {known}" + (called in here) * f", and {called} is something else by now"
        raise _refuse(path, problem, "write it with def, at the top of a cell")
    if called != name:
        _add(called, above, pieces)
        pieces[name] = name, "<notebook>", 1, f"{name} = {called}"
        return
    file, line, text = _definition(value, path)
    for needed in _names(text):
        _add(needed, path, pieces)
    for module in _submodules(text, here):
        pieces[module] = module, "<notebook>", 1, f"import {module}"
    pieces[name] = name, file, line, text


def _refuse(path: tuple[str, ...], problem: str, remedy: str) -> TypeError:
    names = ", which names ".join(path)
    return TypeError(f"cannot send {names}: {problem}; {remedy}")


def _literal(value: Any) -> str:
    """Return a number, a text, or a tuple of them as Python writes it; else nothing."""
    if type(value) is tuple:
        items = [_literal(item) for item in value]
        return f"({''.join(f'{item},' for item in items)})" if all(items) else ""
    if type(value) is float and not math.isfinite(value):
        return f'float("{value}")'
    return repr(value) if type(value) in PLAIN else ""


def _import(name: str, value: Any) -> str:
    """Return the import that binds a module, or what stands at the top of one; else nothing."""
    if isinstance(value, ModuleType):
        return f"import {value.__name__} as {name}"
    where = getattr(value, "__module__", None)
    if not isinstance(where, str) or where == "__main__" or where not in sys.modules:
        return ""
    there = vars(sys.modules[where])
    own = getattr(value, "__name__", None)
    for called in (name, own, *there):
        if isinstance(called, str) and there.get(called) is value:
            return f"from {where} import {called} as {name}"
    return ""


def _definition(value: Any, path: tuple[str, ...]) -> tuple[str, int, str]:
    """Return the cell in which a function or class was defined, the line there, and its text."""
    main = vars(sys.modules["__main__"])
    cells = [str(cell).rstrip() for cell in main.get("In", ())]
    try:
        if isinstance(value, type):
            number, first, lines = _find_class(value, cells)
            file = ""
        else:
            lines, first = inspect.getsourcelines(value)
            file = str(inspect.getsourcefile(inspect.unwrap(value)))
            number = _number_of(file, cells)
    except (OSError, TypeError):
        problem = "its text is not known: a call made it, or a plain prompt, a -c, or %%time's cell"
        remedy = "write it with def or class in a cell, or save it to a file and import it"
        raise _refuse(path, problem, remedy) from None
    above = ["from __future__ import annotations\n"]
    above *= main.get("annotations") is __future__.annotations
    above += ["if True:\n"] * lines[0].startswith((" ", "\t"))
    line = max(1, first - len(above))
    return f"<In[{number}]>" if number else file, line, "".join([*above, *lines])


def _number_of(file: str, cells: list[str]) -> int:
    """Return which cell is run under a file's name, the last if it was run again; 0 if none is."""
    text = "".join(linecache.getlines(file)).rstrip()
    return max((number for number, cell in enumerate(cells) if cell == text), default=0)


def _find_class(kind: type, cells: list[str]) -> tuple[int, int, list[str]]:
    """Return which cell defines a class, the line there, and its lines; Python does not know it."""
    for number in range(len(cells) - 1, 0, -1):
        with contextlib.suppress(SyntaxError):  # such a cell was not run
            for node in ast.walk(ast.parse(cells[number])):
                if (
                    isinstance(node, ast.ClassDef)
                    and node.name == kind.__name__
                    and _is_of(node, kind, cells, number)
                ):
                    first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
                    lines = cells[number].splitlines(keepends=True)
                    return number, first, lines[first - 1 : node.end_lineno]
    raise OSError("no cell defines this class")


def _is_of(node: ast.ClassDef, kind: type, cells: list[str], number: int) -> bool:
    """Return whether a definition is that of a class, and not of what had, or gets, its name."""
    own = [vars(kind).get(getattr(one, "name", "")) for one in node.body]
    files = {method.__code__.co_filename for method in own if inspect.isfunction(method)}
    fields = {ast.unparse(one.target) for one in node.body if isinstance(one, ast.AnnAssign)}
    is_same = fields == inspect.get_annotations(kind).keys()
    return is_same and all(_number_of(file, cells) in (0, number) for file in files)


def _names(text: str) -> list[str]:
    """Return the global names that some text uses, in whatever scope."""
    found, tables = set[str](), [symtable.symtable(text, "<cell>", "exec")]
    while tables:
        table = tables.pop()
        is_top = table.get_type() == "module"
        for symbol in table.get_symbols():
            if symbol.is_referenced() if is_top else symbol.is_global():
                found.add(symbol.get_name())
        tables += table.get_children()
    return sorted(found)


def _submodules(text: str, here: Mapping[str, Any]) -> Iterator[str]:
    """Yield the modules that some text reaches through others: `xml` alone has no `etree`."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute):
            first, _, rest = ast.unparse(node).partition(".")
            module = here.get(first)
            if isinstance(module, ModuleType) and f"{module.__name__}.{rest}" in sys.modules:
                yield f"{module.__name__}.{rest}"
