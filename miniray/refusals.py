"""What cannot be sent, and the call that makes of it what can."""

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime
from typing import Any


class Unsendable(Exception):
    """A value cannot be sent; each level on the way out adds its part of the path."""

    def __init__(self, reason: str) -> None:
        self.reason, self.path = reason, ""


def way_out(value: Any) -> str:
    """Return the call that turns a value into what can be sent, or what that would be."""
    return next((call for fits, call in _WAYS_OUT if fits(value)), _WHAT_CAN)


def full_name(kind: type) -> str:
    """Return a type's name with its module, but for Python's own types."""
    name = kind.__qualname__
    return name if kind.__module__ == "builtins" else f"{kind.__module__}.{name}"


# The first that fits is it.
_WAYS_OUT: tuple[tuple[Callable[[Any], Any], str], ...] = (
    (lambda it: isinstance(it, str), "call str() first"),
    (lambda it: isinstance(it, int), "call int() first"),
    (lambda it: isinstance(it, float), "call float() first"),
    (lambda it: isinstance(it, bytes | bytearray | memoryview), "call bytes() first"),
    (lambda it: isinstance(it, tuple), "call tuple() first"),
    (lambda it: full_name(type(it)) == "numpy.void", "call .item() first"),
    (lambda it: hasattr(type(it), "__dataclass_fields__"), "decorate it with @dataclass as well"),
    (lambda it: hasattr(type(it), "model_dump"), "call .model_dump() first"),
    (lambda it: hasattr(type(it), "__attrs_attrs__"), "call attrs.asdict() first"),
    (lambda it: hasattr(type(it), "to_pydatetime"), "call .to_pydatetime() first"),
    (lambda it: hasattr(type(it), "to_numpy"), "call .to_numpy() first"),
    (lambda it: hasattr(type(it), "to_dict"), "call .to_dict() first"),
    (lambda it: hasattr(type(it), "state_dict"), "call .state_dict() first"),
    (lambda it: isinstance(it, Mapping), "call dict() first"),
    (lambda it: hasattr(type(it), "__array__"), "call numpy.asarray() first"),
    (lambda it: isinstance(it, datetime), "call .isoformat() first"),
    (lambda it: isinstance(it, os.PathLike), "call os.fspath() first"),
    (lambda it: hasattr(type(it), "as_integer_ratio"), "call .as_integer_ratio() first"),
    (lambda it: isinstance(it, Iterator | Collection), "call list() first"),
    (lambda it: type(it).__name__.endswith("Namespace"), "call vars() first"),
    (callable, "send its name"),
)
_WHAT_CAN = "send plain values, containers, arrays, tensors, or a dataclass of these"
