"""Small values of numpy and torch: scalars, dtypes, devices and sizes, which go as text."""

import re
from typing import Any

from miniray.errors import ProtocolError
from miniray.header import quote
from miniray.refusals import Unsendable

NUMPY_DTYPE = re.compile(r"[<>|]([biufc]\d{1,2}|[SU]\d{1,6}|[mM]8(\[\d{0,4}[a-zA-Z]{1,2}\])?)")
TORCH_DTYPE = re.compile(r"(bool|u?int\d+|b?float\d\w*|complex\d+)")


def of_scalar(value: Any) -> list[str]:
    dtype = value.dtype.str
    if dtype[1] == "U":
        return [dtype, str.__str__(value)]  # numpy's own leaves out what is NUL at the end
    return [dtype, (bytes(value) if dtype[1] == "S" else value.tobytes()).hex()]


def make_scalar(dtype: str, data: str) -> Any:
    import numpy

    if not NUMPY_DTYPE.fullmatch(dtype):
        raise ProtocolError(f"a numpy scalar of dtype {quote(dtype)} in a message")
    if dtype[1] == "U":
        return numpy.str_(data)
    raw = bytes.fromhex(data)
    if dtype[1] == "S":
        return numpy.bytes_(raw)
    (scalar,) = numpy.frombuffer(raw, dtype)
    return scalar


def of_numpy_dtype(value: Any) -> list[str]:
    if not NUMPY_DTYPE.fullmatch(value.str) or value.metadata:
        raise Unsendable(f"numpy dtype {value}; send its .descr")
    return [value.str]


def make_numpy_dtype(text: str) -> Any:
    import numpy

    if not NUMPY_DTYPE.fullmatch(text):
        raise ProtocolError(f"a numpy dtype {quote(text)} in a message")
    return numpy.dtype(text)


def of_torch_dtype(value: Any) -> list[str]:
    name = str(value).removeprefix("torch.")
    if not TORCH_DTYPE.fullmatch(name):
        raise Unsendable(f"{value}; send its name, and getattr(torch, name) there")
    return [name]


def make_torch_dtype(name: str) -> Any:
    import torch

    dtype = getattr(torch, name) if TORCH_DTYPE.fullmatch(name) else None
    if type(dtype) is not torch.dtype:
        raise ProtocolError(f"a torch dtype {quote(name)} in a message")
    return dtype


def make_device(name: str) -> Any:
    import torch

    return torch.device(name)  # which refuses what is none


def make_size(*lengths: Any) -> Any:
    import torch

    if set(map(type, lengths)) - {int}:
        raise ProtocolError("a torch.Size of something else in a message")
    return torch.Size(lengths)
