"""Put a message into a frame, and read the head of one."""

import json
import struct
from typing import Any

BODY_BYTES_MAX = 1024 * 1024

# One byte of kind, then the length of the body as four bytes, the most significant one first.
PRELUDE_BYTES = 5


def encode(kind: int, message: Any) -> bytes:
    """Return a frame: the prelude, then the message as JSON in UTF-8, not escaped to ASCII.

    Raises ValueError if the body has more than BODY_BYTES_MAX bytes.
    """
    # begin yours
    body = json.dumps(message, ensure_ascii=False).encode()
    if len(body) > BODY_BYTES_MAX:
        raise ValueError(f"a body of {len(body)} bytes; the limit is {BODY_BYTES_MAX}")
    return struct.pack("!BI", kind, len(body)) + body
    # end yours


def decode_prelude(prelude: bytes) -> tuple[int, int]:
    """Return the kind of a frame and how many bytes its body has.

    Raises ValueError for a length beyond BODY_BYTES_MAX.
    """
    # begin yours
    kind, length = struct.unpack("!BI", prelude)
    if length > BODY_BYTES_MAX:
        raise ValueError(f"a body of {length} bytes; the limit is {BODY_BYTES_MAX}")
    return kind, length
    # end yours
