"""Frames: one byte of kind, four bytes of length (big-endian), then a body of JSON."""

import json
import struct
from typing import Any

from .errors import ProtocolError

MESSAGE, ERROR, EXIT = 1, 2, 3
BODY_BYTES_MAX = 64 * 1024 * 1024

PRELUDE = struct.Struct("!BI")


def encode(kind: int, body: Any) -> bytes:
    """Return a frame's bytes.

    Raises TypeError for what JSON cannot say and ValueError for what exceeds the limit.
    """
    data = json.dumps(body).encode()
    if len(data) > BODY_BYTES_MAX:
        raise ValueError(f"a message of {len(data)} bytes; the limit is {BODY_BYTES_MAX}")
    return PRELUDE.pack(kind, len(data)) + data


def decode_prelude(prelude: bytes | bytearray) -> tuple[int, int]:
    """Return the kind of a frame and how many bytes its body has."""
    kind, length = PRELUDE.unpack(prelude)
    if length > BODY_BYTES_MAX:
        raise ProtocolError(f"a body of {length} bytes; the limit is {BODY_BYTES_MAX}")
    return kind, length
