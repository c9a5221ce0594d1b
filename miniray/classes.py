"""Dataclasses, NamedTuples and Enums: found by name on the other side, filled in without a call.

A class goes as "package.module:Class.Nested". Whoever receives that looks among the modules that it
has imported already, imports nothing, and takes nothing but a class that is what the mark says, has
this name and these fields. No `__init__`, `__post_init__`, `__new__` or `__setattr__` of it runs.
"""

import dataclasses
import enum
import functools
import sys
from pathlib import Path
from types import MemberDescriptorType, ModuleType, WrapperDescriptorType
from typing import Any

from miniray.refusals import Unsendable

DATACLASS, NAMED_TUPLE, ENUM = "dataclass", "namedtuple", "enum"
BY_FIELD = (DATACLASS, NAMED_TUPLE)
NAME_CHARS_MAX = 100
_MAIN = ("__main__", "__mp_main__")  # as multiprocessing calls it in a process that it spawned
# `Box[int](...)` has the first; it means nothing at run time.
_NO_STATE = ("__orig_class__",)


class NotHere(Exception):
    """A message is in order, but what it names is not there in this process."""


def mark_of(kind: type) -> str | None:
    """Return by which mark an instance of a class goes; None if it is no such class."""
    if issubclass(type(kind), enum.EnumType):
        return ENUM
    if "__dataclass_fields__" in kind.__dict__:  # a subclass that is not decorated inherits it
        return DATACLASS
    if issubclass(kind, tuple) and type(getattr(kind, "_fields", None)) is tuple:
        return NAMED_TUPLE
    return None


def take_apart(mark: str, value: Any) -> list[Any]:
    """Return the name of a value's class, and its fields or, of an Enum, the member's name.

    Raises Unsendable for an instance that could not be built again.
    """
    kind: Any = type(value)
    name, way_out = name_of(kind), _WAYS_OUT[mark]
    if _find(name) is not kind:
        if "<locals>" in name:
            raise Unsendable(f"{name} is defined within a function; move it out, or {way_out}")
        raise Unsendable(f"its class is not what {name} leads to now; make it again, or {way_out}")
    if reason := _obstacle(kind, mark):
        raise Unsendable(f"{reason}; {way_out}")
    if mark == ENUM:
        if kind.__members__.get(value._name_) is not value:
            raise Unsendable(f"{value!r} is no single member of {name}; {way_out}")
        return [name, value._name_]
    if extra := _extra_state(value, fields := _fields_of(kind, mark)):
        raise Unsendable(f"{name} holds {extra!r}, which is no field; make it one, or {way_out}")
    if mark == NAMED_TUPLE:
        if tuple.__len__(value) != len(fields):
            raise Unsendable(f"{name} has {len(fields)} fields and not as many items; {way_out}")
        return [name, dict(zip(fields, tuple.__iter__(value), strict=True))]
    try:
        return [name, {field: getattr(value, field) for field in fields}]
    except AttributeError as error:
        raise Unsendable(f"{name} lacks a field: {error}") from error


_WAYS_OUT = {
    DATACLASS: "send its dataclasses.asdict()",
    NAMED_TUPLE: "call tuple() first",
    ENUM: "send its .value",
}


def build(mark: str, name: str, content: Any) -> Any:
    """Return the instance that `take_apart` took apart.

    Raises NotHere if this process has no such class.
    """
    kind = _find(name)
    if kind is None:
        raise NotHere(_why_not_found(name))
    if mark_of(kind) != mark:
        raise NotHere(f"{_quote(name)} is no {mark} in this process; the sides' code differs")
    if reason := _obstacle(kind, mark):
        raise NotHere(reason)
    if mark == ENUM:
        member = kind.__members__.get(content)
        if member is None:
            raise NotHere(f"{_quote(name)} has no {_quote(content)} here; the sides' code differs")
        return member
    fields = _fields_of(kind, mark)
    if content.keys() != set(fields):
        here, there = ", ".join(fields), ", ".join(content)
        raise NotHere(f"{_quote(name)} has the fields {here!r} here, and {_quote(there)} there")
    if mark == NAMED_TUPLE:
        return tuple.__new__(kind, [content[field] for field in fields])
    instance: Any = object.__new__(kind)
    for field in fields:
        object.__setattr__(instance, field, content[field])
    return instance


def name_of(kind: type) -> str:
    """Return a class's name, as other processes find it."""
    module = main_name() if kind.__module__ in _MAIN else kind.__module__
    return f"{module}:{kind.__qualname__}"


def main_name() -> str:
    """Return the name by which other processes import what runs as `__main__` in this one."""
    main = sys.modules["__main__"]
    if (spec := getattr(main, "__spec__", None)) is not None:  # python -m
        return str(spec.name)
    path = getattr(main, "__file__", None)
    return Path(path).stem if path and path[0] != "<" else "__main__"


def has_builtin_equality(kind: Any) -> bool:
    """Return whether hash and comparison of a class are Python's own, and no code of a user's."""
    is_hash = type(kind.__hash__) is WrapperDescriptorType or kind.__hash__ is enum.Enum.__hash__
    return is_hash and type(kind.__eq__) is WrapperDescriptorType


def _find(name: str) -> Any:
    """Return the class of this name, or None; nothing is imported and nothing run to find it."""
    module, _, path = name.partition(":")
    places = [sys.modules["__main__"]] if module == main_name() else []
    for place in (*places, sys.modules.get(module)):
        found: Any = place
        for part in path.split("."):
            found = _own(found).get(part)
            if found is None:
                break
        if issubclass(type(found), type) and name_of(found) == name:
            return found
    return None


def _own(place: Any) -> Any:
    """Return what a module or a class has itself; no lazy module and no metaclass is asked."""
    if issubclass(type(place), ModuleType):
        return object.__getattribute__(place, "__dict__")
    return type.__getattribute__(place, "__dict__") if issubclass(type(place), type) else {}


def _why_not_found(name: str) -> str:
    module, _, path = name.partition(":")
    if module in _MAIN:
        return (
            f"{_quote(path)} is defined in the other side's console or notebook, which this "
            "process does not have; name it in the function that the notebook starts or calls "
            "here, an annotation will do, or put it into a module that both import"
        )
    if module != main_name() and module not in sys.modules:
        return (
            f"{_quote(name)} is not known here: this process has not imported {_quote(module)}; do "
            "that in the module of its work function, or before it forks"
        )
    return f"{_quote(name)} is not known here; the sides' code differs"


@functools.lru_cache(256)
def _obstacle(kind: Any, mark: str) -> str | None:
    """Return why instances of a class cannot be built without running code of it."""
    name = kind.__qualname__
    if mark == ENUM:
        return None
    if _static(kind, "__del__") is not None:
        return f"{name} has a __del__, which would run on what another process sent"
    if mark == DATACLASS:
        try:
            object.__new__(kind)
        except TypeError:
            return f"{name} is a dataclass on top of a built-in class"
        for field in _fields_of(kind, mark):
            attribute = _static(kind, field)
            if hasattr(type(attribute), "__set__") and type(attribute) is not MemberDescriptorType:
                return f"{name}.{field} is a {type(attribute).__name__}, which a field cannot be"
    return None


def _fields_of(kind: Any, mark: str) -> tuple[str, ...]:
    if mark == NAMED_TUPLE:
        return kind._fields  # type: ignore[no-any-return]  # checked by mark_of
    return tuple(field.name for field in dataclasses.fields(kind))


def _extra_state(value: Any, fields: tuple[str, ...]) -> str | None:
    """Return the name of something that an instance holds beside its fields."""
    kind: Any = type(value)
    for name in getattr(value, "__dict__", ()):
        is_cached = isinstance(_static(kind, name), functools.cached_property)  # found again
        if not is_cached and name not in fields and name not in _NO_STATE:
            return str(name)
    return next(
        (name for name in _slots(kind) if name not in fields and hasattr(value, name)), None
    )


@functools.lru_cache(256)
def _slots(kind: Any) -> tuple[str, ...]:
    slots = (vars(base).items() for base in kind.__mro__)
    return tuple(name for own in slots for name, slot in own if type(slot) is MemberDescriptorType)


def _static(kind: type, name: str) -> Any:
    """Return what a class, or a base of it, has under a name, as it stands there."""
    return next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)


def _quote(text: str) -> str:
    return repr(text[:NAME_CHARS_MAX])
