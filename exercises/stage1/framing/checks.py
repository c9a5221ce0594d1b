"""What a frame has to be."""

import json
from types import ModuleType

from exercises.checking import expect, expect_raises


def check_prelude(answer: ModuleType) -> None:
    """call encode(1, "abcdefgh"), whose body is 10 bytes, with its quotes"""
    frame = answer.encode(1, "abcdefgh")
    head = frame[:8] if isinstance(frame, bytes) else frame
    expect(
        head == b'\x01\x00\x00\x00\x0a"ab',
        expected="01 00 00 00 0a 22 61 62: kind 1, length 10, and the body",
        happened=head.hex(" ") if isinstance(head, bytes) else repr(head),
    )


def check_utf8(answer: ModuleType) -> None:
    """call encode(2, "naïve 😀"), of 9 characters and 13 bytes with its quotes"""
    frame = answer.encode(2, "naïve 😀")
    length = int.from_bytes(frame[1:5], "big")
    body = frame[5:]
    expect(
        (length, len(body)) == (13, 13),
        expected="a length of 13 and a body of 13 bytes",
        happened=f"a length of {length} and a body of {len(body)} bytes",
    )
    expect(json.loads(body) == "naïve 😀", expected="the same words", happened=repr(body))


def check_reads_what_it_wrote(answer: ModuleType) -> None:
    """call decode_prelude on the first 5 bytes of encode(3, "seven")"""
    got = answer.decode_prelude(answer.encode(3, "seven")[:5])
    expect(got == (3, 7), expected="(3, 7)", happened=repr(got))


def check_large_lengths(answer: ModuleType) -> None:
    """call decode_prelude with a length of 1 MiB, which is the limit, and of 4 GiB less one"""
    try:
        got = answer.decode_prelude(b"\x01\x00\x10\x00\x00")
    except ValueError:
        got = "ValueError for a length of exactly the limit"
    expect(
        got == (1, 1 << 20), expected="(1, 1048576): the limit itself is allowed", happened=str(got)
    )
    with expect_raises(ValueError, when="for a length of 4294967295"):
        answer.decode_prelude(b"\x01\xff\xff\xff\xff")


def check_large_messages(answer: ModuleType) -> None:
    """call encode with a text of 2 MiB"""
    with expect_raises(ValueError, when="for a body of 2 MiB"):
        answer.encode(1, "x" * (2 << 20))
