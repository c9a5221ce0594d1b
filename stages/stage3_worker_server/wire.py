"""Frames to bytes and bytes to frames, within limits, without any I/O.

A frame on the wire:

    4 bytes   magic b"MRY1": the format and its version
    1 byte    kind: MESSAGE, ERROR or EXIT
    4 bytes   length of the body, big-endian
    body      JSON
"""

import json
import struct
from typing import Any, NamedTuple

from .errors import ProtocolError

MAGIC = b"MRY1"
MESSAGE, ERROR, EXIT = KINDS = 1, 2, 3
BODY_BYTES_MAX = 64 * 1024 * 1024
AUTH_BYTES_MAX = 4096

PRELUDE = struct.Struct("!4sBI")


class Frame(NamedTuple):
    """One complete frame; the body of a MESSAGE is what the user sent."""

    kind: int
    body: Any


def encode(kind: int, body: Any) -> bytes:
    """Return a frame's bytes.

    Raises TypeError for what JSON cannot say and ValueError for what exceeds the limit.
    """
    data = json.dumps(body).encode()
    if len(data) > BODY_BYTES_MAX:
        raise ValueError(f"a message of {len(data)} bytes; the limit is {BODY_BYTES_MAX}")
    return PRELUDE.pack(MAGIC, kind, len(data)) + data


class Decoder:
    """Assemble frames from bytes that arrive in pieces of any size.

    `want` is the exact memory that the next bytes belong in: fill some of it and say how much
    with `advance`. It never reaches past the current frame, and it remembers a half of one.
    """

    def __init__(self, *, auth_only: bool = False) -> None:
        # Who has not proven anything yet gets 4 KiB.
        self._body_bytes_max = AUTH_BYTES_MAX if auth_only else BODY_BYTES_MAX
        self._expect(PRELUDE.size, kind=None)

    def _expect(self, nbytes: int, kind: int | None) -> None:
        self._kind = kind  # None while the prelude is not complete
        self._part = bytearray(nbytes)
        self.want = memoryview(self._part)

    def advance(self, nbytes: int) -> Frame | None:
        """Count `nbytes` more as received; return the frame if that completes one.

        Raises ProtocolError, and nothing else, for bytes that no encoder makes.
        """
        self.want = self.want[nbytes:]
        if self.want:
            return None
        if self._kind is None:
            self._expect(*_decode_prelude(self._part, self._body_bytes_max))
            return None
        try:
            frame = Frame(self._kind, json.loads(self._part))
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"a body that is no JSON: {error}") from error
        self._expect(PRELUDE.size, kind=None)
        return frame


def _decode_prelude(prelude: bytearray, body_bytes_max: int) -> tuple[int, int]:
    """Return how many bytes a frame's body has, and its kind."""
    magic, kind, length = PRELUDE.unpack(prelude)
    if magic != MAGIC:
        raise ProtocolError(
            f"expected a frame that begins with {MAGIC!r}, got {magic!r}: "
            "the other side is not MiniRay, or another version of it"
        )
    if kind not in KINDS:
        raise ProtocolError(f"a frame of unknown kind {kind}")
    if not 0 < length <= body_bytes_max:
        raise ProtocolError(f"a body of {length} bytes; the limit is {body_bytes_max}")
    return length, kind
