"""The JSON header of a frame: fast for a small message, within limits for a large one."""

import itertools
import json
import mmap
import re
import reprlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from miniray.errors import ProtocolError

HEADER_BYTES_MAX = 64 * 1024 * 1024
# An empty list is three bytes of JSON and 80 in memory, so values have a limit of their own.
HEADER_VALUES_MAX = 4 * 1024 * 1024
REASON_CHARS_MAX = 200

# Each value but the first comes after a comma or an opening bracket that is not within a text.
# This never reads a character twice: it does not go back, and does without a text's end.
_VALUE = re.compile(r'(?:[^",\[{]++|"[^"\\]*+(?:\\.[^"\\]*+)*+"?)*+(?:[,\[{]|\Z)', re.DOTALL)


def _make_dumps() -> Callable[[Any], str]:
    """Return json.dumps without its set-up, which costs more than a small message does."""
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:  # a Python without the C accelerator
        return json.JSONEncoder(separators=(",", ":")).encode
    quote = json.encoder.encode_basestring_ascii
    encode = make(None, None, quote, None, ":", ",", False, False, True)
    join = "".join

    def dumps(tree: Any) -> str:
        try:
            return join(encode(tree, 0))
        except ValueError as error:
            digits = f"more than {sys.get_int_max_str_digits()} digits"
            raise ValueError(f"an int of {digits}; send hex(n), and int(text, 16) there") from error

    return dumps


dumps = _make_dumps()
_scan: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder().scan_once  # type: ignore[attr-defined]  # typeshed lacks it


def parse(header: bytes | bytearray | mmap.mmap) -> tuple[Any, Sequence[Any], bool]:
    """Return a header's tree, the specs of its buffers, and whether the tree may hold marks.

    Raises ProtocolError for a header that no encoder makes.
    """
    try:
        text = str(header, "ascii")  # an encoder escapes the rest
        if len(text) > HEADER_VALUES_MAX and exceeds_limits(text):
            raise ValueError(f"more than {HEADER_VALUES_MAX} values")
        fields, end = _scan(text, 0)
        tree = fields["body"]
        if len(fields) == 1 and end == len(text):
            return tree, (), '"$"' in text
        specs = fields["buffers"]
        if type(specs) is not list or not specs or len(fields) > 2 or end < len(text):
            raise ValueError("more than a body and a list of buffers")
        return tree, specs, True
    except (ValueError, TypeError, KeyError, StopIteration, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"[:REASON_CHARS_MAX]
    # Not from that error, for some hold the whole text.
    raise ProtocolError(f"a header that no encoder makes: {reason}")


def exceeds_limits(text: str) -> bool:
    """Return whether a header is longer, or holds more values, than may be sent."""
    if len(text) <= HEADER_VALUES_MAX:
        return False
    if len(text) > HEADER_BYTES_MAX:
        return True
    # Texts are told from values only where that makes a difference.
    if sum(map(text.count, ",[{")) <= HEADER_VALUES_MAX:
        return False
    beyond = next(itertools.islice(_VALUE.finditer(text), HEADER_VALUES_MAX, None), None)
    return beyond is not None and beyond.end() < len(text)  # what comes last is no value's begin


def quote(value: Any) -> str:
    """Return what the other side sent in REASON_CHARS_MAX characters, however large it is."""
    return reprlib.repr(value)[:REASON_CHARS_MAX]
