"""The text that makes a notebook's constant again: what cannot change, and names for types.

What cannot change is what Python hashes by its value: a number, a text, a Path, a date, an Enum's
member, a frozen dataclass, a tuple of these. Each tells `pickle` by which call it is made again,
and here that call is written down. What equals nothing but itself is no constant.
"""

import cmath
import contextlib
import copyreg
import functools
import sys
from collections import namedtuple
from types import FunctionType, ModuleType
from typing import Any, NewType, TypeVar

PLAIN = (type(None), bool, int, float, complex, str, bytes)

# `__slotnames__` is what `copyreg` has noted there.
_BARE = {*vars(namedtuple("_BARE", "")), "__slotnames__"}


def bind(name: str, value: Any) -> str:
    """Return the statements that give a name of `__main__` this value.

    Raises LookupError(problem, remedy) for a value that stays here.
    """
    imports = dict[str, None]()
    expression = _write(value, imports, name)
    return "\n".join([*imports, f"{name} = {expression}"])


def is_made_by_a_call(value: Any) -> bool:
    """Return whether this is a NewType, or a class of `namedtuple` to which nothing was added."""
    own = vars(value) if isinstance(value, type) and issubclass(value, tuple) else {}
    return type(value) is NewType or ("_fields" in own and {*own} - {*own["_fields"]} <= _BARE)


def made(function: Any, args: Any, state: Any) -> Any:
    """Return what a call makes, in this state."""
    value = function(*args)
    getattr(value, "__setstate__", getattr(value, "__dict__", {}).update)(state)
    return value


def _write(value: Any, imports: dict[str, None], own: str = "", is_part: bool = False) -> str:
    """Return the expression that makes a value, and add the imports that it needs."""
    kind = type(value)
    if kind in (float, complex) and not cmath.isfinite(value):
        return f'{kind.__name__}("{value}")'
    if kind in PLAIN:
        return hex(value) if kind is int else repr(value)
    if kind is tuple or (is_part and kind in (list, dict)):
        parts = value.items() if kind is dict else value
        items = "".join(f"{_write(part, imports, is_part=is_part)}," for part in parts)
        return f"({items})" if kind is tuple else f"{kind.__name__}(({items}))"
    if statement := _import(value):
        imports[statement] = None
        return statement.rpartition(" ")[2]
    called = getattr(value, "__qualname__", getattr(value, "__name__", own))
    if called != own and vars(sys.modules["__main__"]).get(called) is value:
        return str(called)
    function, args, kwargs, is_part = _call_of(value)
    items = "".join(f"{_write(arg, imports, is_part=is_part)}, " for arg in args)
    items += "".join(f"{key}={_write(arg, imports)}, " for key, arg in kwargs.items())
    return f"{_write(function, imports)}({items})"


def _import(value: Any) -> str:
    """Return the statement that imports a module, or what stands in one; else nothing."""
    if isinstance(value, ModuleType):
        return f"import {value.__name__} as _{value.__name__.replace('.', '_')}"
    where = str(getattr(value, "__module__", type(value).__module__))
    for module in (where.partition("._")[0], where, "types"):  # not `pathlib._local`
        there = getattr(sys.modules.get(module), "__dict__", {})
        for name in (getattr(value, "__name__", None), *there):
            if there.get(name) is value and module != "__main__":
                return f"from {module} import {name} as _{module.replace('.', '_')}_{name}"
    return ""


def _call_of(value: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any], bool]:
    """Return what makes a value again: a function, what it takes, and if lists of that are its own.

    Raises LookupError if nothing does, or it would be another.
    """
    kind = type(value)
    if kind is functools.partial and not vars(value):
        return functools.partial, (value.func, *value.args), value.keywords, False
    if kind is TypeVar:
        named = ("bound", "covariant", "contravariant")
        options = {name: getattr(value, f"__{name}__") for name in named}
        return TypeVar, (value.__name__, *value.__constraints__), options, False
    if kind is NewType:
        return NewType, (value.__name__, value.__supertype__), {}, False
    if is_made_by_a_call(value):
        fields, defaults = (vars(value)[name] for name in ("_fields", "_field_defaults"))
        options = {"defaults": (*defaults.values(),), "module": value.__module__}
        return namedtuple, (value.__name__, fields), options, False
    with contextlib.suppress(Exception):  # a class of the user's may do anything
        # The first is a tensor's. A logger is the same wherever it has its name.
        is_one = hash(value) in (id(value), object.__hash__(value)) and kind.__module__ != "logging"
        reduce: Any = copyreg.dispatch_table.get(kind, lambda one: one.__reduce_ex__(2))
        if not is_one and type(call := reduce(value)) is tuple and call[0] is not getattr:
            function, args, state, *items = *call, None  # what has items changes in place
            if not any(items):
                made_by = (function, args) if state is None else (made, (function, args, state))
                return *made_by, {}, True
    raise _stays(value)


def _stays(value: Any) -> LookupError:
    module, called = (getattr(value, one, None) for one in ("__module__", "__qualname__"))
    if module == "__main__" and isinstance(called, str):
        known = "a lambda" if "<lambda>" in called else called
        if called in vars(sys.modules[module]):
            known += f", and {called} is something else by now"
        return LookupError(f"it is {known}", "write it with def, at the top of a cell")
    if isinstance(value, FunctionType | type):
        return LookupError(f"it is not in {module} any more", "import or make it anew")
    kind = type(value).__name__
    problem = f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind} stays here"
    return LookupError(problem, "pass it as an argument, send it, or make it within")
