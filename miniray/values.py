"""What can be sent beyond JSON's values and buffers: a closed list, each type with its mark.

Such a value travels as {"$": MARK, "items": [...]}, and arrives as it was. The table below is the
whole list. What the items are is checked before anything is made of them.
"""

import re
import sys
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Collection, Sequence
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from functools import partial
from pathlib import Path, PosixPath, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple
from uuid import UUID

from miniray import classes, dtypes
from miniray.classes import DATACLASS, ENUM, NAMED_TUPLE, NotHere
from miniray.errors import ProtocolError
from miniray.header import quote
from miniray.refusals import Unsendable, full_name, way_out

# So many keys of one hash are a grid's corners; thousands make a dict take their number squared.
# (Who holds the key and is clever can slow a dict down with different hashes, too.)
SAME_HASH_MAX = 100
KEY_DEPTH_MAX = 100

_ZONE_NAME = re.compile(r"[\w+-]{1,40}(/[\w+-]{1,40}){0,3}", re.ASCII)

_NONE = type(None)
_INT, _TEXT = (int, _NONE), (str, _NONE)
_METADATA = (OrderedDict, dict, _NONE)
_ZONE = (timezone, "zoneinfo.ZoneInfo", _NONE)
_PLAIN_KEYS = frozenset({str, int, bool, type(None), bytes})
_FACTORIES = {kind.__name__: kind for kind in (list, dict, set, int, float, str, bool, tuple)}
_ANY_NUMBER = None


class Row(NamedTuple):
    """How the values of one type travel."""

    kind: Any  # the type; or the name of one whose package may not be imported
    mark: str
    items_of: Callable[[Any], Sequence[Any]]
    takes: Sequence[Any] | None  # of which type, or of one of which types, each item is
    make: Callable[..., Any]  # of the items


def take_apart(value: Any) -> tuple[str, Sequence[Any]]:
    """Return the mark of a value, and the items that it travels as.

    Raises Unsendable, with the way out, for a value that is not in the list.
    """
    row = _row_of(type(value))
    if row is None:
        raise Unsendable(f"{full_name(type(value))}; {way_out(value)}")
    return row.mark, row.items_of(value)


def put_together(mark: Any, items: list[Any]) -> Any:
    """Return the value that a mark and items stand for.

    Raises ProtocolError, or another error, for what `take_apart` cannot have returned, and NotHere
    for what this process does not have.
    """
    row = _BY_MARK.get(mark) if type(mark) is str else None
    if row is None:
        raise ProtocolError(f"an unknown mark {quote(mark)} in a message")
    if row.takes is not _ANY_NUMBER and not (
        len(items) == len(row.takes) and all(map(_is_a, items, row.takes))
    ):
        raise ProtocolError(f"a {mark} of something else in a message")
    return row.make(*items)


def _is_a(item: Any, wanted: Any) -> bool:
    kinds = wanted if type(wanted) is tuple else (wanted,)
    return any(kind is type(item) or kind == full_name(type(item)) for kind in kinds)


def make_dict(pairs: list[Any]) -> dict[Any, Any]:
    """Return the dict of pairs that another process sent."""
    keys = [key for key, _ in pairs]
    _check_received(keys)
    made = dict(pairs)
    if len(made) != len(keys):
        raise ProtocolError("a dict with equal keys in a message")
    return made


def _make_set(make: Callable[..., Any]) -> Callable[..., Any]:
    def made(*elements: Any) -> Any:
        _check_received(elements)
        if len(one := make(elements)) != len(elements):
            raise ProtocolError("a set with equal elements in a message")
        return one

    return made


def _elements(value: Collection[Any]) -> list[Any]:
    if reason := why_no_keys(value):
        raise Unsendable(f"{full_name(type(value))} with {reason}; call list() first")
    return list(value)


def _check_received(keys: Collection[Any]) -> None:
    if reason := why_no_keys(keys):
        raise ProtocolError(f"a dict or set in a message has {reason}")


def why_no_keys(keys: Collection[Any]) -> str | None:
    """Return why not all of these can be keys of one dict on the other side, if so.

    To hash and to compare them must run no code of a user's, and take a time that grows with their
    number, whatever they are; and each must equal itself when it arrives, unlike nan.
    """
    if not _PLAIN_KEYS.issuperset(map(type, keys)):
        for key in keys:
            if not _is_key(key, KEY_DEPTH_MAX):
                nan = ", a nan" if _is_key_type(type(key)) else ""
                return f"a key of {full_name(type(key))}{nan}"
    if len(keys) > SAME_HASH_MAX:
        ((_, most),) = Counter(map(hash, keys)).most_common(1)
        if most > SAME_HASH_MAX:
            return f"{most} keys of one hash"
    return None


def _is_key(key: Any, depth: int) -> bool:
    kind = type(key)
    if kind in _PLAIN_KEYS or kind is frozenset:  # its elements are looked at as they travel
        return True
    if _is_key_type(kind):
        return bool(key == key)
    mark = classes.mark_of(kind)
    if mark in (ENUM, NAMED_TUPLE) and not classes.has_builtin_equality(kind):
        return False
    if kind is tuple or mark == NAMED_TUPLE:
        return depth > 0 and all(_is_key(one, depth - 1) for one in tuple.__iter__(key))
    return mark == ENUM


def _is_key_type(kind: type) -> bool:
    row = _row_of(kind)
    return kind is float or (row is not None and row.kind in _KEYS)


def _row_of(kind: type) -> Row | None:
    row = _BY_KIND.get(kind) or _BY_KIND.get(full_name(kind))
    if row is None and (numpy := sys.modules.get("numpy")) is not None:
        if issubclass(kind, numpy.generic) and not issubclass(kind, numpy.void | numpy.object_):
            return _BY_KIND["numpy.generic"]
        if issubclass(kind, numpy.dtype):
            return _BY_KIND["numpy.dtype"]
    return row or _BY_KIND.get(classes.mark_of(kind))


def _of_defaultdict(value: Any) -> list[Any]:
    factory = value.default_factory
    name: Any = getattr(factory, "__name__", None)
    if factory is not None and _FACTORIES.get(name) is not factory:
        raise Unsendable(f"defaultdict whose factory is {factory!r}; call dict() first")
    return [name, dict(value)]


def _make_defaultdict(name: str | None, content: dict[Any, Any]) -> Any:
    factory = None if name is None else _FACTORIES[name]
    return defaultdict(factory, content)


def _of_ordered(value: Any) -> list[Any]:
    state = vars(value)
    if state.keys() - {"_metadata"}:
        raise Unsendable(f"OrderedDict with attributes {sorted(state)}; call dict() first")
    return [dict(value), state.get("_metadata")]


def _make_ordered(content: dict[Any, Any], metadata: Any) -> Any:
    made = OrderedDict(content)
    if metadata is not None:  # of a module's state_dict
        made._metadata = metadata  # type: ignore[attr-defined]
    return made


def _make_counter(content: dict[Any, Any]) -> Any:
    made: Counter[Any] = Counter()
    dict.update(made, content)
    return made


def _zone(value: Any) -> Any:
    if not _is_a(value.tzinfo, _ZONE):
        zone = full_name(type(value.tzinfo))
        call = "call .astimezone(datetime.timezone.utc) first"
        raise Unsendable(f"{full_name(type(value))} whose tzinfo is {zone}; {call}")
    return value.tzinfo


def _of_time(value: Any) -> list[Any]:
    return [value.replace(tzinfo=None, fold=0).isoformat(), value.fold, _zone(value)]


def _time_maker(kind: Any) -> Callable[..., Any]:
    return lambda text, fold, zone: kind.fromisoformat(text).replace(fold=fold, tzinfo=zone)


def _of_zone(value: Any) -> list[str]:
    if value.key is None or not _ZONE_NAME.fullmatch(value.key):
        raise Unsendable(f"ZoneInfo of the name {value.key!r}; take one of the database")
    return [value.key]


def _make_zone(name: str) -> Any:
    import zoneinfo

    if not _ZONE_NAME.fullmatch(name):
        raise ProtocolError("a ZoneInfo of no name in a message")
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, OSError, ValueError) as error:
        raise NotHere(f"this machine has no time zone {name!r}; install its tzdata") from error


def _make_timezone(offset: timedelta, name: str | None) -> timezone:
    return timezone(offset) if name is None else timezone(offset, name)


def _of_timezone(value: Any) -> list[Any]:
    offset, *name = value.__getinitargs__()  # with which it was made
    return [offset, name[0] if name else None]


def _of(*names: str) -> Callable[[Any], list[Any]]:
    return lambda value: [getattr(value, name) for name in names]


def _as_text(value: Any) -> list[str]:
    return [str(value)]


def _by_name(mark: str, content: type) -> tuple[Any, Any, Any]:
    take_apart, build = partial(classes.take_apart, mark), partial(classes.build, mark)
    return take_apart, (str, content), build


_ROWS = (
    Row(complex, "complex", _of("real", "imag"), (float, float), complex),
    Row(range, "range", _of("start", "stop", "step"), (int, int, int), range),
    Row(slice, "slice", _of("start", "stop", "step"), (_INT, _INT, _INT), slice),
    Row(set, "set", _elements, _ANY_NUMBER, _make_set(set)),
    Row(frozenset, "frozenset", _elements, _ANY_NUMBER, _make_set(frozenset)),
    Row(OrderedDict, "OrderedDict", _of_ordered, (dict, _METADATA), _make_ordered),
    Row(Counter, "Counter", lambda value: [dict(value)], (dict,), _make_counter),
    Row(defaultdict, "defaultdict", _of_defaultdict, (_TEXT, dict), _make_defaultdict),
    Row(PosixPath, "Path", _as_text, (str,), Path),
    Row(PurePosixPath, "PurePosixPath", _as_text, (str,), PurePosixPath),
    Row(PureWindowsPath, "PureWindowsPath", _as_text, (str,), PureWindowsPath),
    Row(date, "date", _as_text, (str,), date.fromisoformat),
    Row(datetime, "datetime", _of_time, (str, int, _ZONE), _time_maker(datetime)),
    Row(time, "time", _of_time, (str, int, _ZONE), _time_maker(time)),
    Row(timedelta, "timedelta", _of("days", "seconds", "microseconds"), (int,) * 3, timedelta),
    Row(timezone, "timezone", _of_timezone, (timedelta, _TEXT), _make_timezone),
    Row("zoneinfo.ZoneInfo", "ZoneInfo", _of_zone, (str,), _make_zone),
    Row(Decimal, "Decimal", _as_text, (str,), Decimal),
    Row(UUID, "UUID", _as_text, (str,), UUID),
    Row("numpy.generic", "numpy.scalar", dtypes.of_scalar, (str, str), dtypes.make_scalar),
    Row("numpy.dtype", "numpy.dtype", dtypes.of_numpy_dtype, (str,), dtypes.make_numpy_dtype),
    Row("torch.dtype", "torch.dtype", dtypes.of_torch_dtype, (str,), dtypes.make_torch_dtype),
    Row("torch.device", "torch.device", _as_text, (str,), dtypes.make_device),
    Row("torch.Size", "torch.Size", list, _ANY_NUMBER, dtypes.make_size),
    Row(DATACLASS, DATACLASS, *_by_name(DATACLASS, dict)),
    Row(NAMED_TUPLE, NAMED_TUPLE, *_by_name(NAMED_TUPLE, dict)),
    Row(ENUM, ENUM, *_by_name(ENUM, str)),
)
# What a dict may have as keys and a set hold, besides plain values, tuples and frozensets of these,
# and Enums and NamedTuples.
_KEYS = {
    *(complex, range, PosixPath, PurePosixPath, PureWindowsPath, Decimal, UUID),
    *(date, datetime, time, timedelta, timezone),
    *("numpy.generic", "torch.dtype", "torch.device", "torch.Size"),
}
MARKS = [row.mark for row in _ROWS]
_BY_KIND = {row.kind: row for row in _ROWS}
_BY_MARK = {row.mark: row for row in _ROWS}
