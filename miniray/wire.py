"""Frames, and how they become bytes, within limits; `decoding` is the way back.

A frame on the wire:

    4 bytes   magic b"MRY1": the format and its version
    1 byte    kind: MESSAGE, ERROR, EXIT or AUTH; plus 128 if raw bytes follow the header, 64 if
              descriptors came with the frame's first byte, and 32 if a loan follows the header
    4 bytes   length of the header, big-endian
    header    JSON {"body": tree, "buffers": [{"type", "dtype", "shape", "nbytes"}, ...]};
              without "buffers" if there are none; a number there is an earlier buffer's that is
              described by the same words
    loan      4 bytes: in which of the sender's memories the buffers lie (see `loans`); 1 if this
              is its first message, whose descriptor then comes first, plus 2 if others read the
              message, too; and as which reader
    buffers   their raw bytes, in order; nothing between them unless they are packed

Buffers of PACKED_BYTES_MIN or more together are packed: each begins at a multiple of 64 bytes, so
that all of them can arrive in one memory. Loans and descriptors are for two processes of one
machine. Each SharedTensor brings a descriptor, in order.
"""

import functools
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from miniray import codec, loans
from miniray.header import HEADER_BYTES_MAX, HEADER_VALUES_MAX, dumps, exceeds_limits
from miniray.shared_memory import SharedMemory
from miniray.shared_tensor import SharedTensor

MAGIC = b"MRY1"
MESSAGE, ERROR, EXIT, AUTH = KINDS = 1, 2, 3, 4
HAS_RAW_BYTES, HAS_DESCRIPTORS, HAS_LOAN = 128, 64, 32
MESSAGE_BYTES_MAX = 8 * 1024 * 1024 * 1024
AUTH_BYTES_MAX = 4096
PACKED_BYTES_MIN = 1024 * 1024
DESCRIPTORS_MAX = loans.DESCRIPTORS_MAX
# More than this is received into memory of its own, and less may be received ahead.
AHEAD_BYTES = 64 * 1024

PRELUDE = struct.Struct("!4sBI")
LOAN = struct.Struct("!BBH")
KIND_BITS = HAS_LOAN - 1


class Frame(NamedTuple):
    """One complete frame; the body of a MESSAGE is what the user sent."""

    kind: int
    body: Any


class Encoded(NamedTuple):
    """One frame to send: its head, raw bytes, who owns its descriptors, and memory on loan."""

    head: bytes
    parts: Sequence[Any]
    owners: Sequence[SharedMemory]
    loan: loans.Loan | None


# Half the time of Frame(kind, body), and every message needs one.
new_frame: Callable[[tuple[int, Any]], Frame] = functools.partial(tuple.__new__, Frame)
_new_encoded: Callable[[Any], Encoded] = functools.partial(tuple.__new__, Encoded)


def encode(kind: int, body: Any, *, memfd: bool = False) -> Encoded:
    """Return a frame as it is to be sent, with descriptors and loans only to a `memfd` channel.

    Raises TypeError for what cannot be sent and ValueError for what exceeds a limit.
    """
    tree, buffers = codec.encode(body)
    if not buffers:
        text = f'{{"body":{dumps(tree)}}}'
        if len(text) > AUTH_BYTES_MAX:
            _check_limits(text, 0)
        head = PRELUDE.pack(MAGIC, kind, len(text)) + text.encode()
        return _new_encoded((head, (), (), None))
    text = dumps({"body": tree, "buffers": codec.describe(buffers)})
    filled = [buffer.data for buffer in buffers if buffer.spec["nbytes"]]
    parts = [data for data in filled if type(data) is not SharedTensor]
    owners = [data.memory for data in filled if type(data) is SharedTensor]
    raw_bytes = sum(map(len, parts))
    _check_limits(text, raw_bytes)
    if not memfd and any(buffer.spec["type"] == "shared" for buffer in buffers):
        raise TypeError("a SharedTensor cannot leave this machine; send its .tensor")
    loan = None
    if memfd and raw_bytes >= PACKED_BYTES_MIN:
        loan, parts = loans.lend(parts), []
    elif raw_bytes >= PACKED_BYTES_MIN:
        padded = ((data, bytes(loans.padding(len(data)))) for data in parts)
        parts = [one for pair in padded for one in pair if len(one)]
    if len(owners) + bool(loan) > DESCRIPTORS_MAX:
        raise ValueError(
            f"a message of {len(owners)} SharedTensors: the limit is "
            f"{DESCRIPTORS_MAX - bool(loan)}; send it in parts, or make one larger SharedTensor"
        )
    kind |= (HAS_RAW_BYTES if parts else 0) | (HAS_LOAN if loan else 0)
    kind |= HAS_DESCRIPTORS if owners else 0
    head = PRELUDE.pack(MAGIC, kind, len(text)) + text.encode()
    return Encoded(head, parts, owners, loan)


def describe_loan(number: int, reader: int, *, is_new: bool, is_shared: bool = False) -> bytes:
    """Return what tells the other side in which memory a message's buffers lie."""
    return LOAN.pack(number, is_new + 2 * is_shared, reader)


def _check_limits(text: str, raw_bytes: int) -> None:
    if exceeds_limits(text) or len(text) + raw_bytes > MESSAGE_BYTES_MAX:
        raise ValueError(
            f"a message of {raw_bytes} raw bytes and {len(text)} bytes of JSON: the limits are "
            f"{MESSAGE_BYTES_MAX} in all, {HEADER_BYTES_MAX} of JSON, and {HEADER_VALUES_MAX} "
            "values in that; send numbers as an array, or send it in parts"
        )
