"""Turn a value into a JSON tree and raw buffers, and back.

A tree is what JSON can say. Everything else becomes an object with the key "$":

    {"$": "tuple", "items": [...]}      a tuple
    {"$": "dict", "items": [[k, v]]}    a dict that itself has the key "$"
    {"$": "buffer", "index": 0}         the message's buffer number 0

A buffer is bytes, a bytearray, a numpy array, a torch tensor or a SharedTensor. Its spec
`{"type", "dtype", "shape", "nbytes"}` travels in the header, its bytes behind the header.
"""

import ctypes
import math
import mmap
import os
import re
import sys
import threading
from typing import Any, NamedTuple

from miniray.errors import ProtocolError
from miniray.shared_tensor import SharedTensor, create_memory, map_memory

DEPTH_MAX = 100
DIMENSIONS_MAX = 64
POOLED_BYTES_MIN = 1024 * 1024
POOL_BYTES_MAX = 256 * 1024 * 1024

Tree = Any
Spec = dict[str, Any]

_PLAIN = frozenset({str, int, float, bool, type(None)})
_ONLY_STR = {str}
_NUMPY_DTYPE = re.compile(r"[<>|]([biufc]\d{1,2}|[SU]\d{1,6}|[mM]8(\[\d{0,4}[a-zA-Z]{1,2}\])?)")
_TORCH_DTYPE = re.compile(r"(bool|u?int\d+|b?float\d\w*|complex\d+)")


class Buffer(NamedTuple):
    """Bytes to send as they lie in memory; `data` keeps their owner alive."""

    spec: Spec
    data: Any
    descriptor: int | None = None


class _Unsendable(Exception):
    """A value cannot be sent; each level on the way out adds its part of the path."""

    def __init__(self, reason: str) -> None:
        self.reason, self.path = reason, ""


def encode(message: Any) -> tuple[Tree, list[Buffer]]:
    """Return the JSON tree of a message and the buffers it refers to.

    Raises TypeError, naming the path to the culprit, for what cannot be sent.
    """
    kind = type(message)
    if kind in _PLAIN:
        return message, []
    buffers: list[Buffer] = []
    try:
        return _encode(message, buffers, DEPTH_MAX), buffers
    except _Unsendable as error:
        raise TypeError(f"cannot send message{error.path}: {error.reason}") from None


def _encode(value: Any, buffers: list[Buffer], depth: int) -> Tree:
    kind = type(value)
    if kind in _PLAIN:
        return value
    if depth == 0:
        raise _Unsendable(f"nested deeper than {DEPTH_MAX} levels, or contains itself")
    if kind is dict:
        return _encode_dict(value, buffers, depth - 1)
    if kind is list or kind is tuple:
        # One pass in C finds out that a list holds nothing but plain values.
        items = value if _PLAIN.issuperset(map(type, value)) else []
        if items is not value:
            for index, item in enumerate(value):
                try:
                    items.append(_encode(item, buffers, depth - 1))
                except _Unsendable as error:
                    error.path = f"[{index}]{error.path}"
                    raise
        return items if kind is list else {"$": "tuple", "items": items}
    buffers.append(_buffer_of(value))
    return {"$": "buffer", "index": len(buffers) - 1}


def _encode_dict(value: dict[Any, Any], buffers: list[Buffer], depth: int) -> Tree:
    if not _ONLY_STR.issuperset(map(type, value)):
        key = next(key for key in value if type(key) is not str)
        raise _Unsendable(f"dict key {key!r} is {_name_of(key)}; keys must be str")
    if _PLAIN.issuperset(map(type, value.values())):
        tree = value
    else:
        tree = {}
        for key, item in value.items():
            try:
                tree[key] = _encode(item, buffers, depth)
            except _Unsendable as error:
                error.path = f'["{key}"]{error.path}'
                raise
    return {"$": "dict", "items": [[*pair] for pair in tree.items()]} if "$" in tree else tree


def _buffer_of(value: Any) -> Buffer:
    """Return the buffer that carries one value which JSON cannot."""
    kind = type(value)
    if kind is bytes or kind is bytearray:
        return Buffer(_spec(kind.__name__, None, [len(value)], len(value)), value)
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _buffer_of_tensor(value, torch)
    if numpy is not None and kind is numpy.ndarray:
        if not _NUMPY_DTYPE.fullmatch(value.dtype.str):
            raise _Unsendable(f"numpy array of dtype {value.dtype}; send numbers, bool or str")
        data = numpy.ascontiguousarray(value)
        spec = _spec("numpy", value.dtype.str, [*value.shape], value.nbytes)
        return Buffer(spec, data.reshape(-1).view("u1") if value.nbytes else b"")
    if kind is SharedTensor:
        return Buffer({**_tensor_spec(value.tensor), "type": "shared"}, value, value.descriptor)
    raise _Unsendable(f"{_name_of(value)}{_way_out(value, numpy)}")


def _buffer_of_tensor(tensor: Any, torch: Any) -> Buffer:
    if type(tensor) is not torch.Tensor and type(tensor) is not torch.nn.Parameter:
        way_out = "call .full_tensor() first" if hasattr(tensor, "full_tensor") else "convert it"
        raise _Unsendable(f"{_name_of(tensor)} is a tensor subclass; {way_out}")
    if tensor.device.type != "cpu":
        raise _Unsendable(f"a tensor on {tensor.device}; call .cpu() first")
    if tensor.layout != torch.strided:
        raise _Unsendable(f"a tensor of layout {tensor.layout}; call .to_dense() first")
    spec = _tensor_spec(tensor)
    if not _TORCH_DTYPE.fullmatch(spec["dtype"]) or tensor.is_quantized:
        raise _Unsendable(f"a tensor of dtype {tensor.dtype}; convert it first")
    data = tensor.detach().resolve_conj().resolve_neg().contiguous()
    raw = (ctypes.c_ubyte * spec["nbytes"]).from_address(data.data_ptr())
    raw._owner = data  # the memory lives as long as this view of it
    return Buffer(spec, raw)


def _tensor_spec(tensor: Any) -> Spec:
    nbytes = tensor.numel() * tensor.element_size()
    return _spec("torch", str(tensor.dtype).removeprefix("torch."), [*tensor.shape], nbytes)


def _spec(kind: str, dtype: str | None, shape: list[int], nbytes: int) -> Spec:
    if len(shape) > DIMENSIONS_MAX:
        raise _Unsendable(f"{len(shape)} dimensions; the limit is {DIMENSIONS_MAX}")
    return {"type": kind, "dtype": dtype, "shape": shape, "nbytes": nbytes}


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


def check_spec(spec: Any) -> int:
    """Return how many bytes a received buffer spec asks for; raise ProtocolError if it lies."""
    try:
        kind, dtype, shape, nbytes = (spec[key] for key in ("type", "dtype", "shape", "nbytes"))
        if not (type(shape) is list and len(shape) <= DIMENSIONS_MAX and type(nbytes) is int):
            raise ValueError("no shape or size")
        if not all(type(length) is int and 0 <= length < 2**62 for length in shape):
            raise ValueError(f"shape {shape}")
        if kind == "shared" and "memfd" not in spec:
            raise ValueError("a SharedTensor that is not shared")
        if math.prod(shape) * _item_bytes(kind, dtype) != nbytes or nbytes < 0:
            raise ValueError(f"{nbytes} bytes for shape {shape} of {dtype}")
    except (KeyError, TypeError, ValueError, AttributeError, ImportError) as error:
        raise ProtocolError(f"a buffer's description is wrong: {error}") from error
    return nbytes


def _item_bytes(kind: str, dtype: Any) -> int:
    if kind in ("bytes", "bytearray"):
        return 1
    if kind == "numpy" and _NUMPY_DTYPE.fullmatch(dtype):
        import numpy

        return int(numpy.dtype(dtype).itemsize)
    if kind in ("torch", "shared") and _TORCH_DTYPE.fullmatch(dtype):
        import torch

        return int(getattr(torch, dtype).itemsize)
    raise ValueError(f"unknown kind of buffer {kind!r} with dtype {dtype!r}")


def decode(tree: Tree, specs: list[Spec], memories: list[Any]) -> Any:
    """Return the value that a tree with marks in it, and its filled buffers, stand for.

    Raises ProtocolError, and nothing else, for a tree that `encode` cannot have made.
    """
    try:
        return _decode(tree, list(map(_build, specs, memories)))
    except ProtocolError:
        raise
    except Exception as error:
        # Whatever a hostile tree provokes, in torch and numpy too, is that tree's fault.
        raise ProtocolError(f"a message that no encoder makes: {error!r}") from error


def _decode(tree: Tree, values: list[Any]) -> Any:
    if type(tree) is list:
        return [_decode(item, values) for item in tree]
    if type(tree) is not dict:
        return tree
    mark = tree.get("$")
    if mark is None:
        return {key: _decode(item, values) for key, item in tree.items()}
    if mark == "buffer" and type(tree["index"]) is int and tree["index"] >= 0:
        return values[tree["index"]]
    if mark == "tuple" and type(tree["items"]) is list:
        return tuple(_decode(item, values) for item in tree["items"])
    if mark == "dict" and all(type(key) is str for key, _ in tree["items"]):
        return {key: _decode(item, values) for key, item in tree["items"]}
    raise ProtocolError(f"an unknown mark {mark!r} in a message")


def move_to_memfd(buffer: Buffer, nbytes_min: int) -> Buffer:
    """Return a large buffer as shared memory that holds a copy of it; others as they are."""
    file = buffer.data
    if buffer.spec["type"] == "shared" and not buffer.spec["nbytes"]:
        return Buffer({**buffer.spec, "memfd": True}, b"")  # nothing to share: made anew there
    if buffer.descriptor is None:
        if buffer.spec["nbytes"] < nbytes_min:
            return buffer
        file = os.fdopen(create_memory(buffer.spec["nbytes"]), "wb")
        file.write(buffer.data)
        file.flush()
    descriptor = buffer.descriptor if buffer.descriptor is not None else file.fileno()
    return Buffer({**buffer.spec, "memfd": True}, file, descriptor)


def attach_memfd(spec: Spec, descriptor: int | None) -> Any:
    """Return the memory behind a received descriptor, which is closed or owned from here on."""
    if descriptor is None:
        raise ProtocolError("shared memory was promised and no descriptor came")
    try:
        if spec["type"] == "shared":
            import torch

            dtype = getattr(torch, spec["dtype"])
            return SharedTensor(spec["shape"], dtype, descriptor=descriptor)
        try:
            return map_memory(descriptor, spec["nbytes"])
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        raise ProtocolError(f"shared memory cannot be mapped: {error}") from error


def _build(spec: Spec, memory: Any) -> Any:
    """Return the object of one filled buffer; arrays and tensors keep the memory itself."""
    kind, dtype, shape = spec["type"], spec["dtype"], spec["shape"]
    if kind == "bytes":
        return bytes(memory)
    if kind == "bytearray":
        return bytearray(memory) if type(memory) is not bytearray else memory
    if kind == "shared" and memory is not None:
        return memory
    if kind == "numpy":
        import numpy

        return numpy.ndarray(shape, dtype, buffer=memory if spec["nbytes"] else None)
    import torch

    element = getattr(torch, dtype)
    if kind == "shared":
        return SharedTensor(shape, element)
    if not spec["nbytes"]:
        return torch.empty(shape, dtype=element)
    return torch.frombuffer(memory, dtype=element).reshape(shape)


_pool: list[mmap.mmap] = []
_pool_lock = threading.Lock()


def allocate(nbytes: int) -> bytearray | mmap.mmap:
    """Return memory to receive into, used again once nobody holds what was built on it.

    A large piece is an anonymous mapping: its size is only a claim until bytes arrive in it.
    Fresh memory costs a page fault every 4 KiB, which is most of the time of a large receive.
    So large pieces stay in a pool, least recently used first, and a piece whose only reference
    is the pool's is free: whoever builds an array or a tensor on it holds one more.
    """
    if nbytes < POOLED_BYTES_MIN:
        return bytearray(nbytes)
    with _pool_lock:
        for index in range(len(_pool)):
            # Two references are the pool's own and getrefcount's argument.
            if len(_pool[index]) == nbytes and sys.getrefcount(_pool[index]) <= 2:
                _pool.append(_pool.pop(index))
                return _pool[-1]
        try:
            _pool.append(mmap.mmap(-1, nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        except OSError as error:
            raise ProtocolError(f"a buffer of {nbytes} bytes: {error.strerror}") from error
        while sum(map(len, _pool)) > POOL_BYTES_MAX and len(_pool) > 1:
            del _pool[0]
        return _pool[-1]


def empty_pool() -> None:
    """Give the pool's memory back; whoever still holds a piece keeps it."""
    with _pool_lock:
        _pool.clear()
