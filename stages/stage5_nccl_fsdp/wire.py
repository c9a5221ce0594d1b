"""Frames to bytes and bytes to frames, within limits, without any I/O.

A frame on the wire:

    4 bytes   magic b"MRY1": the format and its version
    1 byte    kind: MESSAGE, ERROR or EXIT
    4 bytes   length of the header, big-endian
    header    JSON {"body": tree, "buffers": [{"type", "dtype", "shape", "nbytes"}, ...]}
    buffers   their raw bytes, in order, nothing between them
"""

import json
import struct
from typing import Any, NamedTuple

from . import codec
from .errors import ProtocolError

MAGIC = b"MRY1"
MESSAGE, ERROR, EXIT = KINDS = 1, 2, 3
BODY_BYTES_MAX = 64 * 1024 * 1024
AUTH_BYTES_MAX = 4096
BUFFERS_BYTES_MAX = 8 * 1024 * 1024 * 1024

PRELUDE = struct.Struct("!4sBI")


class Frame(NamedTuple):
    """One complete frame; the body of a MESSAGE is what the user sent."""

    kind: int
    body: Any


def encode(kind: int, body: Any) -> list[Any]:
    """Return the parts of a frame's bytes: prelude and header as one, then each buffer.

    Raises TypeError for what cannot be sent and ValueError for what exceeds a limit.
    """
    tree, buffers = codec.encode(body)
    specs = [buffer.spec for buffer in buffers]
    data = json.dumps({"body": tree, "buffers": specs}).encode()
    nbytes = sum(spec["nbytes"] for spec in specs)
    if len(data) > BODY_BYTES_MAX or nbytes > BUFFERS_BYTES_MAX:
        raise ValueError(
            f"a message of {len(data)} bytes of JSON and {nbytes} of buffers; the limits are "
            f"{BODY_BYTES_MAX} and {BUFFERS_BYTES_MAX}; send it in parts"
        )
    return [PRELUDE.pack(MAGIC, kind, len(data)) + data, *(buffer.data for buffer in buffers)]


class Decoder:
    """Assemble frames from bytes that arrive in pieces of any size.

    `want` is the exact memory that the next bytes belong in: fill some of it and say how much
    with `advance`. It never reaches past the current frame, and it remembers a half of one. A
    tensor's bytes arrive in the memory that the tensor will have.
    """

    def __init__(self, *, auth_only: bool = False) -> None:
        # Who has not proven anything yet gets 4 KiB.
        self._body_bytes_max = AUTH_BYTES_MAX if auth_only else BODY_BYTES_MAX
        self._buffers_bytes_max = 0 if auth_only else BUFFERS_BYTES_MAX
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
            self._header: dict[str, Any] | None = None
            return None
        if self._header is None:
            self._header = _decode_header(self._part, self._buffers_bytes_max)
            self._memories: list[bytearray] = []
            self._to_come = iter(self._header["buffers"])
        else:
            self._memories.append(self._part)
        for spec in self._to_come:
            if spec["nbytes"]:
                self._expect(spec["nbytes"], self._kind)
                return None
            self._memories.append(bytearray())
        body, specs = self._header["body"], self._header["buffers"]
        frame = Frame(self._kind, codec.decode(body, specs, self._memories))
        self._memories = []  # from here on it is the receiver's own
        self._expect(PRELUDE.size, kind=None)
        return frame


def _decode_prelude(prelude: bytearray, body_bytes_max: int) -> tuple[int, int]:
    """Return how many bytes a frame's header has, and its kind."""
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


def _decode_header(data: bytearray, buffers_bytes_max: int) -> dict[str, Any]:
    """Return a header, whose buffers together keep to the limit."""
    try:
        header: dict[str, Any] = json.loads(data)
        specs = header["buffers"]
        if type(specs) is not list or "body" not in header or (specs and not buffers_bytes_max):
            raise ValueError("no body, or buffers where there can be none")
        if (nbytes := sum(map(codec.check_spec, specs))) > buffers_bytes_max:
            raise ValueError(f"{nbytes} bytes of buffers; the limit is {buffers_bytes_max}")
        return header
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ProtocolError(f"a header that no encoder makes: {error!r}") from error
