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
    # end yours


def decode_prelude(prelude: bytes) -> tuple[int, int]:
    """Return the kind of a frame and how many bytes its body has.

    Raises ValueError for a length beyond BODY_BYTES_MAX.
    """
    # begin yours
    # end yours
