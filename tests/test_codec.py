"""Values there and back: every dtype, every layout, and what cannot be sent."""

import gc
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniray import ProtocolError, codec, wire

torch = pytest.importorskip("torch")
numpy = pytest.importorskip("numpy")

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec=None))
    | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.just("$"), inner, max_size=4)
    ),
    max_leaves=20,
)
# Those that torch packs several of into a byte, or has no operators for, are left out.
PACKED = re.compile(r"u?int[1-7]|float4.*")
TORCH_DTYPES = [
    dtype
    for name, dtype in sorted(vars(torch).items())
    if isinstance(dtype, torch.dtype)
    and str(dtype) == f"torch.{name}"
    and codec._TORCH_DTYPE.fullmatch(name)
    and not PACKED.fullmatch(name)
]
NUMPY_DTYPES = [
    *("?", "i1", "u1", "<i2", ">i4", "<u8", "<f2", "<f4", ">f8", "<c8", "<c16"),
    *("<M8[ns]", "<m8[D]", "<U3", "S4"),
]
LAYOUTS = {
    "0-d": lambda one: one.reshape(-1)[0].reshape(()),
    "empty": lambda one: one[:0],
    "2-d": lambda one: one,
    "transposed": lambda one: one.T,
    "non-contiguous": lambda one: one[:, ::2],
}


def there_and_back(message: Any) -> Any:
    head, buffers = wire.encode(wire.MESSAGE, message)
    rest = memoryview(head + b"".join(bytes(buffer.data) for buffer in buffers))
    decoder, frame = wire.Decoder(), None
    while rest:
        nbytes = len(decoder.want)
        decoder.want[:] = rest[:nbytes]
        rest = rest[nbytes:]
        frame = decoder.advance(nbytes)
    assert frame is not None
    return frame.body


def same(ours: Any, theirs: Any) -> bool:
    """Compare values and types, at any depth: 1 is not True, a tuple is no list."""
    if type(ours) is not type(theirs):
        return False
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(ours, dict):
        return list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in ours)
    return bool(ours == theirs)


@given(values)
def test_nested_values_come_back_as_they_were(value: Any) -> None:
    assert same(there_and_back(value), value)


def test_numbers_that_are_none_come_back() -> None:
    assert math.isnan(there_and_back([math.nan])[0])
    assert there_and_back((math.inf, -math.inf, -0.0)) == (math.inf, -math.inf, -0.0)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
def test_every_torch_dtype_and_layout_comes_back(dtype: Any, layout: Any) -> None:
    raw = torch.randint(0, 2, (4, 6 * dtype.itemsize), dtype=torch.uint8)
    tensor = layout(raw.view(dtype) if dtype is not torch.bool else raw.bool())
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
    assert arrived.dtype == array.dtype
    assert arrived.shape == array.shape
    assert (arrived == array).all()
    assert arrived.flags.writeable


def test_a_view_with_lazy_conjugation_arrives_conjugated() -> None:
    tensor = torch.tensor([1 + 2j])
    assert torch.equal(there_and_back(tensor.conj()), torch.tensor([1 - 2j]))


def test_a_parameter_arrives_as_a_tensor() -> None:
    arrived = there_and_back(torch.nn.Parameter(torch.ones(2)))
    assert type(arrived) is torch.Tensor
    assert not arrived.requires_grad


class Subclass(torch.Tensor):  # type: ignore[misc]
    pass


endless: list[Any] = []
endless.append(endless)
UNSENDABLE = {
    "set": ({"batch": [0, 1, 2, {3}]}, r'message\["batch"\]\[3\]: set; send a sorted list'),
    "int key": ({"a": {1: 2}}, r'message\["a"\]: dict key 1 is int; keys must be str'),
    "object array": (numpy.array([object()]), "dtype object"),
    "record array": (numpy.zeros(2, "i2,i2"), "dtype"),
    "numpy scalar": ((1, numpy.float64(1)), r"message\[1\]: numpy.float64; call .item\(\)"),
    "memoryview": (memoryview(b""), r"call bytes\(\) first"),
    "sparse": (torch.ones(2).to_sparse(), "to_dense"),
    "elsewhere": ([torch.empty(2, device="meta")], r"message\[0\]: a tensor on meta; call .cpu"),
    "quantized": (torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "qint8"),
    "subclass": (torch.ones(2).as_subclass(Subclass), "subclass"),
    "function": ({"f": print}, r'message\["f"\]: builtin_function_or_method'),
    "endless": (endless, "deeper than 100 levels"),
}


@pytest.mark.parametrize(("value", "text"), UNSENDABLE.values(), ids=UNSENDABLE.keys())
def test_what_cannot_be_sent_is_named_with_its_path(value: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        wire.encode(wire.MESSAGE, value)


@given(values, st.data())
def test_hostile_trees_raise_only_protocol_errors(value: Any, data: Any) -> None:
    marks = st.sampled_from(["tuple", "dict", "buffer", "x", 1])
    tree = {"$": data.draw(marks), "items": value, "index": value}
    try:
        codec.decode(tree, [], [])
    except ProtocolError:
        return


def test_pool_never_hands_out_memory_that_somebody_holds() -> None:
    codec.empty_pool()
    size = codec.POOLED_BYTES_MIN
    held = [torch.frombuffer(codec.allocate(size), dtype=torch.uint8) for _ in range(5)]
    addresses = {one.data_ptr() for one in held}
    assert len(addresses) == 5
    view, held = held[2][10:20], []
    gc.collect()
    again = [codec.allocate(size) for _ in range(4)]
    fresh = codec.allocate(size)
    taken = {torch.frombuffer(one, dtype=torch.uint8).data_ptr() for one in again}
    assert taken == addresses - {view.data_ptr() - 10}
    assert torch.frombuffer(fresh, dtype=torch.uint8).data_ptr() not in addresses
    codec.empty_pool()


def test_pool_is_bounded_and_can_be_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    codec.empty_pool()
    monkeypatch.setattr(codec, "POOL_BYTES_MAX", 3 * codec.POOLED_BYTES_MIN)
    for extra in range(6):
        codec.allocate(codec.POOLED_BYTES_MIN + extra)
    assert sum(map(len, codec._pool)) <= codec.POOL_BYTES_MAX
    codec.empty_pool()
    assert codec._pool == []


def test_small_memory_is_not_pooled() -> None:
    codec.empty_pool()
    codec.allocate(codec.POOLED_BYTES_MIN - 1)
    assert codec._pool == []
