"""Frames: any chunking in, the same message out; hostile bytes raise ProtocolError and no more."""

import json
import random
import resource
import struct
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniray import ProtocolError, codec, wire

torch = pytest.importorskip("torch")
numpy = pytest.importorskip("numpy")

MESSAGES: list[Any] = [
    None,
    {"cmd": "train", "step": 3, "lr": 0.001},
    ("a", ["b", (1, 2.5)], {"$": True}),
    b"\x00raw\xff",
    {"batch": torch.arange(12).reshape(3, 4), "mask": numpy.array([True, False])},
    [torch.zeros(0, 3), torch.tensor(1.5, dtype=torch.bfloat16), bytearray(b"abc")],
]
# Written down once, so that the format cannot change unnoticed.
GOLDEN_MESSAGE = {"cmd": "train", "step": 3, "lr": 0.001, "ok": [True]}
GOLDEN_FRAME = b'MRY1\x01\x00\x00\x00\x38{"body":{"cmd":"train","step":3,"lr":0.001,"ok":[true]}}'


def to_bytes(message: Any, kind: int = wire.MESSAGE) -> bytes:
    head, buffers = wire.encode(kind, message)
    return head + b"".join(bytes(buffer.data) for buffer in buffers)


def feed(decoder: wire.Decoder, data: bytes, sizes: Callable[[], int]) -> list[wire.Frame]:
    """Give a decoder all the data in pieces of the sizes asked for; return its frames."""
    frames, rest = [], memoryview(data)
    while rest:
        nbytes = min(sizes(), len(decoder.want), len(rest))
        decoder.want[:nbytes] = rest[:nbytes]
        rest = rest[nbytes:]
        frame = decoder.advance(nbytes)
        if frame is not None:
            frames.append(frame)
    return frames


def assert_same(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    if isinstance(ours, torch.Tensor | numpy.ndarray):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert (ours == theirs).all()
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_same(ours[key], theirs[key])
    else:
        assert ours == theirs


@pytest.mark.parametrize("message", MESSAGES, ids=lambda one: type(one).__name__)
def test_a_frame_is_read_whole_and_byte_by_byte(message: Any) -> None:
    for size in (1, 2, 3, 1 << 30):
        (frame,) = feed(wire.Decoder(), to_bytes(message), lambda size=size: size)
        assert frame.kind == wire.MESSAGE
        assert_same(frame.body, message)


@given(
    st.lists(st.sampled_from(MESSAGES), min_size=1, max_size=4),
    st.lists(st.integers(1, 40), min_size=1, max_size=20),
)
def test_frames_in_a_row_survive_any_chunking(messages: list[Any], sizes: list[int]) -> None:
    turn = iter(range(10**9))
    data = b"".join(map(to_bytes, messages))
    frames = feed(wire.Decoder(), data, lambda: sizes[next(turn) % len(sizes)])
    assert len(frames) == len(messages)
    for frame, message in zip(frames, messages, strict=True):
        assert_same(frame.body, message)


@given(st.sampled_from(MESSAGES))
def test_decoder_never_wants_a_byte_of_the_next_frame(message: Any) -> None:
    decoder, data = wire.Decoder(), to_bytes(message)
    while data:
        assert len(decoder.want) <= len(data)
        assert decoder.ends_frame == (len(decoder.want) == len(data))
        nbytes = len(decoder.want)
        decoder.want[:] = data[:nbytes]
        data = data[nbytes:]
        frame = decoder.advance(nbytes)
        assert (frame is not None) == (not data)


def test_the_format_is_the_documented_one() -> None:
    assert to_bytes(GOLDEN_MESSAGE) == GOLDEN_FRAME


def test_a_header_lists_each_buffer_and_its_bytes_follow() -> None:
    data = to_bytes({"x": torch.tensor([1, 2], dtype=torch.int16)})
    magic, kind, length = struct.unpack("!4sBI", data[:9])
    assert (magic, kind) == (b"MRY1", wire.MESSAGE | wire.HAS_RAW_BYTES)
    assert json.loads(data[9 : 9 + length]) == {
        "body": {"x": {"$": "buffer", "index": 0}},
        "buffers": [{"type": "torch", "dtype": "int16", "shape": [2], "nbytes": 4}],
    }
    assert data[9 + length :] == b"\x01\x00\x02\x00"


def frame_of(header: str | bytes, kind: int = wire.MESSAGE, magic: bytes = b"MRY1") -> bytes:
    header = header.encode() if isinstance(header, str) else header
    return struct.pack("!4sBI", magic, kind, len(header)) + header


def spec(**changes: Any) -> str:
    fields = {"type": "torch", "dtype": "int16", "shape": [2], "nbytes": 4, **changes}
    return json.dumps({"body": {"$": "buffer", "index": 0}, "buffers": [fields]})


RAW = wire.MESSAGE | wire.HAS_RAW_BYTES
HOSTILE = {
    "another magic": frame_of("{}", magic=b"HTTP"),
    "another version": frame_of("{}", magic=b"MRY2"),
    "unknown kind": frame_of('{"body":1}', kind=9),
    "no header": struct.pack("!4sBI", b"MRY1", 1, 0),
    "endless header": struct.pack("!4sBI", b"MRY1", 1, wire.HEADER_BYTES_MAX + 1),
    "endless handshake": struct.pack("!4sBI", b"MRY1", wire.AUTH, wire.AUTH_BYTES_MAX + 1),
    "no JSON": frame_of("{nothing"),
    "no UTF-8": frame_of(b"\xff\xfe"),
    "no body": frame_of('{"tree":1}'),
    "a list": frame_of("[1,2]"),
    "a number": frame_of("3"),
    "two values": frame_of('{"body":1} {"body":2}'),
    "buffers is no list": frame_of('{"body":1,"buffers":{"a":1}}'),
    "raw bytes announced, none described": frame_of('{"body":1}', kind=RAW),
    "raw bytes described, none announced": frame_of(spec()),
    "size lies": frame_of(spec(nbytes=5), kind=RAW),
    "negative size": frame_of(spec(nbytes=-4), kind=RAW),
    "negative shape": frame_of(spec(shape=[-2]), kind=RAW),
    "shape of bools": frame_of(spec(shape=[True, 2]), kind=RAW),
    "huge": frame_of(spec(shape=[2**61], nbytes=2**62), kind=RAW),
    "too many dimensions": frame_of(spec(shape=[1] * 65 + [2]), kind=RAW),
    "unknown dtype": frame_of(spec(dtype="nn"), kind=RAW),
    "dtype is code": frame_of(spec(dtype="os.system"), kind=RAW),
    "numpy object": frame_of(spec(type="numpy", dtype="|O"), kind=RAW),
    "numpy record": frame_of(spec(type="numpy", dtype="i2,i2"), kind=RAW),
    "unknown type": frame_of(spec(type="pickle"), kind=RAW),
    "shared memory over a network": frame_of(spec(memfd=True), kind=RAW),
    "unknown mark": frame_of('{"body":{"$":"call"}}'),
    "index without a buffer": frame_of('{"body":{"$":"buffer","index":0}}'),
    "negative index": frame_of('{"body":{"$":"buffer","index":-1}}'),
    "tuple of nothing": frame_of('{"body":{"$":"tuple"}}'),
    "dict with a key that is none": frame_of('{"body":{"$":"dict","items":[[1,2]]}}'),
    "deep": frame_of('{"body":' + "[" * 100_000 + "]" * 100_000 + "}"),
    "deep tuples": frame_of('{"body":' + '{"$":"tuple","items":[' * 2000 + "]}" * 2000 + "}"),
    "a number of many digits": frame_of('{"body":' + "1" * 10_000 + "}"),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_no_encoder_makes_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        feed(wire.Decoder(), data, lambda: 1 << 30)


def test_a_stranger_may_send_handshakes_only() -> None:
    with pytest.raises(ProtocolError):
        feed(wire.Decoder(auth_only=True), to_bytes({"a": 1}), lambda: 1 << 30)
    with pytest.raises(ProtocolError):
        feed(
            wire.Decoder(auth_only=True),
            frame_of(spec(), kind=wire.AUTH | wire.HAS_RAW_BYTES),
            lambda: 1 << 30,
        )


def test_a_message_over_the_limit_is_refused_before_it_is_copied() -> None:
    huge = torch.empty(wire.MESSAGE_BYTES_MAX + 1, dtype=torch.uint8)  # no page of it is touched
    with pytest.raises(ValueError, match="send it in parts"):
        wire.encode(wire.MESSAGE, {"x": huge})
    with pytest.raises(ValueError, match="send it in parts"):
        wire.encode(wire.MESSAGE, {"x": huge}, memfd=True)


def test_a_header_over_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "HEADER_BYTES_MAX", 1000)
    with pytest.raises(ValueError, match="the limits are"):
        wire.encode(wire.MESSAGE, "x" * 1000)


def mutate(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(changed)) if changed else 0
        match chance.randrange(5):
            case 0:
                changed[place : place + 1] = bytes([chance.randrange(256)])
            case 1:
                del changed[place : place + chance.randint(1, 8)]
            case 2:
                changed[place:place] = chance.randbytes(chance.randint(1, 8))
            case 3:
                changed[place : place + 1] = chance.choice(b'{}[]":,0123456789$').to_bytes()
            case 4:
                length = chance.randint(1, 12)
                source = chance.randrange(len(data))
                changed[place : place + length] = data[source : source + length]
    return bytes(changed)


def survive(count: int) -> tuple[int, int]:
    """Feed mutated frames; return how many were refused and how many were still valid."""
    chance = random.Random(20261123)
    corpus = [to_bytes(message) for message in MESSAGES]
    refused = valid = 0
    for _ in range(count):
        data = mutate(chance.choice(corpus), chance)
        try:
            valid += len(feed(wire.Decoder(), data, lambda: 1 << 30))
        except ProtocolError:
            refused += 1
    return refused, valid


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize(
    "count",
    [20_000, pytest.param(1_000_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
)
def test_mutated_frames_raise_only_protocol_errors_in_bounded_memory(count: int) -> None:
    survive(2000)
    before = peak_bytes()
    refused, valid = survive(count)
    assert refused > count / 4
    assert valid > count / 100
    assert peak_bytes() - before < codec.POOL_BYTES_MAX
    codec.empty_pool()


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_only_protocol_errors(data: bytes) -> None:
    pieces: Iterable[bytes] = (data, frame_of(data) if data else b"", b"MRY1" + data)
    for piece in pieces:
        try:
            feed(wire.Decoder(), piece, lambda: 1 << 30)
        except ProtocolError:
            continue
