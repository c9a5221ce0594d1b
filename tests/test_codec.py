"""Values there and back: every dtype, every layout, and what cannot be sent."""

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniray import ProtocolError, codec, wire
from miniray.decoding import Decoder
from miniray.dtypes import TORCH_DTYPE
from tests.sendable import same, values

torch = pytest.importorskip("torch")
numpy = pytest.importorskip("numpy")

# Those that torch packs several of into a byte, or has no operators for, are left out.
PACKED = re.compile(r"u?int[1-7]|float4.*")
TORCH_DTYPES = [
    dtype
    for name, dtype in sorted(vars(torch).items())
    if isinstance(dtype, torch.dtype)
    and str(dtype) == f"torch.{name}"
    and TORCH_DTYPE.fullmatch(name)
    and not PACKED.fullmatch(name)
]
NUMBERS = ("i2", "i4", "i8", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")
NUMPY_DTYPES = [
    *("?", "i1", "u1", "<U3", ">U3", "S4", "<M8[ns]", ">M8[s]", "<M8[25s]", "<m8[D]", ">m8[us]"),
    *(f"{order}{kind}" for order in "<>" for kind in NUMBERS),
]
LAYOUTS = {
    "0-d": lambda one: one.reshape(-1)[0].reshape(()),
    "empty": lambda one: one[:0],
    "2-d": lambda one: one,
    "transposed": lambda one: one.T,
    "non-contiguous": lambda one: one[:, ::2],
    "offset": lambda one: one[1:, 3:],
}


def there_and_back(message: Any) -> Any:
    encoded = wire.encode(wire.MESSAGE, message)
    decoder = Decoder()
    decoder.feed(encoded.head + b"".join(map(bytes, encoded.parts)))
    frame = decoder.next_frame()
    assert frame is not None
    return frame.body


@given(values)
def test_nested_values_come_back_as_they_were(value: Any) -> None:
    assert same(there_and_back(value), value)


def test_numbers_that_are_none_come_back() -> None:
    assert math.isnan(there_and_back([math.nan])[0])
    assert there_and_back((math.inf, -math.inf, -0.0)) == (math.inf, -math.inf, -0.0)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
def test_every_torch_dtype_and_layout_comes_back(dtype: Any, layout: Any) -> None:
    # Every pattern of bits may be among these, every kind of NaN too.
    raw = torch.randint(0, 256, (4, 6 * dtype.itemsize), dtype=torch.uint8)
    tensor = layout(raw.view(dtype) if dtype is not torch.bool else raw > 127)
    arrived = there_and_back({"x": tensor})["x"]
    assert arrived.dtype == dtype
    assert arrived.shape == tensor.shape
    as_bytes = [one.contiguous().reshape(-1).view(torch.uint8) for one in (arrived, tensor)]
    assert torch.equal(*as_bytes)
    arrived.zero_()  # writable, and nobody else's


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
def test_every_numpy_dtype_and_layout_comes_back(dtype: str, layout: Any) -> None:
    array = layout(numpy.arange(24).reshape(4, 6).astype(dtype))
    if not isinstance(array, numpy.ndarray):
        array = numpy.array(array, dtype)
    arrived = there_and_back([array])[0]
    assert arrived.dtype.str == array.dtype.str
    assert arrived.shape == array.shape
    assert arrived.tobytes() == array.tobytes()
    assert (arrived == array).all()
    assert arrived.flags.writeable


@pytest.mark.parametrize(
    "array",
    [
        numpy.broadcast_to(numpy.arange(3), (4, 3)),
        numpy.arange(6)[::-2],
        numpy.asfortranarray(numpy.arange(6).reshape(2, 3)),
        numpy.array([math.nan, -0.0, math.inf]),
        numpy.array(["NaT", "2026-01-01"], "M8[D]"),
        numpy.zeros((2, 0, 3)),
        numpy.zeros((1,) * 64),
    ],
    ids=["broadcast", "backwards", "fortran", "nan", "not a time", "empty", "64 dimensions"],
)
def test_arrays_of_every_kind_of_memory_come_back(array: Any) -> None:
    arrived = there_and_back(array)
    assert (arrived.dtype.str, arrived.shape) == (array.dtype.str, array.shape)
    assert arrived.tobytes() == array.tobytes()
    assert arrived.flags.writeable


def test_an_expanded_tensor_arrives_with_memory_of_its_own() -> None:
    arrived = there_and_back(torch.ones(1).expand(3))
    arrived[0] = 2
    assert arrived.tolist() == [2, 1, 1]


def all_torch_dtypes() -> "list[Any]":
    return [
        one
        for name, one in sorted(vars(torch).items())
        if isinstance(one, torch.dtype) and str(one) == f"torch.{name}"
    ]


@pytest.mark.parametrize("dtype", all_torch_dtypes(), ids=str)
@pytest.mark.filterwarnings("ignore")  # torch warns of dtypes it is about to drop
def test_a_dtype_is_refused_by_the_sender_or_comes_back(dtype: Any) -> None:
    try:
        tensor = torch.empty(3, dtype=dtype)
    except (RuntimeError, TypeError) as error:
        pytest.skip(f"torch itself cannot make one: {error}")
    try:
        head = wire.encode(wire.MESSAGE, tensor).head
    except TypeError as error:
        assert str(dtype) in str(error)  # noqa: PT017  # either outcome is right
    else:
        assert head
        arrived = there_and_back(tensor)
        assert (arrived.dtype, arrived.shape) == (dtype, (3,))


def test_a_view_with_lazy_conjugation_arrives_conjugated() -> None:
    tensor = torch.tensor([1 + 2j])
    assert torch.equal(there_and_back(tensor.conj()), torch.tensor([1 - 2j]))


def test_a_parameter_arrives_as_a_tensor() -> None:
    arrived = there_and_back(torch.nn.Parameter(torch.ones(2)))
    assert type(arrived) is torch.Tensor
    assert not arrived.requires_grad


class Subclass(torch.Tensor):  # type: ignore[misc]
    pass


class Sharded(torch.Tensor):  # type: ignore[misc]
    def full_tensor(self) -> Any:
        raise NotImplementedError


self_containing: dict[str, Any] = {}
self_containing["me"] = [self_containing]
endless: list[Any] = []
endless.append(endless)
UNSENDABLE = {
    "object array": (numpy.array([object()]), "dtype object"),
    "record array": (numpy.zeros(2, "i2,i2"), "dtype"),
    "memoryview": (memoryview(b""), r"call bytes\(\) first"),
    "sparse": (torch.ones(2).to_sparse(), "to_dense"),
    "elsewhere": ([torch.empty(2, device="meta")], r"message\[0\]: a tensor on meta; call .cpu"),
    "quantized": (torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "qint8"),
    "subclass": (torch.ones(2).as_subclass(Subclass), "subclass"),
    "sharded": ([torch.ones(2).as_subclass(Sharded)], r"message\[0\]: .*call .full_tensor\(\)"),
    "65 dimensions": (torch.ones([1] * 65), "65 dimensions; the limit is 64"),
    "masked array": (numpy.ma.array([1, 2], mask=[0, 1]), "MaskedArray"),
    "dict with itself": (self_containing, "contains itself"),
    "function": ({"f": print}, r'message\["f"\]: builtin_function_or_method; send its name'),
    "endless": (endless, "deeper than 100 levels"),
}


@pytest.mark.parametrize(("value", "text"), UNSENDABLE.values(), ids=UNSENDABLE.keys())
def test_what_cannot_be_sent_is_named_with_its_path(value: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        wire.encode(wire.MESSAGE, value)


@pytest.mark.parametrize(
    "wrap",
    [lambda one: [one], lambda one: (one,), lambda one: {"k": one}, lambda one: {"$": one}],
    ids=["list", "tuple", "dict", "dict with $"],
)
def test_what_the_sender_takes_the_receiver_takes_at_any_depth(wrap: Any) -> None:
    message: Any = torch.zeros(2)
    for _ in range(codec.DEPTH_MAX - 1):
        message = wrap(message)
    arrived = there_and_back(message)
    for _ in range(codec.DEPTH_MAX - 1):
        (arrived,) = arrived.values() if isinstance(arrived, dict) else arrived
    assert arrived.tolist() == [0, 0]
    with pytest.raises(TypeError, match="deeper than 100 levels"):
        wire.encode(wire.MESSAGE, wrap(wrap(message)))


def test_an_int_of_more_digits_than_python_reads_is_refused_by_the_sender() -> None:
    with pytest.raises(ValueError, match="digits"):
        wire.encode(wire.MESSAGE, {"n": 10**5000})


def test_values_share_nothing_with_what_was_sent() -> None:
    tensor, inner = torch.zeros(3), bytearray(b"abc")
    arrived = there_and_back([tensor, inner, tensor])
    arrived[0] += 1
    arrived[1].extend(b"def")
    assert tensor.tolist() == arrived[2].tolist() == [0, 0, 0]
    assert inner == b"abc"


@given(values, st.data())
def test_hostile_trees_raise_only_protocol_errors(value: Any, data: Any) -> None:
    marks = st.sampled_from(["tuple", "dict", "buffer", "x", 1])
    tree = {"$": data.draw(marks), "items": value, "index": value}
    try:
        codec.decode(tree, [], {})
    except ProtocolError:
        return
