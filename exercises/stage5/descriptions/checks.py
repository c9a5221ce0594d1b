"""What a description of a buffer may say."""

import contextlib
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from exercises.checking import expect, expect_raises

# What a check of descriptions needs of torch; the real one takes seconds to import.
TORCH = SimpleNamespace(
    int16=SimpleNamespace(itemsize=2),
    float32=SimpleNamespace(itemsize=4),
    bool=SimpleNamespace(itemsize=1),
    quint8=SimpleNamespace(itemsize=1),
    Storage=SimpleNamespace(itemsize=1),
    nn=SimpleNamespace(),
)


@contextlib.contextmanager
def _torch(stand_in: Any = TORCH) -> Iterator[None]:
    before = sys.modules.get("torch")
    sys.modules["torch"] = stand_in
    try:
        yield
    finally:
        del sys.modules["torch"]
        if before is not None:
            sys.modules["torch"] = before


def _spec(**changes: Any) -> dict[str, Any]:
    return {"type": "torch", "dtype": "int16", "shape": [2, 3], "nbytes": 12, **changes}


def _refused(answer: Any, spec: Any, words: str) -> None:
    """Expect a ProtocolError for what `words` says."""
    with _torch(), expect_raises(answer.errors.ProtocolError, when=f"for {words}"):
        got = answer.codec.check_spec(spec)
        expect(
            False,
            expected=f"ProtocolError for {words}",
            happened=f"{got!r} was returned for {words}",
        )


def check_plain(answer: Any) -> None:
    """call check_spec with honest descriptions: of a matrix, a scalar, an empty tensor, bytes"""
    for changes, expected in (
        ({}, 12),
        ({"dtype": "float32", "shape": [], "nbytes": 4}, 4),
        ({"dtype": "bool", "shape": [0, 7], "nbytes": 0}, 0),
        ({"type": "bytes", "dtype": None, "shape": [5], "nbytes": 5}, 5),
        ({"type": "bytes", "dtype": None, "shape": [0], "nbytes": 0}, 0),
    ):
        spec = _spec(**changes)
        words = f"for {spec['type']} of {spec['dtype']} and a shape of {spec['shape']}"
        try:
            with _torch():
                got = repr(answer.codec.check_spec(spec))
        except Exception as error:
            got = f"{type(error).__name__}: {error}"
        expect(got == repr(expected), expected=f"{expected} {words}", happened=f"{got} {words}")


def check_lies(answer: Any) -> None:
    """call check_spec with sizes that do not follow from shape and dtype"""
    for changes in (
        {"nbytes": 13},
        {"nbytes": 6},
        {"nbytes": 0},
        {"shape": [2**30, 2**30]},
        {"type": "bytes", "dtype": None, "shape": [5], "nbytes": 4},
    ):
        spec = _spec(**changes)
        _refused(answer, spec, f"{spec['nbytes']} bytes of {spec['shape']} x {spec['dtype']}")


def check_negative(answer: Any) -> None:
    """call check_spec with a shape of [-2, -3], 12 bytes of int16"""
    _refused(answer, _spec(shape=[-2, -3]), "a shape of [-2, -3]")


def check_huge(answer: Any) -> None:
    """call check_spec with shapes that are too large, and with 0 bytes"""
    _refused(answer, _spec(shape=[2**32, 2**32], nbytes=0), "a shape of [2**32, 2**32] in 0 bytes")
    _refused(answer, _spec(shape=[2**63, 0], nbytes=0), "a length of 2**63, in a shape of 0 bytes")


def check_types(answer: Any) -> None:
    """call check_spec with a shape and a size that are not ints"""
    _refused(answer, _spec(shape=[True, 6]), "a shape of [True, 6]")
    _refused(answer, _spec(shape=[2.0, 3]), "a shape of [2.0, 3]")
    _refused(answer, _spec(nbytes=12.0), "nbytes 12.0")
    _refused(answer, _spec(shape=[1], dtype="bool", nbytes=True), "nbytes True")


def check_kinds(answer: Any) -> None:
    """call check_spec with types that it does not know: pickle, numpy, 3"""
    for kind in ("pickle", "numpy", 3):
        _refused(answer, _spec(type=kind, dtype=None, shape=[5], nbytes=5), f"type {kind!r}")


def check_dtypes(answer: Any) -> None:
    """call check_spec with dtypes that are none: Storage, quint8, nn, int16.__class__"""
    for dtype, nbytes in (("Storage", 6), ("quint8", 6), ("nn", 6), ("int16.__class__", 12)):
        _refused(answer, _spec(dtype=dtype, nbytes=nbytes), f"dtype {dtype!r}")


def check_no_description(answer: Any) -> None:
    """call check_spec with what is no description at all: {}, [], 3, None, a shape of 5"""
    for spec in (
        {},
        [],
        3,
        None,
        "bytes",
        _spec(shape=5),
        _spec(shape=None),
        _spec(shape=["2"]),
        _spec(dtype=3),
    ):
        _refused(answer, spec, repr(spec))
    for field in ("type", "dtype", "shape", "nbytes"):
        spec = _spec()
        del spec[field]
        _refused(answer, spec, f"a description without {field!r}")


def check_without_torch(answer: Any) -> None:
    """call check_spec with a description of 5 bytes, where torch is not installed"""
    spec = {"type": "bytes", "dtype": None, "shape": [5], "nbytes": 5}
    try:
        with _torch(None):
            got = repr(answer.codec.check_spec(spec))
    except Exception as error:
        got = f"{type(error).__name__}: {error}"
    expect(got == "5", expected="5: bytes need no torch", happened=got)
