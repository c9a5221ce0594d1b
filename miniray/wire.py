"""Frames to bytes and bytes to frames, within limits, without any I/O.

A frame on the wire:

    4 bytes   magic b"MRY1": the format and its version
    1 byte    kind: MESSAGE, ERROR, EXIT or AUTH; plus 128 if raw bytes follow the header
    4 bytes   length of the header, big-endian
    header    JSON {"body": tree, "buffers": [{"type", "dtype", "shape", "nbytes"}, ...]}
    buffers   their raw bytes, in order, nothing between them

Between two processes of one machine a buffer's description may say "memfd": true. Then a single
zero byte stands where its bytes would, and the descriptor of its memory comes with that byte.
"""

import json
import struct
from typing import Any, NamedTuple

from miniray import codec
from miniray.errors import ProtocolError

MAGIC = b"MRY1"
MESSAGE, ERROR, EXIT, AUTH = KINDS = 1, 2, 3, 4
HAS_RAW_BYTES = 128
HEADER_BYTES_MAX = 64 * 1024 * 1024
MESSAGE_BYTES_MAX = 8 * 1024 * 1024 * 1024
AUTH_BYTES_MAX = 4096
MEMFD_BYTES_MIN = 1024 * 1024

_PRELUDE = struct.Struct("!4sBI")
# Built once: json.dumps and json.loads make a new encoder and scanner for each call.
_dumps = json.JSONEncoder(separators=(",", ":")).encode
_scan = json.JSONDecoder().decode


class Frame(NamedTuple):
    """One complete frame; the body of a MESSAGE is what the user sent."""

    kind: int
    body: Any


def encode(kind: int, body: Any, *, memfd: bool = False) -> tuple[bytes, list[codec.Buffer]]:
    """Return prelude and header as one piece, and the buffers that follow it.

    With `memfd`, large buffers move into memory of their own whose descriptor is to be sent.
    Raises TypeError for what cannot be sent and ValueError for what exceeds a limit.
    """
    tree, buffers = codec.encode(body)
    raw_bytes = sum(buffer.spec["nbytes"] for buffer in buffers)
    if memfd:
        buffers = [codec.move_to_memfd(buffer, MEMFD_BYTES_MIN) for buffer in buffers]
    elif any(buffer.descriptor is not None for buffer in buffers):
        raise TypeError("a SharedTensor cannot leave this machine; send its .tensor")
    header = _dumps({"body": tree, "buffers": [buffer.spec for buffer in buffers]}).encode()
    if len(header) > HEADER_BYTES_MAX or len(header) + raw_bytes > MESSAGE_BYTES_MAX:
        raise ValueError(
            f"a message of {raw_bytes} raw bytes and {len(header)} bytes of JSON: the limits are "
            f"{MESSAGE_BYTES_MAX} in all and {HEADER_BYTES_MAX} of JSON; send it in parts"
        )
    kind |= HAS_RAW_BYTES if raw_bytes else 0
    return _PRELUDE.pack(MAGIC, kind, len(header)) + header, buffers


class Decoder:
    """Assemble frames from bytes that arrive in pieces of any size.

    `want` is the exact memory that the next bytes belong in: fill some of it and say how much
    with `advance`. It never reaches past the current frame, and a large buffer arrives where its
    array or tensor will live.
    """

    def __init__(self, *, auth_only: bool = False, memfd: bool = False) -> None:
        self._auth_only, self._memfd = auth_only, memfd
        self._prelude = bytearray(_PRELUDE.size)
        self._expect_prelude()

    @property
    def ends_frame(self) -> bool:
        """Whether the frame is complete once `want` is full."""
        if self._missing:
            return len(self._missing) == 1
        return self._header is not None and not self._has_raw_bytes

    @property
    def wants_descriptor(self) -> bool:
        """Whether the next byte carries the descriptor of a buffer's memory."""
        return bool(self._missing) and "memfd" in self._specs[self._missing[0]]

    def _expect_prelude(self) -> None:
        self._header: bytearray | None = None
        self._missing: list[int] = []  # indices of the buffers not yet complete
        self.want = memoryview(self._prelude)

    def advance(self, nbytes: int, descriptor: int | None = None) -> Frame | None:
        """Count `nbytes` more as received; return the frame if that completes one.

        Raises ProtocolError, and nothing else, for bytes that no encoder makes.
        """
        if nbytes < len(self.want):
            self.want = self.want[nbytes:]
            return None
        if self._missing:
            if self.wants_descriptor:
                index = self._missing[0]
                self._memories[index] = codec.attach_memfd(self._specs[index], descriptor)
            del self._missing[0]
        elif self._header is None:
            self._read_prelude()
            return None
        else:
            self._read_header(self._header)
        if self._missing:
            wants = self._memories[self._missing[0]]
            self.want = memoryview(bytearray(1) if wants is None else wants)
            return None
        return self._finish()

    def _read_prelude(self) -> None:
        magic, kind, length = _PRELUDE.unpack(self._prelude)
        if magic != MAGIC:
            raise ProtocolError(
                f"expected a frame that begins with {MAGIC!r}, got {magic!r}: "
                "the other side is not MiniRay, or another version of it"
            )
        self._kind, self._has_raw_bytes = kind & ~HAS_RAW_BYTES, bool(kind & HAS_RAW_BYTES)
        if self._kind not in KINDS or (self._auth_only and kind != AUTH):
            raise ProtocolError(f"a frame of kind {kind} is not expected here")
        length_max = AUTH_BYTES_MAX if self._kind == AUTH else HEADER_BYTES_MAX
        if not 0 < length <= length_max:
            raise ProtocolError(f"a header of {length} bytes; the limit is {length_max}")
        self._header = bytearray(length)
        self.want = memoryview(self._header)

    def _read_header(self, header: bytearray) -> None:
        try:
            fields = _scan(header.decode())
            self._tree, self._specs = fields["body"], fields["buffers"]
            if type(self._specs) is not list:
                raise TypeError("buffers is not a list")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ProtocolError(f"a header that no encoder makes: {error!r}") from error
        raw_bytes = sum(map(codec.check_spec, self._specs))
        if raw_bytes > MESSAGE_BYTES_MAX or self._has_raw_bytes != bool(raw_bytes):
            raise ProtocolError(f"{raw_bytes} raw bytes; the limit is {MESSAGE_BYTES_MAX}")
        if not self._memfd and any("memfd" in spec for spec in self._specs):
            raise ProtocolError("shared memory was offered over a network")
        # An honest allocation for a size that only claims to be: the kernel commits no memory
        # to it until bytes arrive.
        self._memories = [
            None if "memfd" in spec else codec.allocate(spec["nbytes"]) for spec in self._specs
        ]
        self._missing = [index for index, spec in enumerate(self._specs) if spec["nbytes"]]

    def _finish(self) -> Frame:
        tree, header = self._tree, self._header
        if self._specs or (header and b'"$"' in header):
            tree = codec.decode(tree, self._specs, self._memories)
        self._specs = self._memories = []
        self._expect_prelude()
        return Frame(self._kind, tree)
