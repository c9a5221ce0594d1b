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
from types import FunctionType, ModuleType
from typing import Any, TypeVar

PLAIN = (type(None), bool, int, float, complex, str, bytes)


def bind(name: str, value: Any) -> str:
    """Return the statements that give a name of `__main__` this value.

    Raises LookupError(problem, remedy) for a value that stays here.
    """
    expression = _write(value, imports := dict[str, None](), name)
    return "\n".join([*imports, f"{name} = {expression}"])


def attribute(value: Any, name: str, default: Any = None) -> Any:
    """Return an attribute of what may be the user's, whose `__getattr__` may raise anything."""
    with contextlib.suppress(Exception):
        return getattr(value, name, default)
    return default


def made(function: Any, args: Any, state: Any) -> Any:
    """Return what a call makes, in this state."""
    value = function(*args)
    (value.__setstate__ if hasattr(type(value), "__setstate__") else vars(value).update)(state)
    return value


def _write(value: Any, imports: dict[str, None], own: str = "", is_part: bool = False) -> str:
    """Return the expression that makes a value, and add the imports that it needs."""
    kind = type(value)
    if kind is complex or (kind is float and not cmath.isfinite(value)):
        return f'{_write(kind, imports)}("{value}")'
    if kind in PLAIN:
        return hex(value) if kind is int else repr(value)
    if kind is tuple or (is_part and kind in (list, dict)):
        parts = value.items() if kind is dict else value
        items = "".join(f"{_write(part, imports, is_part=is_part)}," for part in parts)
        return f"({items})" if kind is tuple else f"{_write(kind, imports)}(({items}))"
    if statement := _import(value):
        imports[statement] = None
        return statement.rpartition(" ")[2]
    called = str(attribute(value, "__qualname__", attribute(value, "__name__", own)))
    if (is_here := vars(sys.modules["__main__"]).get(called) is value) and called != own:
        return called
    if kind is TypeVar and not is_here:  # it would be a second one
        raise LookupError(f"its name is {called}", "give it that name here")
    function, args, kwargs, is_part = _call_of(value)
    items = "".join(f"{_write(arg, imports, is_part=is_part)}, " for arg in args)
    items += "".join(f"**{{{key!r}: {_write(arg, imports)}}}, " for key, arg in kwargs.items())
    return f"{_write(function, imports)}({items})"


def _import(value: Any) -> str:
    """Return the statement that imports a module, or what stands in one; else nothing."""
    if isinstance(value, ModuleType):
        return f"import {value.__name__} as _miniray_{value.__name__.replace('.', '_')}"
    where, name = (attribute(value, one) for one in ("__module__", "__name__"))
    where = str(where or type(value).__module__)
    for module in (where.partition("._")[0], where, "types"):  # not `pathlib._local`
        if module != "__main__" and attribute(sys.modules.get(module), str(name)) is value:
            return f"from {module} import {name} as _miniray_{module.replace('.', '_')}_{name}"
    return ""


def _call_of(value: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any], bool]:
    """Return what makes a value again: a function, what it takes, and if lists of that are its own.

    Raises LookupError if nothing does, or it would be another.
    """
    kind = type(value)
    if kind is functools.partial and not vars(value):
        return functools.partial, (value.func, *value.args), value.keywords, False
    more = [str(attribute(value, f"__{one}__", False)) for one in ("infer_variance", "default")]
    if kind is TypeVar and all(one.endswith(("False", ".NoDefault")) for one in more):
        named = ("bound", "covariant", "contravariant")
        options = {one: getattr(value, f"__{one}__") for one in named}
        return TypeVar, (value.__name__, *value.__constraints__), options, False
    with contextlib.suppress(Exception):  # a class of the user's may do anything
        is_one = hash(value) in (id(value), object.__hash__(value))  # the first is a tensor's
        reduce = attribute(copyreg, "dispatch_table").get(kind, lambda one: one.__reduce_ex__(4))
        is_one &= attribute((call := reduce(value))[0], "__module__") != "logging"  # `getLogger`'s
        if type(call) is str or (is_one and not any(call[2:])):  # it has a name, and no state
            module = sys.modules[kind.__module__.replace("__main__", "")]
            name = next(name for name, one in vars(module).items() if one is value)
            return getattr, (module, name), {}, False
        state, items = (*call, None)[2], call[3:]  # what has items changes in place
        is_known = hasattr(kind, "__setstate__") or type(state) in (dict, type(None))  # no slots
        if is_known and not (is_one or any(items)) and call[0] is not getattr:
            return *(call[:2] if state is None else (made, (*call[:2], state))), {}, True
    raise _stays(value)


def _stays(value: Any) -> LookupError:
    module, called = (attribute(value, one) for one in ("__module__", "__qualname__"))
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
