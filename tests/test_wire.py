"""Frames: any chunking in, the same message out; hostile bytes raise ProtocolError and no more."""

import gc
import json
import os
import random
import resource
import struct
import subprocess
import sys
import time
import traceback
import weakref
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from miniray import ProtocolError, SharedTensor, codec, decoding, header, loans, pool, process, wire
from miniray.decoding import Decoder
from tests.support.decoders import feed

torch = pytest.importorskip("torch")
numpy = pytest.importorskip("numpy")

from tests.sendable import EXAMPLES  # noqa: E402  # needs both

MESSAGES: list[Any] = [
    None,
    {"cmd": "train", "step": 3, "lr": 0.001},
    ("a", ["b", (1, 2.5)], {"$": True}),
    b"\x00raw\xff",
    {"batch": torch.arange(12).reshape(3, 4), "mask": numpy.array([True, False])},
    [torch.zeros(0, 3), torch.tensor(1.5, dtype=torch.bfloat16), bytearray(b"abc")],
]
json_values = st.recursive(
    st.none() | st.integers() | st.text(st.sampled_from('ab",[{\\é')),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.sampled_from('a",[')), inner)
    ),
    max_leaves=8,
)
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
    return on_the_wire(wire.encode(kind, message))[0]


def on_the_wire(frame: wire.Encoded) -> tuple[bytes, list[int]]:
    """Return what is sent of a frame, and the descriptors that go with its first byte."""
    descriptors = [owner.descriptor for owner in frame.owners]
    loan = b""
    if frame.loan is not None:
        descriptors.insert(0, frame.loan.piece.memory.descriptor)
        loan = wire.describe_loan(frame.loan.piece.number, frame.loan.add_reader(), is_new=True)
    return frame.head + loan + b"".join(map(bytes, frame.parts)), descriptors


def exchange(message: Any, *, memfd: bool = True, size: int = 1 << 30) -> Any:
    """Return a message as it arrives, in pieces of a size, with descriptors of its own."""
    frame = wire.encode(wire.MESSAGE, message, memfd=memfd)
    data, descriptors = on_the_wire(frame)
    copies = list(map(os.dup, descriptors))
    (arrived,) = feed(Decoder(memfd=memfd), data, lambda: size, copies)
    return arrived.body


def assert_same(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    if isinstance(ours, torch.Tensor | numpy.ndarray):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert (ours == theirs).all()
    elif isinstance(ours, SharedTensor):
        assert_same(ours.tensor, theirs.tensor)
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
        (frame,) = feed(Decoder(), to_bytes(message), lambda size=size: size)
        assert frame.kind == wire.MESSAGE
        assert_same(frame.body, message)


@given(
    st.lists(st.sampled_from(MESSAGES), min_size=1, max_size=4),
    st.lists(st.integers(1, 40), min_size=1, max_size=20),
)
def test_frames_in_a_row_survive_any_chunking(messages: list[Any], sizes: list[int]) -> None:
    turn = iter(range(10**9))
    data = b"".join(map(to_bytes, messages))
    frames = feed(Decoder(), data, lambda: sizes[next(turn) % len(sizes)])
    assert len(frames) == len(messages)
    for frame, message in zip(frames, messages, strict=True):
        assert_same(frame.body, message)


@given(st.lists(st.sampled_from(MESSAGES), min_size=1, max_size=3), st.booleans())
def test_who_feeds_no_more_than_is_missing_never_reaches_into_the_next_frame(
    messages: list[Any], slowly: bool
) -> None:
    decoder = Decoder()
    for message in messages:
        data, frames = to_bytes(message), []
        while data:
            assert 0 < decoder.missing <= len(data)
            nbytes = 1 if slowly else decoder.missing
            frames += feed(decoder, data[:nbytes])
            data = data[nbytes:]
            assert len(frames) == (not data)
        assert_same(frames[0].body, message)


def test_the_format_is_the_documented_one() -> None:
    assert to_bytes(GOLDEN_MESSAGE) == GOLDEN_FRAME


@pytest.mark.parametrize(("message", "golden"), GOLDEN_HEX.values(), ids=GOLDEN_HEX.keys())
def test_the_format_has_not_changed(message: Any, golden: str) -> None:
    assert to_bytes(message).hex() == golden
    (frame,) = feed(Decoder(), bytes.fromhex(golden))
    assert_same(frame.body, message)


@pytest.mark.parametrize("kind", wire.KINDS)
def test_every_kind_of_frame_keeps_its_kind(kind: int) -> None:
    (frame,) = feed(Decoder(), to_bytes({"a": 1}, kind))
    assert frame == (kind, {"a": 1})


@given(st.sampled_from(MESSAGES), st.data())
def test_a_frame_that_is_cut_short_is_no_frame_and_no_error(message: Any, data: Any) -> None:
    whole = to_bytes(message)
    part = whole[: data.draw(st.integers(0, len(whole) - 1))]
    assert feed(Decoder(), part) == []


def test_a_header_lists_each_buffer_and_its_bytes_follow() -> None:
    data = to_bytes({"x": torch.tensor([1, 2], dtype=torch.int16)})
    magic, kind, length = struct.unpack("!4sBI", data[:9])
    assert (magic, kind) == (b"MRY1", wire.MESSAGE | wire.HAS_RAW_BYTES)
    assert json.loads(data[9 : 9 + length]) == {
        "body": {"x": {"$": "buffer", "index": 0}},
        "buffers": [{"type": "torch", "dtype": "int16", "shape": [2], "nbytes": 4}],
    }
    assert data[9 + length :] == b"\x01\x00\x02\x00"


def test_buffers_that_are_alike_are_described_once() -> None:
    ones, twos = torch.ones(16), torch.full((16,), 2.0)
    message = [ones, twos, numpy.zeros(8), torch.ones(4, 4), twos, b"x" * 64, b"y" * 64, b"a", b"b"]
    data = to_bytes(message)
    described = json.loads(data[9 : data.index(b"}]}") + 3])["buffers"]
    assert [one if type(one) is int else one["shape"] for one in described] == [
        *([16], 0, [8], [4, 4], 0),
        *([64], 5),
        *([1], [1]),  # less than REPEATED_BYTES_MIN: a few bytes are not to claim many objects
    ]
    (received,) = feed(Decoder(), data)
    assert_same(received.body, message)


def frame_of(text: str | bytes, kind: int = wire.MESSAGE, magic: bytes = b"MRY1") -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("!4sBI", magic, kind, len(data)) + data


def spec(**changes: Any) -> str:
    fields = {"type": "torch", "dtype": "int16", "shape": [2], "nbytes": 4, **changes}
    return json.dumps({"body": {"$": "buffer", "index": 0}, "buffers": [fields]})


def described_again(nbytes: int, again: Any = 0, **changes: Any) -> str:
    fields = {"type": "bytes", "dtype": None, "shape": [nbytes], "nbytes": nbytes, **changes}
    return json.dumps({"body": 1, "buffers": [fields, again]})


RAW = wire.MESSAGE | wire.HAS_RAW_BYTES
DESCRIBED = wire.MESSAGE | wire.HAS_DESCRIPTORS
HOSTILE = {
    "another magic": frame_of("{}", magic=b"HTTP"),
    "another version": frame_of("{}", magic=b"MRY2"),
    "unknown kind": frame_of('{"body":1}', kind=9),
    "no header": struct.pack("!4sBI", b"MRY1", 1, 0),
    "endless header": struct.pack("!4sBI", b"MRY1", 1, wire.HEADER_BYTES_MAX + 1),
    "endless handshake": struct.pack("!4sBI", b"MRY1", wire.AUTH, wire.AUTH_BYTES_MAX + 1),
    "no JSON": frame_of("{nothing"),
    "no text": frame_of(b"\xff\xfe"),
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
    "shared memory over a network": frame_of(spec(type="shared"), kind=RAW),
    "descriptors over a network": frame_of(spec(), kind=DESCRIBED),
    "descriptors and raw bytes over a network": frame_of(spec(), kind=RAW | DESCRIBED),
    "a handshake with descriptors": frame_of(spec(), kind=wire.AUTH | wire.HAS_DESCRIPTORS),
    "no ASCII": frame_of('{"body":"é"}'),
    "an empty list of buffers": frame_of('{"body":1,"buffers":[]}'),
    "three fields": frame_of(spec(shape=[0], nbytes=0)[:-1] + ', "more": 1}'),
    "no buffers but another field": frame_of('{"body":1,"more":1}'),
    "dict of a dict": frame_of('{"body":{"$":"dict","items":[{"ab":1}]}}'),
    "dict of triples": frame_of('{"body":{"$":"dict","items":[["a",1,2]]}}'),
    "dict whose keys are tuples of lists": frame_of(
        '{"body":{"$":"dict","items":[[{"$":"tuple","items":[[]]},1]]}}'
    ),
    "no mark": frame_of('{"body":{"$":null}}'),
    "a mark that is a list": frame_of('{"body":{"$":["tuple"],"items":[]}}'),
    "unknown mark": frame_of('{"body":{"$":"call"}}'),
    "index without a buffer": frame_of('{"body":{"$":"buffer","index":0}}'),
    "negative index": frame_of('{"body":{"$":"buffer","index":-1}}'),
    "tuple of nothing": frame_of('{"body":{"$":"tuple"}}'),
    "dict with a key that is none": frame_of('{"body":{"$":"dict","items":[[[],2]]}}'),
    "dict with a key twice": frame_of('{"body":{"$":"dict","items":[[1,2],[true,3]]}}'),
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
    "described as none is": frame_of(described_again(0), kind=RAW),
    "described as the next is": frame_of(described_again(64, again=1), kind=RAW),
    "described as the last is": frame_of(described_again(64, again=-1), kind=RAW),
    "described as true is": frame_of(described_again(64, again=True), kind=RAW),
    "a small one described as another is": frame_of(described_again(63), kind=RAW),
    "shared memory described as another is": frame_of(
        described_again(64, type="shared", dtype="uint8"), kind=DESCRIBED
    ),
    "handshake with buffers": frame_of(spec(shape=[0], nbytes=0), kind=wire.AUTH),
    "handshake with raw bytes": frame_of(spec(), kind=wire.AUTH | wire.HAS_RAW_BYTES),
    "a number of many digits": frame_of('{"body":' + "1" * 10_000 + "}"),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_no_encoder_makes_is_a_protocol_error(data: bytes) -> None:
    for decoder in (Decoder(), Decoder(memfd=True)):
        with pytest.raises(ProtocolError) as raised:
            # What is refused on a network only, is refused here because no descriptor comes.
            feed(decoder, data)
        assert len(str(raised.value)) < 400


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (frame_of('{"body":{"$":"call","items":[]}}'), "an unknown mark 'call' in a message"),
        (
            frame_of(spec(dtype="n" * 100), kind=RAW),
            r"kind of buffer 'torch' with dtype 'n+\.\.\.n+'$",
        ),
    ],
    ids=["a mark", "a dtype"],
)
def test_a_protocol_error_quotes_what_came_but_not_all_of_it(data: bytes, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        feed(Decoder(), data)


@pytest.mark.parametrize(
    "data",
    [
        frame_of(spec(type="shared"), kind=DESCRIBED),
        frame_of(spec(type="shared", shape=[0], nbytes=0)),
        frame_of(spec(), kind=DESCRIBED)[:9],
        frame_of(spec(), kind=RAW | wire.HAS_DESCRIPTORS)[:9],
    ],
    ids=["shared", "shared and empty", "packed", "both"],
)
def test_over_a_network_descriptors_are_not_even_waited_for(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        feed(Decoder(), data)


def test_after_an_error_nothing_more_is_decoded() -> None:
    decoder = Decoder()
    errors = []
    for piece in (frame_of(spec(nbytes=5), kind=RAW), to_bytes({"a": 1}), b""):
        decoder.feed(piece)
        with pytest.raises(ProtocolError) as raised:
            decoder.next_frame()
        errors.append(str(raised.value))
    assert len(set(errors)) == 1


def test_a_decoder_that_is_at_work_can_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a forked child it is, for ever, if another thread of the parent's was decoding."""
    decoder = Decoder()

    def close(*_: Any) -> str:
        decoder.close()
        return "closed"

    monkeypatch.setattr(codec, "decode", close)
    (frame,) = feed(decoder, to_bytes(b"raw"))
    assert frame.body == "closed"


def test_a_refusal_of_a_tree_holds_nothing_of_its_message() -> None:
    data = frame_of(HOSTILE["tuple of nothing"][9:])
    with pytest.raises(ProtocolError) as raised:
        feed(Decoder(), data)
    assert isinstance(raised.value.__cause__, KeyError)
    assert raised.value.__cause__.__traceback__ is None


def test_a_stranger_may_send_handshakes_only() -> None:
    with pytest.raises(ProtocolError):
        feed(Decoder(auth_only=True), to_bytes({"a": 1}))
    with pytest.raises(ProtocolError):
        feed(
            Decoder(auth_only=True),
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
    text = json.dumps({"body": [], "buffers": [fields] * count})
    pool.empty()
    before = resident_bytes()
    decoder = Decoder()
    assert feed(decoder, frame_of(text, kind=RAW) + b"the first bytes") == []
    assert decoder.missing >= nbytes - len(b"the first bytes")
    assert resident_bytes() - before < 32 << 20
    del decoder
    pool.empty()


def test_a_stranger_cannot_have_torch_imported() -> None:
    script = f"""if True:
        import sys
        from miniray import ProtocolError
        from miniray.decoding import Decoder
        decoder, rest = Decoder(auth_only=True), {HOSTILE["handshake with buffers"]!r}
        try:
            decoder.feed(rest)
            decoder.next_frame()
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


class TestLimits:
    """What the sender refuses is what the receiver refuses, to the byte."""

    @pytest.fixture
    def header_bytes_max(self, monkeypatch: pytest.MonkeyPatch) -> int:
        for module in (header, wire, decoding):
            monkeypatch.setattr(module, "HEADER_BYTES_MAX", 10_000)
            monkeypatch.setattr(module, "HEADER_VALUES_MAX", 1000, raising=False)
        return 10_000

    def test_a_header_may_be_as_long_as_the_limit(self, header_bytes_max: int) -> None:
        message = "x" * (header_bytes_max - len('{"body":""}'))
        (frame,) = feed(Decoder(), to_bytes(message))
        assert frame.body == message
        with pytest.raises(ValueError, match="send it in parts"):
            wire.encode(wire.MESSAGE, message + "x")
        with pytest.raises(ProtocolError, match="10001 bytes; the limit is 10000"):
            feed(Decoder(), frame_of(f'{{"body":"{message}x"}}'))

    @pytest.mark.parametrize("raw", [[], [b"raw"]], ids=["alone", "with a buffer"])
    def test_a_header_may_hold_as_many_values_as_the_limit(
        self, header_bytes_max: int, raw: list[bytes]
    ) -> None:
        """A message of 1,000 is counted only if it is longer than 4,096 characters."""
        fixed = 12 if raw else 2  # brackets, and the commas of a buffer's description
        message = ["x" * 4096, *raw, *[1] * (1000 - fixed)]
        (frame,) = feed(Decoder(), to_bytes(message))
        assert frame.body == message
        with pytest.raises(ValueError, match="1000 values in that; send numbers as an array"):
            wire.encode(wire.MESSAGE, [*message, 1])
        text = json.dumps(["x" * 4096] + [1] * 999, separators=(",", ":"))
        with pytest.raises(ProtocolError, match="more than 1000 values"):
            feed(Decoder(), frame_of(f'{{"body":{text}}}'))

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(json_values, st.integers(0, 12))
    def test_both_sides_count_alike(
        self, monkeypatch: pytest.MonkeyPatch, value: Any, values_max: int
    ) -> None:
        text = f'{{"body":{header.dumps(value)}}}'
        monkeypatch.setattr(header, "HEADER_VALUES_MAX", values_max)
        monkeypatch.setattr(wire, "AUTH_BYTES_MAX", 0)
        # What is too short to hold more is not looked at.
        too_many = count_values(json.loads(text)) > values_max
        assert header.exceeds_limits(text) == too_many
        decoder = Decoder()
        if too_many:
            with pytest.raises(ValueError, match="the limits are"):
                wire.encode(wire.MESSAGE, value)
            with pytest.raises(ProtocolError, match="values"):
                feed(decoder, frame_of(text))
        else:
            wire.encode(wire.MESSAGE, value)

    @pytest.mark.thorough
    def test_ordinary_large_messages_pass(self) -> None:
        chance = random.Random(1)
        floats = [chance.random() for _ in range(1_000_000)]
        text = ",[{" * 2_000_000
        for message in (floats, text, {"text": text, "floats": floats}):
            (frame,) = feed(Decoder(), to_bytes(message))
            assert frame.body == message

    def test_a_message_may_be_as_large_as_the_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        message = {"x": b"x" * 100, "y": b"y" * 2000}
        frame = wire.encode(wire.MESSAGE, message)
        nbytes = len(frame.head) - 9 + 2100
        for memfd in (False, True):
            monkeypatch.setattr(wire, "PACKED_BYTES_MIN", 2000)
            monkeypatch.setattr(wire, "MESSAGE_BYTES_MAX", nbytes)
            assert exchange(message, memfd=memfd) == message
            frame = wire.encode(wire.MESSAGE, message, memfd=memfd)
            monkeypatch.setattr(wire, "MESSAGE_BYTES_MAX", nbytes - 1)
            with pytest.raises(ValueError, match=f"the limits are {nbytes - 1} in all"):
                wire.encode(wire.MESSAGE, message, memfd=memfd)
            decoder = Decoder(memfd=memfd)
            with pytest.raises(ProtocolError, match=f"2100 raw bytes; the limit is {nbytes - 1}"):
                feed(decoder, frame.head)


def count_values(value: Any) -> int:
    """Return how many commas and opening brackets the JSON of a value needs."""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return 1 + max(len(value) - 1, 0) + sum(map(count_values, inner))
    return 0


@pytest.mark.thorough
def test_an_encoded_message_of_too_many_values_costs_no_memory() -> None:
    """64 MiB of empty lists would take 1.7 GiB, and with one mark among them twice as much."""
    script = """if True:
        import resource, struct, sys
        from miniray import ProtocolError, wire
        from miniray.decoding import Decoder
        text = b'{"body":[' + eval(sys.argv[1]) * 13_000_000 + b'{"$":"tuple","items":[]}]}'
        rest = memoryview(struct.pack("!4sBI", b"MRY1", wire.MESSAGE, len(text)) + text)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        decoder = Decoder()
        try:
            while rest:
                nbytes = min(1 << 16, len(rest))
                if decoder.memory is None:
                    decoder.feed(bytes(rest[:nbytes]))
                else:
                    nbytes = min(nbytes, len(decoder.memory))
                    decoder.memory[:nbytes] = rest[:nbytes]
                    decoder.filled(nbytes)
                rest = rest[nbytes:]
                decoder.next_frame()
        except ProtocolError as error:
            print(str(error)[:200])
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    """
    for piece in (b"[],", b'"ab",'[1:]):
        ended = subprocess.run(
            [sys.executable, "-c", script, repr(piece)], capture_output=True, text=True
        )
        said, mebibytes = ended.stdout.splitlines()
        assert said.endswith("more than 4194304 values"), ended.stderr
        assert int(mebibytes) < 200


def open_descriptors() -> list[str]:
    gc.collect()  # what an earlier exception's frames held
    return sorted(os.listdir("/proc/self/fd"))


local_values = st.recursive(
    st.sampled_from([b"", b"raw", bytearray(b"more"), "text", 1])
    | st.integers(0, 40).map(lambda n: torch.arange(n, dtype=torch.float32))
    | st.integers(0, 40).map(lambda n: numpy.arange(n, dtype="<i2").reshape(1, n))
    | st.integers(0, 5).map(lambda n: SharedTensor((n,), torch.int64)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)


class TestDescriptors:
    """Two processes of one machine: what goes as a descriptor or on loan, and who closes it."""

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    @given(local_values, st.integers(1, 50), st.sampled_from([1, 64, 200, 1 << 20]), st.booleans())
    def test_any_message_arrives_in_pieces_of_any_size(
        self,
        monkeypatch: pytest.MonkeyPatch,
        message: Any,
        size: int,
        nbytes_min: int,
        memfd: bool,
    ) -> None:
        monkeypatch.setattr(wire, "PACKED_BYTES_MIN", nbytes_min)
        try:
            frame = wire.encode(wire.MESSAGE, message, memfd=memfd)
        except TypeError:
            assert not memfd
            return
        assert bool(frame.head[4] & wire.HAS_DESCRIPTORS) == bool(frame.owners)
        assert bool(frame.head[4] & wire.HAS_LOAN) == bool(frame.loan)
        assert bool(frame.head[4] & wire.HAS_RAW_BYTES) == bool(frame.parts)
        assert_same(exchange(message, memfd=memfd, size=size), message)

    def test_the_format_has_not_changed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(wire, "PACKED_BYTES_MIN", 4)
        message = [b"abc", SharedTensor((1,)), b"d"]
        frame = wire.encode(wire.MESSAGE, message, memfd=True)
        assert frame.head[:5] == b"MRY1\x61"
        assert json.loads(frame.head[9:])["buffers"] == [
            {"type": "bytes", "dtype": None, "shape": [3], "nbytes": 3},
            {"type": "shared", "dtype": "float32", "shape": [1], "nbytes": 4},
            {"type": "bytes", "dtype": None, "shape": [1], "nbytes": 1},
        ]
        assert frame.parts == []
        _, descriptors = on_the_wire(frame)
        assert len(descriptors) == 2
        packed = b"abc".ljust(64, b"\0") + b"d"
        assert os.pread(descriptors[0], len(packed), loans.FLAGS_BYTES) == packed
        assert wire.describe_loan(2, 258, is_new=True) == b"\2\1\1\2"
        assert wire.describe_loan(2, 1, is_new=False, is_shared=True) == b"\2\2\0\1"
        # Over a network the same bytes follow the header.
        sent = to_bytes([b"abc", b"d"])
        assert sent[4:5] == b"\x81"
        assert sent[-128:] == packed.ljust(128, b"\0")

    def test_a_large_message_is_on_loan_and_a_small_one_is_not(self) -> None:
        small = [torch.ones(1 << 8) for _ in range(1023)]
        assert wire.encode(wire.MESSAGE, small, memfd=True).loan is None
        large = [*small, b"x" * 1024]
        frame = wire.encode(wire.MESSAGE, large, memfd=True)
        assert (frame.loan is not None, frame.parts) == (True, [])
        assert wire.encode(wire.MESSAGE, large).loan is None

    @pytest.mark.parametrize("memfd", [True, False])
    def test_packed_parts_are_aligned_writable_and_apart(self, memfd: bool) -> None:
        message = [torch.full((3,), 1.0), b"x" * (1 << 20), numpy.full(5, 2.0), torch.ones(9)]
        first, _, second, third = exchange(message, memfd=memfd)
        for one in (first.data_ptr(), second.ctypes.data, third.data_ptr()):
            assert one % 64 == 0
        first.zero_()
        second[:] = 7
        assert third.tolist() == [1.0] * 9
        assert second.tolist() == [7.0] * 5
        assert message[0].tolist() == [1.0] * 3

    def test_what_a_forked_child_writes_into_a_received_array_stays_there(self) -> None:
        (arrived,) = exchange([torch.zeros(1 << 18)])

        def overwrite() -> int:
            arrived.numpy()[:] = 5
            return int(arrived[7])

        assert process.fork(overwrite).wait(20) == 5
        assert not arrived.any()

    def test_a_child_forked_while_a_message_is_on_its_way_keeps_none_of_its_memory(self) -> None:
        shared = SharedTensor((1,))
        frame = wire.encode(wire.MESSAGE, [shared, bytes(1 << 20)], memfd=True)
        _, descriptors = on_the_wire(frame)

        def look() -> int:
            packed, tensor = (os.path.exists(f"/proc/self/fd/{one}") for one in descriptors)
            return 2 * packed + tensor  # the SharedTensor is what a work function may have

        assert process.fork(look).wait(20) == 1
        assert os.fstat(descriptors[0]).st_size == loans.FLAGS_BYTES + (1 << 20)

    def test_as_many_shared_tensors_as_one_byte_carries(self) -> None:
        shared = [SharedTensor((1,)) for _ in range(wire.DESCRIPTORS_MAX + 1)]
        frame = wire.encode(wire.MESSAGE, [*shared[:-1], b"small"], memfd=True)
        assert len(on_the_wire(frame)[1]) == 253
        frame = wire.encode(wire.MESSAGE, [*shared[2:], bytes(1 << 20)], memfd=True)
        assert len(on_the_wire(frame)[1]) == 253
        with pytest.raises(ValueError, match="254 SharedTensors: the limit is 253; send it in"):
            wire.encode(wire.MESSAGE, shared, memfd=True)
        with pytest.raises(ValueError, match="253 SharedTensors: the limit is 252; send it in"):
            wire.encode(wire.MESSAGE, [*shared[1:], bytes(1 << 20)], memfd=True)

    @pytest.mark.parametrize("large", [False, True], ids=["raw bytes follow", "on loan"])
    def test_a_frame_that_is_cut_anywhere_and_closed_leaks_nothing(self, large: bool) -> None:
        message = [SharedTensor((2,)), b"abc" * (1 if not large else 1 << 19), SharedTensor((1,))]
        frame = wire.encode(wire.MESSAGE, message, memfd=True)
        data, descriptors = on_the_wire(frame)
        before = open_descriptors()
        for cut in range(len(data)):
            decoder = Decoder(memfd=True)
            copies = list(map(os.dup, descriptors)) if cut else []
            assert feed(decoder, data[:cut], descriptors=copies) == []
            decoder.close()
            decoder.close()
            assert sorted(os.listdir("/proc/self/fd")) == before
        assert len(frame.head) == (len(data) - 4 if large else len(data) - 3)

    @pytest.mark.parametrize("count", [0, 1, 3, 253, 507])
    def test_more_or_fewer_descriptors_than_promised_are_closed(self, count: int) -> None:
        message = [SharedTensor((2,)), bytes(1 << 20)]
        data, descriptors = on_the_wire(wire.encode(wire.MESSAGE, message, memfd=True))
        before = open_descriptors()
        copies = [os.dup(descriptors[0]) for _ in range(count)]
        decoder = Decoder(memfd=True)
        if count in (3, 253):
            assert len(feed(decoder, data, descriptors=copies)) == 1
        else:
            said = f"{count} descriptors came where 2" if count < 2 else "that no frame speaks of"
            with pytest.raises(ProtocolError, match=said):
                feed(decoder, data, descriptors=copies)
        decoder.close()
        assert open_descriptors() == before

    @pytest.mark.parametrize("what", ["pipe", "directory", "short"])
    @pytest.mark.parametrize("place", [0, 1])
    def test_a_descriptor_of_something_else_is_refused_and_closed(
        self, what: str, place: int
    ) -> None:
        message = [bytes(1 << 20), SharedTensor((2,))]
        data, descriptors = on_the_wire(wire.encode(wire.MESSAGE, message, memfd=True))
        before = open_descriptors()
        copies = list(map(os.dup, descriptors))
        os.close(copies[place])
        if what == "pipe":
            copies[place], other = os.pipe()
            os.close(other)
        elif what == "directory":
            copies[place] = os.open("/", os.O_RDONLY)
        else:
            copies[place] = os.memfd_create("short")
            os.truncate(copies[place], 7)
        decoder = Decoder(memfd=True)
        with pytest.raises(ProtocolError):
            feed(decoder, data, descriptors=copies)
        decoder.close()
        assert open_descriptors() == before

    def test_a_hostile_tree_behind_good_descriptors_is_refused_and_they_are_closed(self) -> None:
        fields = {"type": "shared", "dtype": "float32", "shape": [4], "nbytes": 16}
        text = json.dumps({"body": [{"$": "buffer", "index": 1}], "buffers": [fields]})
        before = open_descriptors()
        memory = os.memfd_create("good")
        os.truncate(memory, 16)
        with pytest.raises(ProtocolError):
            feed(Decoder(memfd=True), frame_of(text, kind=DESCRIBED), descriptors=[memory])
        assert open_descriptors() == before


@pytest.mark.parametrize(
    "text",
    [
        spec(type="x" * 10**6),
        spec(dtype="x" * 10**6),
        spec(type="bytes", dtype="x" * 10**6),
        spec(shape=["x" * 10**6]),
        spec(shape=[[["x" * 1000] * 1000]]),
        spec(nbytes=int("1" * 4000)),
        spec(shape=[int("1" * 4000)]),
        json.dumps({"body": {"$": "x" * 10**6, "items": []}}),
        json.dumps({"body": {"$": [["x" * 10**6] * 3] * 3, "items": []}}),
        json.dumps({"x" * 10**6: 1}),
        '{"body":' + "x" * 10**6,
        '{"body":"' + "\xff" * 10**6,
        "1" * 10**6,
    ],
    ids=lambda text: text[:60],
)
def test_what_a_refusal_says_is_short(text: str) -> None:
    for kind in (wire.MESSAGE, RAW):
        try:
            feed(Decoder(), frame_of(text, kind))
        except ProtocolError as error:
            said = error
            assert len(str(said)) < 400
            assert len("".join(traceback.format_exception(said))) < 10_000


@pytest.mark.thorough
def test_many_small_buffers_take_a_time_that_grows_with_their_number() -> None:
    """Quadratic it was, on both sides: 300,000 buffers of one byte took 4.5 s."""

    def seconds_per_buffer(count: int) -> float:
        message = [b"x"] * count
        begin = time.process_time()
        data = to_bytes(message)
        (frame,) = feed(Decoder(), data)
        assert frame.body == message
        return (time.process_time() - begin) / count

    gc.disable()  # it looks at everything again and again while so much is made
    try:
        few = min(seconds_per_buffer(10_000) for _ in range(3))
        assert seconds_per_buffer(250_000) < 10 * few  # and not 25 times
    finally:
        gc.enable()


def test_a_header_that_is_only_claimed_costs_no_memory() -> None:
    before = resident_bytes()
    decoder = Decoder()
    feed(decoder, struct.pack("!4sBI", b"MRY1", 1, 60 << 20) + b"[" * 100)
    assert resident_bytes() - before < 8 << 20
    pool.empty()


def test_the_decoder_keeps_nothing_of_a_message_that_it_returned() -> None:
    decoder = Decoder()
    for message in ([torch.ones(3)], {"x": {"$": numpy.ones(3)}}):
        (frame,) = feed(decoder, to_bytes(message))
        inner = weakref.ref(frame.body[0] if type(message) is list else frame.body["x"]["$"])
        del frame
        assert inner() is None
    body = feed(decoder, to_bytes({"a": ["b"]}))[0].body
    assert sys.getrefcount(body) == 2


def test_a_decoder_is_freed_without_the_garbage_collector() -> None:
    """What it has received of a frame, descriptors too, goes with it."""
    decoder = Decoder()
    feed(decoder, GOLDEN_FRAME[:20])
    gone = weakref.ref(decoder)
    del decoder
    assert gone() is None


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
    corpus = [to_bytes(message) for message in (*MESSAGES, *EXAMPLES.values())]
    corpus += [to_bytes({"code": 0}, wire.EXIT), to_bytes({"nonce": "a"}, wire.AUTH)]
    local = wire.encode(wire.MESSAGE, [SharedTensor((4,)), torch.zeros(1 << 18)], memfd=True)
    corpus.append(on_the_wire(local)[0])
    memory = os.memfd_create("anything")
    os.truncate(memory, loans.FLAGS_BYTES + (1 << 20))
    before = open_descriptors()
    refused = valid = 0
    for number in range(count):
        data = mutate(corpus, chance)
        decoder = Decoder(auth_only=number % 8 == 0, memfd=number % 4 == 1)
        many = chance.randint(1, 3) if data and number % 4 == 1 else 0
        copies = [os.dup(memory) for _ in range(many)]
        try:
            valid += len(feed(decoder, data, descriptors=copies))
        except ProtocolError:
            refused += 1
        finally:
            decoder.close()
    assert open_descriptors() == before
    os.close(memory)
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
    assert peak_bytes() - before < pool.POOL_BYTES_MAX
    pool.empty()


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_only_protocol_errors(data: bytes) -> None:
    pieces: Iterable[bytes] = (data, frame_of(data) if data else b"", b"MRY1" + data)
    for piece in pieces:
        try:
            feed(Decoder(), piece)
        except ProtocolError:
            continue
