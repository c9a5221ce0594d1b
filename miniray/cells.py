"""The text of a notebook's function, which goes along where others have a module to import.

A function goes as its own text, with that of every function and class of the notebook that it
names, the imports of what else it names, and constants: numbers, text, and tuples of them. Anything
else that it names stays here, and is refused by its name. On the other side the text is run in
`__main__`, so that a class is called the same on both.
"""

import __future__

import ast
import builtins
import cmath
import contextlib
import inspect
import linecache
import re
import symtable
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import CodeType, ModuleType
from typing import Any

from miniray.work_fn import main_module

TEXT_CHARS_MAX = 1024 * 1024
FUTURE = "from __future__ import annotations\n"
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
    if name in vars(builtins) and inspect.unwrap(value) is vars(builtins)[name]:  # IPython's open
        return
    literal = _literal(value)
    if text := f"{name} = {literal}" if literal else _import(name, value):
        pieces[name] = name, "<notebook>", 1, text
        return
    called = getattr(value, "__qualname__", None)
    if getattr(value, "__module__", None) != "__main__" or not isinstance(called, str):
        kind = type(value).__name__
        stays = f"a{'n' * (kind[0].lower() in 'aeiou')} {kind} stays here"
        raise _refuse(path, stays, "pass it as an argument, send it, or make it within")
    if here.get(called) is not value:
        known = "a lambda" if "<lambda>" in called else called
        problem = f"it is {known}" + (called in here) * f", and {called} is something else by now"
        raise _refuse(path, problem, "write it with def, at the top of a cell")
    if called != name:
        _add(called, above, pieces)
        pieces[name] = name, "<notebook>", 1, f"{name} = {called}"
        return
    file, line, text = _definition(value, path)
    pieces |= {one: (one, "<notebook>", 1, f"import {one}") for one in _submodules(text, here)}
    for bodies in (False, True):  # two classes may name each other, but in what methods do
        for needed in _names(text.removeprefix(FUTURE), bodies):
            _add(needed, path, pieces)
        pieces.setdefault(name, (name, file, line, text))


def _refuse(path: tuple[str, ...], problem: str, remedy: str) -> TypeError:
    return TypeError(f"cannot send {', which names '.join(path)}: {problem}; {remedy}")


def _literal(value: Any) -> str:
    """Return a number, a text, or a tuple of them as Python writes it; else nothing."""
    if type(value) is tuple:
        items = [_literal(item) for item in value]
        return f"({''.join(f'{item},' for item in items)})" if all(items) else ""
    if type(value) in (float, complex) and not cmath.isfinite(value):
        return f'{type(value).__name__}("{value}")'
    return repr(value) if type(value) in PLAIN else ""


def _import(name: str, value: Any) -> str:
    """Return the import that binds a module, or what stands at the top of one; else nothing."""
    if isinstance(value, ModuleType):
        return f"import {value.__name__} as {name}"
    where = getattr(value, "__module__", None)
    if not isinstance(where, str) or where == "__main__" or where not in sys.modules:
        return ""
    there = vars(sys.modules[where])
    for called in (name, getattr(value, "__name__", None), *there):
        if isinstance(called, str) and there.get(called) is value:
            return f"from {where} import {called} as {name}"
    return ""


def _definition(value: Any, path: tuple[str, ...]) -> tuple[str, int, str]:
    """Return the cell in which a function or class was defined, the line there, and its text."""
    main = vars(sys.modules["__main__"])
    cells = [str(cell).rstrip() for cell in main.get("In", ())]
    try:
        if isinstance(value, type):
            file, first, lines = _find_class(value, cells)
        else:
            lines, first = inspect.getsourcelines(value)
            if hasattr(value, "__wrapped__") and not lines[0].lstrip().startswith("@"):
                raise OSError("a call has made it of what has this text")
            file = str(inspect.getsourcefile(inspect.unwrap(value)))
            if number := _number_of(file, cells):
                file = f"<In[{number}]>"
    except (OSError, TypeError, SyntaxError):
        problem = "its text is not known: a call made or changed it, a prompt, a -c, or a %%time"
        raise _refuse(path, problem, "write it in a cell, or import it from a file") from None
    above = [FUTURE] * (main.get("annotations") is __future__.annotations)
    above += ["if True:\n"] * lines[0].startswith((" ", "\t"))
    return file, max(1, first - len(above)), "".join([*above, *lines])


def _number_of(file: str, cells: list[str]) -> int:
    """Return which cell is run under a file's name, the last if it was run again; 0 if none is."""
    text = "".join(linecache.getlines(file)).rstrip()
    return max((number for number, cell in enumerate(cells) if cell == text), default=0)


def _find_class(kind: type, cells: list[str]) -> tuple[str, int, list[str]]:
    """Return the cell that defines a class, the line there, and its lines; Python has no note.

    Its methods know their cell. Without any it is the last that has such a class, or none is.
    """
    codes = [one.__code__ for one in vars(kind).values() if inspect.isfunction(one)]
    codes = [one for one in codes if one.co_qualname.startswith(f"{kind.__name__}.")]
    name = re.compile(rf"\bclass {kind.__name__}\b")
    named = [number for number, cell in enumerate(cells) if name.search(cell)]
    number = _number_of(codes[0].co_filename, cells) if codes else max(named, default=0)
    for node in reversed(ast.parse("".join(cells[number : number + 1])).body):
        if isinstance(node, ast.ClassDef) and _is_of(node, kind, codes):
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            lines = cells[number].split("\n")[first - 1 : node.end_lineno]
            return f"<In[{number}]>", first, [f"{line}\n" for line in lines]
    raise OSError("no cell defines this class")


def _is_of(node: ast.ClassDef, kind: type, codes: list[CodeType]) -> bool:
    """Return whether a definition is that of a class as it is now, and not of another."""
    own, body, here = vars(kind), list[Any](node.body), vars(sys.modules["__main__"])
    for one in body:
        with contextlib.suppress(ValueError, AttributeError):  # it has no value, or no plain one
            written = ast.literal_eval(one.value)
            there = own.get(ast.unparse(one).split()[0].rstrip(":"), written)
            if type(there) in (*PLAIN, tuple, list) and there != written:
                return False
    fields = {ast.unparse(one.target) for one in body if isinstance(one, ast.AnnAssign)}
    same = [here.get(one.__name__) is one for one in kind.__bases__ if one.__module__ == "__main__"]
    same += [node.lineno <= code.co_firstlineno <= (node.end_lineno or 0) for code in codes]
    return node.name == kind.__name__ and fields == {*inspect.get_annotations(kind)} and all(same)


def _names(text: str, bodies: bool) -> list[str]:
    """Return the global names that a text uses: all of them, or but for the bodies of functions."""
    found, tables = set[str](), [symtable.symtable(text, "<cell>", "exec")]
    for table in tables:
        for symbol in table.get_symbols():
            if symbol.is_global() or (symbol.is_referenced() and table.get_type() == "module"):
                found.add(symbol.get_name())
        for one in table.get_children():  # of a comprehension, too, which binds no name
            if (
                bodies
                or one.get_type() != "function"
                or one.get_name() not in table.get_identifiers()
            ):
                tables.append(one)
    return sorted(found)


def _submodules(text: str, here: Mapping[str, Any]) -> Iterator[str]:
    """Yield the modules that some text reaches through others: `xml` alone has no `etree`."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute):
            first, _, rest = ast.unparse(node).partition(".")
            module = here.get(first)
            if isinstance(module, ModuleType) and f"{module.__name__}.{rest}" in sys.modules:
                yield f"{module.__name__}.{rest}"
