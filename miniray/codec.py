"""Turn a value into a JSON tree and raw buffers, and back.

A tree is what JSON can say. Everything else becomes an object with the key "$":

    {"$": "tuple", "items": [...]}      a tuple
    {"$": "dict", "items": [[k, v]]}    a dict that itself has the key "$"
    {"$": "buffer", "index": 0}         the message's buffer number 0

A buffer is bytes, a bytearray, a numpy array, a torch tensor or a SharedTensor. Its spec
`{"type", "dtype", "shape", "nbytes"}` travels in the header, its bytes behind the header.
"""

import ctypes
import functools
import math
import re
import reprlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from miniray.errors import ProtocolError
from miniray.header import REASON_CHARS_MAX
from miniray.shared_tensor import SharedTensor

DEPTH_MAX = 100
DIMENSIONS_MAX = 64
# Smaller buffers are described each on its own: else a few bytes could claim a lot of memory.
REPEATED_BYTES_MIN = 64

Tree = Any
Spec = dict[str, Any]

# What a hostile tree provokes; anything else is what a signal's handler has raised.
_PROVOKED = (
    *(ArithmeticError, AssertionError, AttributeError, BufferError, ImportError),
    *(LookupError, MemoryError, RuntimeError, TypeError, ValueError),
)
_PLAIN = frozenset({str, int, float, bool, type(None)})
_ONLY_STR = {str}
_NUMPY_DTYPE = re.compile(r"[<>|]([biufc]\d{1,2}|[SU]\d{1,6}|[mM]8(\[\d{0,4}[a-zA-Z]{1,2}\])?)")
_TORCH_DTYPE = re.compile(r"(bool|u?int\d+|b?float\d\w*|complex\d+)")


class Buffer(NamedTuple):
    """Bytes to send as they lie in memory; `data` keeps their owner alive, or is a SharedTensor."""

    spec: Spec
    data: Any


class _Unsendable(Exception):
    """A value cannot be sent; each level on the way out adds its part of the path."""

    def __init__(self, reason: str) -> None:
        self.reason, self.path = reason, ""


def encode(message: Any) -> tuple[Tree, list[Buffer]]:
    """Return the JSON tree of a message and the buffers it refers to.

    Raises TypeError, naming the path to the culprit, for what cannot be sent.
    """
    buffers: list[Buffer] = []
    try:
        return _encode(message, buffers, DEPTH_MAX), buffers
    except _Unsendable as error:
        raise TypeError(f"cannot send message{error.path}: {error.reason}") from None


def _encode(value: Any, buffers: list[Buffer], depth: int) -> Tree:
    # One pass in C finds out that a container holds nothing but plain values.
    kind = type(value)
    if kind is dict and depth:
        if not _ONLY_STR.issuperset(map(type, value)):
            key = next(key for key in value if type(key) is not str)
            raise _Unsendable(f"dict key {key!r} is {_name_of(key)}; keys must be str")
        if not _PLAIN.issuperset(map(type, value.values())):
            value = _encode_dict(value, buffers, depth - 1)
        return {"$": "dict", "items": [*map(list, value.items())]} if "$" in value else value
    if kind in _PLAIN:
        return value
    if depth == 0:
        raise _Unsendable(f"nested deeper than {DEPTH_MAX} levels, or contains itself")
    if kind is list or kind is tuple:
        if not _PLAIN.issuperset(map(type, value)):
            value = _encode_list(value, buffers, depth - 1)
        return value if kind is list else {"$": "tuple", "items": value}
    buffers.append(_buffer_of(value))
    return {"$": "buffer", "index": len(buffers) - 1}


def _encode_dict(value: dict[str, Any], buffers: list[Buffer], depth: int) -> Tree:
    tree = {}
    for key, item in value.items():
        try:
            tree[key] = _encode(item, buffers, depth)
        except _Unsendable as error:
            error.path = f'["{key}"]{error.path}'
            raise
    return tree


def _encode_list(value: Iterable[Any], buffers: list[Buffer], depth: int) -> Tree:
    tree = []
    for index, item in enumerate(value):
        try:
            tree.append(_encode(item, buffers, depth))
        except _Unsendable as error:
            error.path = f"[{index}]{error.path}"
            raise
    return tree


def _buffer_of(value: Any) -> Buffer:
    """Return the buffer that carries one value which JSON cannot."""
    kind = type(value)
    if kind is bytes or kind is bytearray:
        return Buffer(_spec(kind.__name__, None, (len(value),), len(value)), value)
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _buffer_of_tensor(value, torch)
    if numpy is not None and kind is numpy.ndarray:
        if not _NUMPY_DTYPE.fullmatch(value.dtype.str):
            raise _Unsendable(f"numpy array of dtype {value.dtype}; send numbers, bool or str")
        data = numpy.ascontiguousarray(value)
        spec = _spec("numpy", value.dtype.str, value.shape, value.nbytes)
        return Buffer(spec, data.reshape(-1).view("u1") if value.nbytes else b"")
    if kind is SharedTensor:
        return Buffer({**_tensor_spec(value.tensor), "type": "shared"}, value)
    raise _Unsendable(f"{_name_of(value)}{_way_out(value, numpy)}")


def _buffer_of_tensor(tensor: Any, torch: Any) -> Buffer:
    if type(tensor) is not torch.Tensor and type(tensor) is not torch.nn.Parameter:
        way_out = "call .full_tensor() first" if hasattr(tensor, "full_tensor") else "convert it"
        raise _Unsendable(f"{_name_of(tensor)} is a tensor subclass; {way_out}")
    if not tensor.is_cpu:
        raise _Unsendable(f"a tensor on {tensor.device}; call .cpu() first")
    if tensor.layout != torch.strided:
        raise _Unsendable(f"a tensor of layout {tensor.layout}; call .to_dense() first")
    spec = _tensor_spec(tensor)
    data = tensor.detach() if tensor.requires_grad else tensor
    if data.is_conj() or data.is_neg():
        data = data.resolve_conj().resolve_neg()
    data = data.contiguous()
    raw = (ctypes.c_ubyte * spec["nbytes"]).from_address(data.data_ptr())
    raw._owner = data  # the memory lives as long as this view of it
    return Buffer(spec, raw)


def _tensor_spec(tensor: Any) -> Spec:
    return _spec("torch", _name_of_dtype(tensor.dtype), tensor.shape, tensor.nbytes)


@functools.cache
def _name_of_dtype(dtype: Any) -> str:
    name = str(dtype).removeprefix("torch.")
    if not _TORCH_DTYPE.fullmatch(name):  # a quantized one
        raise _Unsendable(f"a tensor of dtype {dtype}; convert it first")
    return name


@functools.lru_cache(1024)  # the same few again and again, as parameters have
def _spec(kind: str, dtype: str | None, shape: tuple[int, ...], nbytes: int) -> Spec:
    if len(shape) > DIMENSIONS_MAX:
        raise _Unsendable(f"{len(shape)} dimensions; the limit is {DIMENSIONS_MAX}")
    return {"type": kind, "dtype": dtype, "shape": [*shape], "nbytes": nbytes}


def _name_of(value: Any) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def _way_out(value: Any, numpy: Any) -> str:
    if numpy is not None and isinstance(value, numpy.generic):
        return "; call .item() first"
    if isinstance(value, str):
        return "; call str() first"
    if isinstance(value, set | frozenset):
        return "; send a sorted list"
    if isinstance(value, memoryview):
        return "; call bytes() first"
    return "; send dict, list, tuple, str, int, float, bool, None, bytes, arrays or tensors"


def describe(buffers: Sequence[Buffer]) -> list[Spec | int]:
    """Return what a header says of each buffer: its spec, or which earlier one has the same."""
    first: dict[int, int] = {}
    told: list[Spec | int] = []
    for index, (spec, _) in enumerate(buffers):
        # `_spec` returns the same object for the same spec.
        earlier = first.setdefault(id(spec), index)
        told.append(spec if earlier == index or spec["nbytes"] < REPEATED_BYTES_MIN else earlier)
    return told


def check_specs(
    told: Sequence[Any], *, shared: bool
) -> tuple[list[Spec], dict[int, int], dict[int, int]]:
    """Return the spec of each buffer, and how many bytes each has that is not empty, by index.

    First those whose bytes are sent, then the SharedTensors, which come only if they are `shared`.
    Raises ProtocolError if a spec lies.
    """
    specs: list[Spec] = []
    sent: dict[int, int] = {}
    mapped: dict[int, int] = {}
    for index, spec in enumerate(told):
        if type(spec) is int:
            nbytes = sent.get(spec, 0)  # of an earlier one
            if nbytes < REPEATED_BYTES_MIN:
                raise ProtocolError(f"buffer {index} is described as buffer {quote(spec)} is")
            spec = specs[spec]
        else:
            nbytes = _check_spec(spec)
            if spec["type"] == "shared" and not shared:
                raise ProtocolError("shared memory was offered over a network")
        specs.append(spec)
        if nbytes:
            (mapped if spec["type"] == "shared" else sent)[index] = nbytes
    return specs, sent, mapped


def _check_spec(spec: Any) -> int:
    """Return how many bytes a spec asks for."""
    try:
        kind, dtype, shape, nbytes = (spec[key] for key in ("type", "dtype", "shape", "nbytes"))
        if not (type(shape) is list and len(shape) <= DIMENSIONS_MAX and type(nbytes) is int):
            raise ValueError("no shape or size")
        for length in shape:
            if type(length) is not int or not 0 <= length < 2**62:
                raise ValueError(f"shape {quote(shape)}")
        if math.prod(shape) * _item_bytes(kind, dtype) != nbytes or nbytes < 0:
            raise ValueError(f"{quote(nbytes)} bytes for shape {quote(shape)} of {quote(dtype)}")
    except (KeyError, TypeError, ValueError, AttributeError, ImportError) as error:
        reason = str(error)[:REASON_CHARS_MAX]
        raise ProtocolError(f"a buffer's description is wrong: {reason}") from error
    return nbytes


@functools.lru_cache  # what is wrong is not kept, and a dtype is a short text
def _item_bytes(kind: str, dtype: Any) -> int:
    if kind in ("bytes", "bytearray"):
        return 1
    if kind == "numpy" and _NUMPY_DTYPE.fullmatch(dtype):
        import numpy

        return int(numpy.dtype(dtype).itemsize)
    if kind in ("torch", "shared") and _TORCH_DTYPE.fullmatch(dtype):
        import torch

        return int(getattr(torch, dtype).itemsize)
    raise ValueError(f"unknown kind of buffer {quote(kind)} with dtype {quote(dtype)}")


def decode(tree: Tree, specs: Sequence[Spec], memories: dict[int, Any]) -> Any:
    """Return the value that a tree with marks in it, and its buffers' memories, stand for.

    An empty buffer needs no memory; a SharedTensor's is a SharedMemory.

    Raises ProtocolError, and nothing else, for a tree that `encode` cannot have made.
    """
    try:
        values = [_build(spec, memories.get(index)) for index, spec in enumerate(specs)]
        return tree if type(tree) in _PLAIN else _decode(tree, values)
    except ProtocolError:
        raise
    except _PROVOKED as error:
        # In torch and numpy too. The traceback would hold all that came of the message.
        reason = repr(error)[:REASON_CHARS_MAX]
        cause = error.with_traceback(None)
        raise ProtocolError(f"a message that no encoder makes: {reason}") from cause


def _decode(tree: Tree, values: list[Any]) -> Any:
    """Return what one container stands for; lists and dicts are changed in place."""
    if type(tree) is list:
        for index, item in enumerate(tree):
            if type(item) not in _PLAIN:
                tree[index] = _decode(item, values)
        return tree
    if "$" not in tree:
        for key, item in tree.items():
            if type(item) not in _PLAIN:
                tree[key] = _decode(item, values)
        return tree
    mark = tree["$"]
    if mark == "buffer":
        if type(tree["index"]) is int and tree["index"] >= 0:
            return values[tree["index"]]
    elif type(tree["items"]) is list:
        items = _decode(tree["items"], values)
        if mark == "tuple":
            return tuple(items)
        if mark == "dict" and all(type(key) is str for key, _ in items):
            return dict(items)
    raise ProtocolError(f"an unknown mark {quote(mark)} in a message")


def _build(spec: Spec, memory: Any) -> Any:
    """Return the object of one buffer, which has no memory if it is empty.

    Arrays and tensors keep the memory itself.
    """
    kind, dtype, shape = spec["type"], spec["dtype"], spec["shape"]
    if kind == "bytes":
        return bytes(memory or b"")
    if kind == "bytearray":
        return memory if type(memory) is bytearray else bytearray(memory or b"")
    if kind == "numpy":
        import numpy

        return numpy.ndarray(shape, dtype, buffer=memory)
    import torch

    element = getattr(torch, dtype)
    if kind == "shared":
        try:
            return SharedTensor(shape, element, memory=memory)
        except OSError as error:
            raise ValueError(f"shared memory cannot be mapped: {error.strerror}") from error
    if memory is None:
        return torch.empty(shape, dtype=element)
    # One length an argument: torch takes half the time for that.
    return torch.frombuffer(memory, dtype=element).reshape(*shape or ((),))


def quote(value: Any) -> str:
    """Return what the other side sent in REASON_CHARS_MAX characters, however large it is."""
    return reprlib.repr(value)[:REASON_CHARS_MAX]
