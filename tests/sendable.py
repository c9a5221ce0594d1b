"""Every kind of value that can be sent: an example of each, strategies for all, what is equal."""

import contextlib
import dataclasses
import math
from collections import Counter, OrderedDict, defaultdict
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from hypothesis import strategies as st

from tests.configs import (
    Access,
    Config,
    Data,
    Derived,
    Optimizer,
    Precision,
    Priority,
    Shape,
    Split,
)

numpy: Any = None
torch: Any = None
with contextlib.suppress(ImportError):  # the core's tests do without, under any Python
    import numpy
    import torch

BERLIN = ZoneInfo("Europe/Berlin")


def _state_dict() -> Any:
    made = OrderedDict(steps=3)
    made._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    return made


# Of each kind one, which travels the same way each time: tests/golden/values.txt has how.
EXAMPLES: dict[str, Any] = {
    "nan": math.nan,
    "infinities": [math.inf, -math.inf],
    "minus zero": -0.0,
    "int keys": {1: "a", -2: "b"},
    "other keys": {None: 0, True: 1, 1.5: 2, (1, "a"): 3, Split.TEST: 4, Shape(1): 5},
    "complex": complex(1.5, -0.0),
    "range": range(10, 0, -3),
    "slice": slice(None, 5, None),
    "set": {"one"},
    "frozenset": frozenset({(1, 2)}),
    "OrderedDict": OrderedDict([("b", 1), ("a", 2)]),
    "state_dict": _state_dict(),
    "Counter": Counter("aab"),
    "defaultdict": defaultdict(list, {"a": [1]}),
    "defaultdict of nothing": defaultdict(None, {1: 2}),
    "Path": Path("data/train"),
    "PurePosixPath": PurePosixPath("/a/../b"),
    "PureWindowsPath": PureWindowsPath("c:/x"),
    "date": date(2026, 11, 26),
    "time": time(9, 30, 0, 5),
    "time with zone": time(9, 30, tzinfo=timezone(timedelta(hours=2))),
    "datetime": datetime(2026, 11, 26, 9, 30),
    "datetime in UTC": datetime(2026, 11, 26, 9, 30, tzinfo=UTC),
    "datetime in Berlin, the second 2:30": datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=BERLIN),
    "timedelta": timedelta(days=-1, microseconds=3),
    "timezone": timezone(timedelta(hours=-5), "EST"),
    "ZoneInfo": BERLIN,
    "Decimal": Decimal("1.50"),
    "UUID": UUID("12345678123456781234567812345678"),
    "Enum": Precision.MIXED,
    "IntEnum": Priority.HIGH,
    "StrEnum": Split.TEST,
    "Flag": Access.READ,
    "nested Enum": Config.Nested.ONE,
    "NamedTuple": Shape(1, 2),
    "dataclass": Optimizer("adam"),
    "frozen dataclass with slots": Data(Path("x")),
    "generic dataclass": Derived[str](first=1, second="a"),
}

if torch is not None:
    EXAMPLES |= {
        "numpy scalar": numpy.float32(0.1),
        "numpy int": numpy.int64(-7),
        "numpy str": numpy.str_("é\0"),
        "numpy bytes": numpy.bytes_(b"a\0"),
        "numpy time": numpy.datetime64("2026-11-26T09", "ns"),
        "numpy dtype": numpy.dtype("<f4"),
        "torch.dtype": torch.bfloat16,
        "torch.device": torch.device("cuda:1"),
        "torch.Size": torch.Size([2, 3]),
    }

_texts = st.text(st.characters(codec=None), max_size=5)
_zones = (
    st.none()
    | st.just(UTC)
    | st.sampled_from([BERLIN, ZoneInfo("America/New_York")])
    | st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)))
)
_fixed = st.none() | st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)))
_integers = st.integers(-(10**40), 10**40)


def _foreign_keys() -> Any:
    """Return what numpy and torch have that equals itself."""
    if torch is None:
        return st.nothing()
    names = [torch.float32, torch.bool, torch.device("cpu"), torch.Size([]), torch.Size([2])]
    return st.sampled_from(names) | st.integers(0, 9).map(numpy.int16) | _texts.map(numpy.str_)


def _foreign() -> Any:
    if torch is None:
        return st.nothing()
    kinds = [numpy.dtype(name) for name in ("i1", "u8", "f2", "f4", "f8", "c16", "M8[s]")]
    numbers = st.sampled_from(kinds).flatmap(
        lambda dtype: st.binary(min_size=dtype.itemsize, max_size=dtype.itemsize).map(
            lambda raw: numpy.frombuffer(raw, dtype)[0]
        )
    )
    others = [numpy.True_, numpy.dtype("f8"), numpy.dtype("<U3")]
    return numbers | st.binary(max_size=3).map(numpy.bytes_) | st.sampled_from(others)


_always_equal = (
    st.none()
    | st.booleans()
    | _integers
    | _texts
    | st.binary(max_size=20)
    | st.dates()
    | st.datetimes(timezones=_zones)
    | st.times(timezones=_fixed)
    | st.timedeltas()
    | st.uuids()
    | _texts.filter(lambda text: "\0" not in text).map(Path)
    | st.builds(range, st.integers(-9, 9), st.integers(-9, 9), st.sampled_from([-2, 1, 3]))
    | st.sampled_from([*Precision, *Priority, *Split, *Access, Config.Nested.ONE])
    | _foreign_keys()
    | st.builds(Shape, _integers, _texts)
)
_scalars = (
    _always_equal
    | st.floats()
    | st.complex_numbers()
    | st.decimals()
    | _foreign()
    | st.just(BERLIN)
    | st.builds(slice, st.none() | _integers, st.none() | _integers)
)
keys = st.recursive(
    _always_equal | st.floats(allow_nan=False) | st.decimals(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)


def _containers(inner: Any) -> Any:
    dicts = st.dictionaries(_texts | st.just("$"), inner, max_size=4)
    any_dicts = dicts | st.dictionaries(keys, inner, max_size=4)
    return (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | any_dicts
        | st.sets(keys, max_size=4)
        | st.frozensets(keys, max_size=4)
        | any_dicts.map(OrderedDict)
        | any_dicts.map(Counter)
        | st.builds(defaultdict, st.sampled_from([None, int, list, dict]), any_dicts)
        | st.builds(Optimizer, inner, inner)
        | st.builds(Derived, first=inner, second=inner)
        | st.builds(Data, inner, inner)
        | st.builds(Shape, inner, inner)
    )


values = st.recursive(_scalars, _containers, max_leaves=20)


def same(ours: Any, theirs: Any) -> bool:
    """Compare values and types, at any depth: 1 is not True, a tuple is no list, nan is nan."""
    if type(ours) is not type(theirs):
        return False
    if torch is not None and isinstance(ours, torch.Tensor):
        return bool(ours.dtype == theirs.dtype and torch.equal(ours, theirs))
    if numpy is not None and isinstance(ours, numpy.ndarray):
        is_one = (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        return is_one and ours.tobytes() == theirs.tobytes()
    if numpy is not None and isinstance(ours, numpy.generic):
        is_text = ours.dtype.kind in "SU"
        return ours.dtype == theirs.dtype and (
            bool(ours == theirs) if is_text else ours.tobytes() == theirs.tobytes()
        )
    if isinstance(ours, dict):
        attributes = ("default_factory", "_metadata")
        return (
            _same_one_by_one(ours, theirs)
            and _same_one_by_one(ours.values(), theirs.values())
            and all(same(getattr(ours, one, 0), getattr(theirs, one, 0)) for one in attributes)
        )
    if isinstance(ours, set | frozenset):
        return ours == theirs and Counter(map(type, ours)) == Counter(map(type, theirs))
    if isinstance(ours, list | tuple):
        return _same_one_by_one(ours, theirs)
    if dataclasses.is_dataclass(ours):
        names = [field.name for field in dataclasses.fields(ours)]
        return all(same(getattr(ours, name), getattr(theirs, name)) for name in names)
    if isinstance(ours, datetime | time):
        return repr(ours) == repr(theirs) and ours.fold == theirs.fold
    if isinstance(ours, float | complex | Decimal | slice):  # their texts have -0.0 and nan
        return repr(ours) == repr(theirs)
    return bool(ours == theirs)


def _same_one_by_one(ours: Any, theirs: Any) -> bool:
    return len(ours) == len(theirs) and all(map(same, ours, theirs))
