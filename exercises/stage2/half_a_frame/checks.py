"""What a decoder has to do."""

from types import ModuleType

from exercises.checking import expect, expect_raises, note


def _frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def check_one(answer: ModuleType) -> None:
    """feed one whole frame with the body b"hello" """
    got = answer.Decoder().feed(_frame(b"hello"))
    expect(got == [b"hello"], expected="[b'hello']", happened=repr(got))


def check_two_at_once(answer: ModuleType) -> None:
    """feed two frames, b"one" and b"three", in one piece"""
    note("both frames had arrived")
    got = answer.Decoder().feed(_frame(b"one") + _frame(b"three"))
    expect(got == [b"one", b"three"], expected="[b'one', b'three']", happened=repr(got))


def check_body_in_pieces(answer: ModuleType) -> None:
    """feed a frame with the body b"hello" in two pieces, cut within the body"""
    decoder = answer.Decoder()
    frame = _frame(b"hello")
    first = decoder.feed(frame[:6])
    expect(first == [], expected="[] while the body is not complete", happened=repr(first))
    second = decoder.feed(frame[6:])
    expect(second == [b"hello"], expected="[b'hello'] then", happened=f"{second!r} then")


def check_length_in_pieces(answer: ModuleType) -> None:
    """feed two frames, of 300 bytes and of 2, one byte at a time"""
    decoder = answer.Decoder()
    got = []
    for byte in _frame(b"x" * 300) + _frame(b"ab"):
        got += decoder.feed(bytes([byte]))
    sizes = [len(body) for body in got]
    expect(sizes == [300, 2], expected="bodies of 300 and 2 bytes", happened=f"sizes {sizes}")


def check_empty(answer: ModuleType) -> None:
    """feed an empty frame, and then one with the body b"after" """
    note("a frame of length zero had arrived")
    got = answer.Decoder().feed(_frame(b"") + _frame(b"after"))
    expect(got == [b"", b"after"], expected="[b'', b'after']", happened=repr(got))


def check_limit(answer: ModuleType) -> None:
    """feed a length of 1 MiB, which is the limit, and of 4 GiB less one, and none of the body"""
    try:
        got = answer.Decoder().feed((1 << 20).to_bytes(4, "big"))
    except ValueError:
        got = "ValueError for a length of exactly the limit"
    expect(got == [], expected="[]: the limit itself is allowed", happened=str(got))
    with expect_raises(ValueError, when="for a length of 4294967295"):
        answer.Decoder().feed(b"\xff\xff\xff\xff")
