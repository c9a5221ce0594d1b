"""What a decoder has to do."""

from typing import Any

from exercises.checking import expect, expect_raises, note


def _frame(answer: Any, body: bytes) -> bytes:
    return bytes(answer.wire.PRELUDE.pack(answer.wire.MAGIC, answer.wire.MESSAGE, len(body)) + body)


def _feed(decoder: Any, data: bytes, piece_bytes: int = 1 << 20) -> list[Any]:
    """Fill what the decoder wants, at most so many bytes at a time; return what it returned."""
    frames = []
    while data:
        nbytes = min(len(data), len(decoder.want), piece_bytes)
        if nbytes == 0:
            expect(False, expected="memory for the next bytes", happened="it wants no bytes")
        decoder.want[:nbytes] = data[:nbytes]
        data = data[nbytes:]
        frames.append(decoder.advance(nbytes))
    return frames


def _bodies(frames: list[Any]) -> list[Any]:
    return [frame.body for frame in frames if frame is not None]


def check_one(answer: Any) -> None:
    """fill in one frame, with the body "hello", as it wants it"""
    decoder, frame = answer.wire.Decoder(), _frame(answer, b'"hello"')
    prelude_bytes = answer.wire.PRELUDE.size
    got = _feed(decoder, frame[:prelude_bytes])
    wanted = len(decoder.want)
    happened = f"it returned {got[-1]!r}, and wants {wanted} bytes"
    expect(
        (got, wanted) == ([None], 7),
        expected="None for the prelude, and 7 bytes of body wanted",
        happened=happened,
    )
    try:
        got = _feed(decoder, frame[prelude_bytes:])
    except answer.errors.ProtocolError as error:
        happened = f"an error about a body that was whole: {error}"
        expect(False, expected="the frame then", happened=happened)
    expect(
        got == [(answer.wire.MESSAGE, "hello")], expected="the frame then", happened=f"{got} then"
    )


def check_body_in_pieces(answer: Any) -> None:
    """fill in a frame with the body [1, 2], and of its body one byte less than it has"""
    decoder = answer.wire.Decoder()
    frame = _frame(answer, b"[1, 2]")
    try:
        first = _feed(decoder, frame[:-1], 9)
    except answer.errors.ProtocolError as error:
        first = [f"an error: {error}"]
    happened = f"a frame with {first[-1]!r} before all was there"
    expect(not any(first), expected="None while the body is not complete", happened=happened)
    note("all but one byte of the body had arrived, and now that")
    second = _feed(decoder, frame[-1:])
    expect(_bodies(second) == [[1, 2]], expected="[1, 2] then", happened=f"{second!r} then")


def check_length_in_pieces(answer: Any) -> None:
    """fill in two frames, of 300 bytes and of 2, one byte at a time"""
    text = b'"' + b"x" * 298 + b'"'
    try:
        got = _feed(answer.wire.Decoder(), _frame(answer, text) + _frame(answer, b"42"), 1)
    except answer.errors.ProtocolError as error:
        got = [answer.wire.Frame(0, f"ProtocolError: {error}")]
    shown = [body if not isinstance(body, str) else len(body) for body in _bodies(got)]
    expect(shown == [298, 42], expected="bodies: a text of 298, and 42", happened=f"{shown}")


def check_two_frames(answer: Any) -> None:
    """fill in two frames, one after the other"""
    decoder = answer.wire.Decoder()
    try:
        got = _bodies(_feed(decoder, _frame(answer, b'"one"') + _frame(answer, b'"three"')))
        happened = repr(got)
    except answer.errors.ProtocolError as error:
        got, happened = [], f"{error}"
    expect(got == ["one", "three"], expected="['one', 'three']", happened=happened)


def check_bodies_apart(answer: Any) -> None:
    """fill in two frames, and look whether the memory of the first is used again"""
    decoder = answer.wire.Decoder()
    prelude = decoder.want
    _feed(decoder, _frame(answer, b"11"))
    expect(
        len(decoder.want) == answer.wire.PRELUDE.size and decoder.want is not prelude,
        expected="the whole of a new prelude wanted",
        happened=f"{len(decoder.want)} bytes wanted",
    )


def check_limit(answer: Any) -> None:
    """fill in a prelude with a length of 4 GiB less one, and none of the body"""
    with expect_raises(answer.errors.ProtocolError, when="for a length of 4294967295"):
        _feed(answer.wire.Decoder(), _frame(answer, b"")[:5] + b"\xff\xff\xff\xff")


def check_nonsense(answer: Any) -> None:
    """fill in bodies that are no JSON: {, bytes that are no UTF-8, and 100000 brackets"""
    for body in (b"{", b"\xfd\xfe\xff", b"[" * 100_000):
        with expect_raises(answer.errors.ProtocolError, when=f"for {body[:8]!r}"):
            _feed(answer.wire.Decoder(), _frame(answer, body))
