"""Turn a value into a JSON tree and raw buffers, and back.

A tree is what JSON can say. Everything else becomes an object with the key "$":

    {"$": "tuple", "items": [...]}     a tuple
    {"$": "buffer", "index": 0}        bytes or a tensor: the message's buffer number 0

A buffer's spec `{"type", "dtype", "shape", "nbytes"}` travels in the header, its bytes behind it.
"""

import ctypes
import math
import re
from typing import Any, NamedTuple

from .errors import ProtocolError

DEPTH_MAX = 100

Spec = dict[str, Any]

_PLAIN = (str, int, float, bool, type(None))
_TORCH_DTYPE = re.compile(r"(bool|u?int\d+|b?float\d\w*|complex\d+)")


class Buffer(NamedTuple):
    """Bytes to send as they lie in memory."""

    spec: Spec
    data: Any


def encode(message: Any) -> tuple[Any, list[Buffer]]:
    """Return the JSON tree of a message and the buffers it refers to.

    Raises TypeError, naming the path to the culprit, for what cannot be sent.
    """
    buffers: list[Buffer] = []
    return _encode(message, "message", DEPTH_MAX, buffers), buffers


def _encode(value: Any, path: str, depth: int, buffers: list[Buffer]) -> Any:
    kind = type(value)
    if kind in _PLAIN:
        return value
    if depth == 0:
        raise TypeError(f"cannot send {path}: nested too deep, or it contains itself")
    if kind is list or kind is tuple:
        items = [
            _encode(item, f"{path}[{index}]", depth - 1, buffers)
            for index, item in enumerate(value)
        ]
        return items if kind is list else {"$": "tuple", "items": items}
    if kind is dict:
        for key in value:
            if type(key) is not str or key == "$":
                raise TypeError(f'cannot send {path}: key {key!r}; keys must be str, and not "$"')
        return {
            key: _encode(item, f'{path}["{key}"]', depth - 1, buffers)
            for key, item in value.items()
        }
    buffers.append(_make_buffer(value, path))
    return {"$": "buffer", "index": len(buffers) - 1}


def _make_buffer(value: Any, path: str) -> Buffer:
    """Return the buffer that carries one value which JSON cannot."""
    if type(value) is bytes:
        return Buffer(_make_spec("bytes", None, [len(value)], len(value)), value)
    if not hasattr(value, "data_ptr"):
        raise TypeError(f"cannot send {path}: {type(value).__name__}")
    if hasattr(value, "full_tensor"):
        raise TypeError(f"cannot send {path}: a shard of a tensor; call .full_tensor() first")
    if value.device.type != "cpu":
        raise TypeError(f"cannot send {path}: a tensor on {value.device}; call .cpu() first")
    tensor = value.detach().resolve_conj().resolve_neg().contiguous()
    dtype = str(tensor.dtype).removeprefix("torch.")
    if not _TORCH_DTYPE.fullmatch(dtype) or tensor.is_quantized:
        raise TypeError(f"cannot send {path}: a tensor of {tensor.dtype}; convert it first")
    nbytes = tensor.numel() * tensor.element_size()
    data = (ctypes.c_ubyte * nbytes).from_address(tensor.data_ptr())
    data._owner = tensor  # the memory lives as long as this view of it
    return Buffer(_make_spec("torch", dtype, [*tensor.shape], nbytes), data)


def _make_spec(kind: str, dtype: str | None, shape: list[int], nbytes: int) -> Spec:
    return {"type": kind, "dtype": dtype, "shape": shape, "nbytes": nbytes}


def check_spec(spec: Any) -> int:
    """Return how many bytes a received buffer spec asks for; raise ProtocolError if it lies."""
    try:
        kind, dtype, shape, nbytes = (spec[key] for key in ("type", "dtype", "shape", "nbytes"))
        item_bytes = 1
        if kind == "torch" and _TORCH_DTYPE.fullmatch(dtype):
            import torch

            item_bytes = getattr(torch, dtype).itemsize
        elif kind != "bytes":
            raise ValueError(f"unknown kind {kind!r} with dtype {dtype!r}")
        if not all(type(length) is int and 0 <= length < 2**62 for length in shape):
            raise ValueError(f"shape {shape}")
        if type(nbytes) is not int or math.prod(shape) * item_bytes != nbytes:
            raise ValueError(f"{nbytes} bytes for shape {shape} of {dtype}")
        return nbytes
    except (KeyError, TypeError, ValueError, AttributeError, ImportError) as error:
        raise ProtocolError(f"a buffer's description is wrong: {error}") from error


def decode(tree: Any, specs: list[Spec], memories: list[bytearray]) -> Any:
    """Return the value that a tree and its filled buffers stand for.

    Raises ProtocolError, and nothing else, for a tree that `encode` cannot have made.
    """
    try:
        return _decode(tree, [_build(*pair) for pair in zip(specs, memories, strict=True)])
    except Exception as error:
        # Whatever a hostile tree provokes, in torch too, is that tree's fault.
        raise ProtocolError(f"a message that no encoder makes: {error!r}") from error


def _decode(tree: Any, values: list[Any]) -> Any:
    if type(tree) is list:
        return [_decode(item, values) for item in tree]
    if type(tree) is not dict:
        return tree
    mark = tree.get("$")
    if mark is None:
        return {key: _decode(item, values) for key, item in tree.items()}
    if mark == "tuple":
        return tuple(_decode(item, values) for item in tree["items"])
    if mark == "buffer" and tree["index"] >= 0:
        return values[tree["index"]]
    raise ValueError(f"an unknown mark {mark!r}")


def _build(spec: Spec, memory: bytearray) -> Any:
    """Return the object of one filled buffer; a tensor keeps the memory itself."""
    if spec["type"] == "bytes":
        return bytes(memory)
    import torch

    dtype = getattr(torch, spec["dtype"])
    if not memory:
        return torch.empty(spec["shape"], dtype=dtype)
    return torch.frombuffer(memory, dtype=dtype).reshape(spec["shape"])
