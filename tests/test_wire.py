"""Frames: any chunking in, the same message out; hostile bytes raise ProtocolError and no more."""

import json
import random
import resource
import struct
import subprocess
import sys
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
GOLDEN_HEX = {
    "None": (None, "4d525931010000000d7b22626f6479223a6e756c6c7d"),
    "tuple": (
        (1, "é"),
        "4d525931010000002b7b22626f6479223a7b2224223a227475706c65222c226974656d73223a5b312c225c75"
        "30306539225d7d7d",
    ),
    "dict with $": (
        {"$": 1},
        "4d52593101000000277b22626f6479223a7b2224223a2264696374222c226974656d73223a5b5b2224222c31"
        "5d5d7d7d",
    ),
    "bytes": (
        b"\x00\xff",
        "4d52593181000000627b22626f6479223a7b2224223a22627566666572222c22696e646578223a307d2c2262"
        "756666657273223a5b7b2274797065223a226279746573222c226474797065223a6e756c6c2c227368617065"
        "223a5b325d2c226e6279746573223a327d5d7d00ff",
    ),
    "array": (
        numpy.array([[1], [256]], "<u2"),
        "4d52593181000000657b22626f6479223a7b2224223a22627566666572222c22696e646578223a307d2c2262"
        "756666657273223a5b7b2274797065223a226e756d7079222c226474797065223a223c7532222c2273686170"
        "65223a5b322c315d2c226e6279746573223a347d5d7d01000001",
    ),
}
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


@pytest.mark.parametrize(("message", "golden"), GOLDEN_HEX.values(), ids=GOLDEN_HEX.keys())
def test_the_format_has_not_changed(message: Any, golden: str) -> None:
    assert to_bytes(message).hex() == golden
    (frame,) = feed(wire.Decoder(), bytes.fromhex(golden), lambda: 1 << 30)
    assert_same(frame.body, message)


@pytest.mark.parametrize("kind", wire.KINDS)
def test_every_kind_of_frame_keeps_its_kind(kind: int) -> None:
    (frame,) = feed(wire.Decoder(), to_bytes({"a": 1}, kind), lambda: 1 << 30)
    assert frame == (kind, {"a": 1})


@given(st.sampled_from(MESSAGES), st.data())
def test_a_frame_that_is_cut_short_is_no_frame_and_no_error(message: Any, data: Any) -> None:
    whole = to_bytes(message)
    part = whole[: data.draw(st.integers(0, len(whole) - 1))]
    assert feed(wire.Decoder(), part, lambda: 1 << 30) == []


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
    "deep and unclosed": frame_of('{"body":' + "[" * 1_000_000),
    "deep objects": frame_of('{"body":' + '{"a":' * 50_000 + "1" + "}" * 50_001),
    "shapes that overflow": frame_of(spec(shape=[2**61, 2**61, 0], nbytes=0)),
    "an empty array of too many": frame_of(spec(type="numpy", dtype="<i2", shape=[2**61, 0, 8])),
    "size is a float": frame_of(spec(nbytes=4.0), kind=RAW),
    "size is a bool": frame_of(spec(dtype="bool", shape=[1], nbytes=True), kind=RAW),
    "raw bytes for one who promised none": frame_of(spec(shape=[0], nbytes=0), kind=RAW),
    "dtype is no text": frame_of(spec(dtype=["int16"]), kind=RAW),
    "spec is no object": frame_of('{"body":1,"buffers":[3]}'),
    "handshake with buffers": frame_of(spec(shape=[0], nbytes=0), kind=wire.AUTH),
    "handshake with raw bytes": frame_of(spec(), kind=wire.AUTH | wire.HAS_RAW_BYTES),
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


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize(
    ("nbytes", "count"), [(6 << 30, 1), ((1 << 20) - 1, 8000), (1 << 20, 8000)], ids=str
)
def test_a_size_that_is_only_claimed_costs_no_memory(nbytes: int, count: int) -> None:
    fields = {"type": "bytes", "dtype": None, "shape": [nbytes], "nbytes": nbytes}
    header = json.dumps({"body": 1, "buffers": [fields] * count})
    codec.empty_pool()
    before = resident_bytes()
    decoder = wire.Decoder()
    assert feed(decoder, frame_of(header, kind=RAW) + b"the first bytes", lambda: 1 << 30) == []
    assert len(decoder.want) == nbytes - len(b"the first bytes")
    assert resident_bytes() - before < 32 << 20
    del decoder
    codec.empty_pool()


def test_a_stranger_cannot_have_torch_imported() -> None:
    script = f"""if True:
        import sys
        from miniray import ProtocolError, wire
        decoder, rest = wire.Decoder(auth_only=True), {HOSTILE["handshake with buffers"]!r}
        try:
            while rest:
                nbytes = len(decoder.want)
                decoder.want[:] = rest[:nbytes]
                rest = rest[nbytes:]
                decoder.advance(nbytes)
        except ProtocolError:
            assert not {{"torch", "numpy"}} & set(sys.modules)
            print("refused")
    """
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.stdout == "refused\n", ended.stderr


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


def mutate(corpus: list[bytes], chance: random.Random) -> bytes:
    data = chance.choice(corpus)
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(changed)) if changed else 0
        match chance.randrange(7):
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
            case 5:
                changed[place:] = chance.choice(corpus)[place:]
            case 6 if chance.randrange(4) == 0:
                del changed[place:]
    return bytes(changed)


def survive(count: int) -> tuple[int, int]:
    """Feed mutated frames; return how many were refused and how many were still valid."""
    chance = random.Random(20261123)
    corpus = [to_bytes(message) for message in MESSAGES]
    corpus += [to_bytes({"code": 0}, wire.EXIT), to_bytes({"nonce": "a"}, wire.AUTH)]
    corpus.append(wire.encode(wire.MESSAGE, torch.zeros(1 << 18), memfd=True)[0] + b"\0")
    refused = valid = 0
    for number in range(count):
        data = mutate(corpus, chance)
        decoder = wire.Decoder(auth_only=number % 8 == 0, memfd=number % 4 == 1)
        try:
            valid += len(feed(decoder, data, lambda: 1 << 30))
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
