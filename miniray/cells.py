"""The text of a notebook's function, which goes along where others have a module to import.

A function goes as its own text, with that of every function and class of the notebook that it
names, the imports of what else it names, and constants: numbers, text, and tuples of them. Anything
else that it names stays here, and is refused by its name. On the other side the text is run in
`__main__`, so that a class is called the same on both.
"""

import ast
import builtins
import cmath
import contextlib
import inspect
import linecache
import sys
from collections.abc import Iterable
from types import FunctionType, MappingProxyType, ModuleType
from typing import Any

from miniray.definitions import FUTURE, Node, find_definition, names_in
from miniray.work_fn import main_module

TEXT_CHARS_MAX = 1024 * 1024
PLAIN = (type(None), bool, int, float, complex, str, bytes)

# What it binds; the cell, as tracebacks call it; the line there; whether annotations stay text; the
# text.
Piece = tuple[str, str, int, bool, str]

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
    here, ordered = vars(sys.modules["__main__"]), list[Piece]()
    bases = {one: [*map(id, getattr(here.get(one), "__bases__", ()))] for one in pieces}
    while pieces:  # a base's own methods may name what derives from it, which comes after it
        one = next(n for n in pieces if not any(id(here.get(m)) in bases[n] for m in pieces))
        ordered.append(pieces.pop(one))
    return ordered


def define(pieces: Iterable[Iterable[Any]]) -> None:
    """Run in `__main__` what another process collected, but for what is there already."""
    for name, file, line, is_future, text in pieces:
        if _defined.get(name) != (piece := (name, file, line, is_future, text)):
            _show_in_tracebacks(file, line, text)
            lines, flags = "\n" * (line - 1) + text, FUTURE * is_future
            code = compile(lines, file, "exec", flags, dont_inherit=True)
            try:
                exec(code, vars(sys.modules["__main__"]))
            except ImportError as error:
                raise ImportError(f"{error}; modules go along when a cluster starts") from error
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
    if hasattr(builtins, name) and inspect.unwrap(value) is getattr(builtins, name):
        return  # IPython wraps open
    text = _literal(value)
    if text := f"{name} = {text}" if text else _import(name, value):
        pieces[name] = name, "<notebook>", 1, False, text
        return
    called = getattr(value, "__qualname__", None)
    if (module := getattr(value, "__module__", None)) != "__main__" or not isinstance(called, str):
        if isinstance(value, FunctionType | type):
            raise _refuse(path, f"it is not in {module} any more", "import or make it anew")
        kind = type(value).__name__
        problem = f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind} stays here"
        raise _refuse(path, problem, "pass it as an argument, send it, or make it within")
    if here.get(called) is not value:
        known = "a lambda" if "<lambda>" in called else called
        problem = f"it is {known}" + (called in here) * f", and {called} is something else by now"
        raise _refuse(path, problem, "write it with def, at the top of a cell")
    if called != name:
        _add(called, above, pieces)
        pieces[name] = name, "<notebook>", 1, False, f"{name} = {called}"
        return
    try:
        node, definition = find_definition(value)
    except LookupError as error:
        raise _refuse(path, *error.args) from None
    _check(value, node, path)
    needed, perhaps, dotted = names_in(*definition[2:])
    for one in perhaps:
        with contextlib.suppress(TypeError):
            _add(one, path, pieces)
    for one in needed:
        _add(one, path, pieces)
    for first, _, rest in (one.partition(".") for one in dotted):
        module = f"{getattr(here.get(first), '__name__', '')}.{rest}"
        if module in sys.modules:  # `xml` alone has no `etree`
            pieces[module] = module, "<notebook>", 1, False, f"import {module}"
    pieces[name] = name, *definition


def _check(value: Any, node: Node, path: tuple[str, ...]) -> None:
    """Refuse what is not, or not any more, what its text makes."""
    here, layers = vars(sys.modules["__main__"]), list[Any]()
    inner = inspect.unwrap(value, stop=layers.append)
    is_registry = isinstance(getattr(value, "registry", None), MappingProxyType)  # singledispatch
    if is_registry or len(layers) > len(node.decorator_list):
        raise _refuse(path, "there is more to it than its def", "decorate it there, or import it")
    for one in node.body:
        if isinstance(one, ast.Assign | ast.AnnAssign) and isinstance(one.value, ast.Constant):
            name = ast.unparse(getattr(one, "target", getattr(one, "targets", [one])[0]))
            if type(now := vars(value).get(name, value)) in PLAIN and now != one.value.value:
                raise _refuse(path, f"its {name} is another by now", "run its cell again")
    if isinstance(node, ast.ClassDef):
        written, held = node.bases, value.__bases__
    else:
        written = [*node.args.defaults, *filter(None, node.args.kw_defaults)]
        held = (*(inner.__defaults__ or ()), *(inner.__kwdefaults__ or {}).values())
    for part, one in zip(written, held, strict=False):
        now = here.get(getattr(part, "id", ""), one)
        is_same = now is one or _literal(now) == _literal(one) != ""
        if not is_same and getattr(one, "__module__", "__main__") == "__main__":
            raise _refuse(path, f"its {ast.unparse(part)} is another by now", "run its cell again")


def _refuse(path: tuple[str, ...], problem: str, remedy: str) -> TypeError:
    return TypeError(f"cannot send {', which names '.join(path)}: {problem}; {remedy}")


def _literal(value: Any) -> str:
    """Return a number, a text, or a tuple of them as Python writes it; else nothing."""
    kind = type(value)
    if kind is tuple:
        items = [_literal(item) for item in value]
        return f"({''.join(f'{item},' for item in items)})" if all(items) else ""
    if kind in (float, complex) and not cmath.isfinite(value):
        return f'{kind.__name__}("{value}")'
    return hex(value) if kind is int else repr(value) if kind in PLAIN else ""


def _import(name: str, value: Any) -> str:
    """Return the import that binds a module, or what stands at the top of one; else nothing."""
    if isinstance(value, ModuleType):
        return f"import {value.__name__} as {name}"
    where = getattr(value, "__module__", None)
    if not isinstance(where, str) or where == "__main__" or where not in sys.modules:
        return ""
    there = vars(sys.modules[where])
    names = (name, getattr(value, "__name__", None), *there)
    called = next((one for one in names if isinstance(one, str) and there.get(one) is value), "")
    return f"from {where} import {called} as {name}" if called else ""
