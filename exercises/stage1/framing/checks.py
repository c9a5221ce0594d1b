"""What a frame has to be."""

import json
from typing import Any

from exercises.checking import expect, expect_raises

LIMIT = 1000  # instead of 64 MiB


def check_prelude(answer: Any) -> None:
    """call encode(1, "abcdefgh"), whose body is 10 bytes, with its quotes"""
    frame = answer.wire.encode(1, "abcdefgh")
    head = frame[:8] if isinstance(frame, bytes) else frame
    expect(
        head == b'\x01\x00\x00\x00\x0a"ab',
        expected="01 00 00 00 0a 22 61 62: kind 1, length 10, and the body",
        happened=head.hex(" ") if isinstance(head, bytes) else repr(head),
    )


def check_length(answer: Any) -> None:
    """call encode(2, "naïve 😀"), of 9 characters with its quotes, and of more bytes"""
    frame = answer.wire.encode(2, "naïve 😀")
    length = int.from_bytes(frame[1:5], "big")
    body = frame[5:]
    expect(
        length == len(body),
        expected="a length that is the number of bytes that follow",
        happened=f"a length of {length} and a body of {len(body)} bytes",
    )
    expect(json.loads(body) == "naïve 😀", expected="the same words", happened=repr(body))


def check_reads_what_it_wrote(answer: Any) -> None:
    """call decode_prelude on the first 5 bytes of encode(3, "seven")"""
    got = answer.wire.decode_prelude(answer.wire.encode(3, "seven")[:5])
    expect(got == (3, 7), expected="(3, 7)", happened=repr(got))


def check_large_lengths(answer: Any) -> None:
    """make BODY_BYTES_MAX 1000, and call decode_prelude with lengths of 1000, 1001, and 4 GiB"""
    answer.wire.BODY_BYTES_MAX = LIMIT
    wrong = answer.errors.ProtocolError
    try:
        got = answer.wire.decode_prelude(b"\x01\x00\x00\x03\xe8")
    except (wrong, ValueError):
        got = "an error for a length of exactly the limit"
    expect(got == (1, LIMIT), expected="(1, 1000): the limit itself is allowed", happened=str(got))
    for length in (LIMIT + 1, 4294967295):
        when = f"for a length of {length}"
        with expect_raises(wrong, when=when):
            got = answer.wire.decode_prelude(b"\x01" + length.to_bytes(4, "big"))
            expect(False, expected=f"ProtocolError {when}", happened=f"{got} was returned")


def check_large_messages(answer: Any) -> None:
    """make BODY_BYTES_MAX 1000, and call encode with bodies of 1000 bytes, and of 1001"""
    answer.wire.BODY_BYTES_MAX = LIMIT
    try:
        got = f"a frame of {len(answer.wire.encode(1, 'x' * (LIMIT - 2)))} bytes"
    except ValueError:
        got = "ValueError for a body of exactly the limit"
    expect(
        got == "a frame of 1005 bytes",
        expected="a frame of 1005 bytes: the limit itself is allowed",
        happened=got,
    )
    with expect_raises(ValueError, when="for a body of 1001 bytes"):
        got = f"a frame of {len(answer.wire.encode(1, 'x' * (LIMIT - 1)))} bytes was returned"
        expect(False, expected="ValueError for a body of 1001 bytes", happened=got)
