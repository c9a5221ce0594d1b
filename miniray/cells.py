"""The text of a notebook's function, which goes along where others have a module to import.

A function goes as its own text, with that of every function and class of the notebook that it
names, the imports of what else it names, and constants. Anything else that it names stays here, and
is refused by its name. On the other side the text is run in `__main__`, so that a class is called
the same on both.
"""

import ast
import builtins
import contextlib
import inspect
import linecache
import sys
from collections.abc import Iterable
from typing import Any

from miniray.constants import attribute, bind
from miniray.definitions import FUTURE, Node, find_definition, names_in
from miniray.work_fn import main_module

TEXT_CHARS_MAX = 1024 * 1024
NO_CELL = "<notebook>"

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
    return _in_order(pieces)


def _in_order(pieces: dict[str, Piece]) -> list[Piece]:
    """Return what binds names so that each comes after what its own statement looks at.

    A class's methods may name what derives from it, or what is made of it.
    """
    ordered = dict[str, Piece]()
    needs = {one: {*names_in(*pieces[one][3:])[0]} & pieces.keys() - {one} for one in pieces}
    while left := [name for name in pieces if name not in ordered]:
        name = next((one for one in left if needs[one] <= ordered.keys()), left[0])
        _, file, line, is_future, text = pieces[name]
        if file == NO_CELL and (of := [ordered[one] for one in sorted(needs[name] & {*ordered})]):
            text += f"  # of {of}"  # and it is made anew when they are
        ordered[name] = name, file, line, is_future, text
    return [*ordered.values()]


def define(pieces: Iterable[Iterable[Any]]) -> None:
    """Run in `__main__` what another process collected, but for what is there already."""
    for name, file, line, is_future, text in pieces:
        if _defined.get(name) != (piece := (name, file, line, is_future, text)):
            _show_in_tracebacks(file, line, text)
            code = compile("\n" * (line - 1) + text, file, "exec", FUTURE * is_future, True)
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
    if hasattr(builtins, name) and attribute(value, "__wrapped__", value) is getattr(
        builtins, name
    ):
        return  # IPython wraps open
    try:
        definition = _definition_of(name, value, path)
        _, needed, perhaps, dotted = names_in(*definition[2:])
    except LookupError as error:
        raise _refuse(path, *error.args) from None
    except (RecursionError, SyntaxError):
        raise _refuse(path, "no text makes it: it may hold itself", "make it within") from None
    for one in perhaps:
        with contextlib.suppress(TypeError):
            _add(one, path, pieces)
    for one in needed:
        _add(one, path, pieces)
    for first, _, rest in (one.partition(".") for one in dotted):
        module = f"{attribute(here.get(first), '__name__')}.{rest}"
        if module in sys.modules:  # `xml` alone has no `etree`
            pieces[module] = module, NO_CELL, 1, False, f"import {module}"
    pieces[name] = name, *definition


def _definition_of(name: str, value: Any, path: tuple[str, ...]) -> tuple[str, int, bool, str]:
    """Return the file, the line and the text that bind a name here."""
    if attribute(value, "__module__") == "__main__" and attribute(value, "__qualname__") == name:
        node, definition = find_definition(value)
        _check(value, node, path)
        return definition
    return NO_CELL, 1, False, bind(name, value)


def _check(value: Any, node: Node, path: tuple[str, ...], scope: Any = None) -> None:
    """Refuse what is not, or not any more, what its text makes."""
    here, layers, parts = vars(sys.modules["__main__"]), list[Any](), dict[str, tuple[Any, Any]]()
    inner, own = inspect.unwrap(value, stop=layers.append), {**(scope or vars(value))}
    if len(layers) > len(node.decorator_list) or attribute(value, "_clear_cache"):  # singledispatch
        raise _refuse(path, "there is more to it than its def", "decorate it there, or import it")
    if isinstance(node, ast.ClassDef):
        for part, base in zip(node.bases, value.__bases__, strict=False):
            if base.__module__ == "__main__":  # not NamedTuple's
                parts[ast.unparse(part)] = part, base
        for one in node.body:
            for target in getattr(one, "targets", [getattr(one, "target", one)]):
                name = one.name if isinstance(one, Node) else ast.unparse(target)
                now = own.get(name, own.get(f"_{node.name.lstrip('_')}{name}", property()))
                now = own.get("_field_defaults", {}).get(name, now)  # a NamedTuple's
                is_plain = hasattr(type(now), "__get__") == inspect.isfunction(now)  # no property
                if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef):
                    _check(inspect.unwrap(attribute(now, "__func__", now)), one, path, own)
                elif is_plain and value not in type(now).__mro__:  # an Enum's member
                    parts[name] = getattr(one, "value", one), now  # the last counts
    elif attribute(attribute(inner, "__code__"), "co_name") == node.name:  # no decorator's
        written = [*node.args.defaults, *filter(None, node.args.kw_defaults)]
        held = (*(inner.__defaults__ or ()), *(inner.__kwdefaults__ or {}).values())
        for part, one in zip(written, held, strict=False):
            parts[f"default {ast.unparse(part)}"] = part, one
    for name, (part, now) in parts.items():
        of = getattr(part, "id", "")
        made = {**own, name: here.get(name, now)}.get(of, here.get(of, now))
        with contextlib.suppress(Exception):
            (made,) = {ast.literal_eval(part)}  # nothing that changes
        with contextlib.suppress(LookupError, RecursionError):
            if now is made or bind("", now) == bind("", made):
                continue
        raise _refuse(path, f"its {name} is another by now", "run its cell again")


def _refuse(path: tuple[str, ...], problem: str, remedy: str) -> TypeError:
    return TypeError(f"cannot send {', which names '.join(path)}: {problem}; {remedy}")
