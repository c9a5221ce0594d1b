"""Frames to bytes and bytes to frames, within limits, without any I/O.

A frame on the wire:

    4 bytes   magic b"MRY1": the format and its version
    1 byte    kind: MESSAGE, ERROR, EXIT or AUTH; plus 128 if raw bytes follow the header
    4 bytes   length of the header, big-endian
    header    JSON {"body": tree, "buffers": [{"type", "dtype", "shape", "nbytes"}, ...]};
              without "buffers" if there are none
    buffers   their raw bytes, in order, nothing between them

Between two processes of one machine a buffer's description may say "memfd": true. Then a single
zero byte stands where its bytes would, and the descriptor of its memory comes with that byte.
"""

import functools
import json
import struct
from collections.abc import Callable
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


def _make_dumps() -> Callable[[Any], str]:
    """Return json.dumps without its set-up, which costs more than a small message does."""
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:  # a Python without the C accelerator
        return json.JSONEncoder(separators=(",", ":")).encode
    quote = json.encoder.encode_basestring_ascii
    encode = make(None, None, quote, None, ":", ",", False, False, True)
    join = "".join
    return lambda tree: join(encode(tree, 0))


_dumps = _make_dumps()
_scan: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder().scan_once  # type: ignore[attr-defined]  # typeshed lacks it


class Frame(NamedTuple):
    """One complete frame; the body of a MESSAGE is what the user sent."""

    kind: int
    body: Any


# Half the time of Frame(kind, body), and every message needs one.
_new_frame: Callable[[tuple[int, Any]], Frame] = functools.partial(tuple.__new__, Frame)


def encode(kind: int, body: Any, *, memfd: bool = False) -> tuple[bytes, list[codec.Buffer]]:
    """Return prelude and header as one piece, and the buffers that follow it.

    With `memfd`, large buffers move into memory of their own whose descriptor is to be sent.
    Raises TypeError for what cannot be sent and ValueError for what exceeds a limit.
    """
    tree, buffers = codec.encode(body)
    if not buffers:
        header, raw_bytes = f'{{"body":{_dumps(tree)}}}'.encode(), 0
    else:
        raw_bytes = sum(buffer.spec["nbytes"] for buffer in buffers)
        if raw_bytes <= MESSAGE_BYTES_MAX:
            buffers = _choose_transport(buffers, memfd)
        header = _dumps({"body": tree, "buffers": [buffer.spec for buffer in buffers]}).encode()
    if len(header) > HEADER_BYTES_MAX or len(header) + raw_bytes > MESSAGE_BYTES_MAX:
        raise ValueError(
            f"a message of {raw_bytes} raw bytes and {len(header)} bytes of JSON: the limits are "
            f"{MESSAGE_BYTES_MAX} in all and {HEADER_BYTES_MAX} of JSON; send it in parts"
        )
    kind |= HAS_RAW_BYTES if raw_bytes else 0
    return _PRELUDE.pack(MAGIC, kind, len(header)) + header, buffers


def _choose_transport(buffers: list[codec.Buffer], memfd: bool) -> list[codec.Buffer]:
    if memfd:
        return [codec.move_to_memfd(buffer, MEMFD_BYTES_MIN) for buffer in buffers]
    if any(buffer.descriptor is not None for buffer in buffers):
        raise TypeError("a SharedTensor cannot leave this machine; send its .tensor")
    return buffers


class Decoder:
    """Assemble frames from bytes that arrive in pieces of any size.

    `want` is the exact memory that the next bytes belong in: fill some of it and say how much
    with `advance`. It never reaches past the current frame, and a large buffer arrives where its
    array or tensor will live.
    """

    def __init__(self, *, auth_only: bool = False, memfd: bool = False) -> None:
        with_raw_bytes = (kind | HAS_RAW_BYTES for kind in KINDS if kind != AUTH)
        self._kinds = {AUTH} if auth_only else {*KINDS, *with_raw_bytes}
        self._memfd = memfd
        self._prelude = bytearray(_PRELUDE.size)
        self._specs: list[codec.Spec] = []
        self._memories: list[Any] = []
        self._missing: list[int] = []  # indices of the buffers that are not complete
        self._expect_prelude()

    def _expect_prelude(self) -> None:
        self.want: bytearray | memoryview = self._prelude
        # Whether the next byte carries the descriptor of a buffer's memory.
        self.wants_descriptor = False
        self._header: bytearray | None = None

    @property
    def ends_frame(self) -> bool:
        """Whether the frame is complete once `want` is full."""
        if self._missing:
            return len(self._missing) == 1
        return self._header is not None and self._kind < HAS_RAW_BYTES

    def advance(self, nbytes: int, descriptor: int | None = None) -> Frame | None:
        """Count `nbytes` more as received; return the frame if that completes one.

        Raises ProtocolError, and nothing else, for bytes that no encoder makes.
        """
        if nbytes < len(self.want):
            self.want = memoryview(self.want)[nbytes:]
            return None
        if self._header is None:
            self._read_prelude()
            return None
        if not self._missing:
            self._read_header(self._header)
        else:
            self._take_buffer(descriptor)
        if not self._missing:
            return self._finish(self._header)
        self._expect_buffer(self._missing[0])
        return None

    def _read_prelude(self) -> None:
        magic, kind, length = _PRELUDE.unpack(self._prelude)
        if magic != MAGIC:
            raise ProtocolError(
                f"expected a frame that begins with {MAGIC!r}, got {magic!r}: "
                "the other side is not MiniRay, or another version of it"
            )
        if kind not in self._kinds:
            raise ProtocolError(f"a frame of kind {kind} is not expected here")
        length_max = AUTH_BYTES_MAX if kind == AUTH else HEADER_BYTES_MAX
        if not 0 < length <= length_max:
            raise ProtocolError(f"a header of {length} bytes; the limit is {length_max}")
        self._kind = kind
        self.want = self._header = bytearray(length)

    def _read_header(self, header: bytearray) -> None:
        try:
            text = header.decode()
            fields, end = _scan(text, 0)
            self._tree = fields["body"]
            if end != len(text):
                raise ValueError("something follows it")
            if len(fields) > 1:
                self._specs = fields["buffers"]
                if not self._specs:
                    raise ValueError("it has an empty list of buffers")
        except (ValueError, TypeError, KeyError, StopIteration, RecursionError) as error:
            raise ProtocolError(f"a header that no encoder makes: {error!r}") from error
        if self._specs or self._kind >= HAS_RAW_BYTES:
            self._prepare_buffers()

    def _prepare_buffers(self) -> None:
        if self._kind == AUTH:  # nor may a stranger have us import torch to make an empty tensor
            raise ProtocolError("a handshake has no buffers")
        if type(self._specs) is not list:
            raise ProtocolError("the buffers' descriptions are no list")
        raw_bytes = sum(map(codec.check_spec, self._specs))
        if raw_bytes > MESSAGE_BYTES_MAX or (self._kind >= HAS_RAW_BYTES) != bool(raw_bytes):
            raise ProtocolError(f"{raw_bytes} raw bytes; the limit is {MESSAGE_BYTES_MAX}")
        if not self._memfd and any("memfd" in spec for spec in self._specs):
            raise ProtocolError("shared memory was offered over a network")
        self._memories = [None if "memfd" in spec else b"" for spec in self._specs]
        self._missing = [index for index, spec in enumerate(self._specs) if spec["nbytes"]]

    def _expect_buffer(self, index: int) -> None:
        """Make the next buffer's memory, only now: sizes that are only claimed cost nothing."""
        spec = self._specs[index]
        self.wants_descriptor = "memfd" in spec
        self._memories[index] = codec.allocate(1 if self.wants_descriptor else spec["nbytes"])
        self.want = memoryview(self._memories[index])

    def _take_buffer(self, descriptor: int | None) -> None:
        index = self._missing.pop(0)
        if self.wants_descriptor:
            self._memories[index] = codec.attach_memfd(self._specs[index], descriptor)

    def _finish(self, header: bytearray) -> Frame:
        tree = self._tree
        if self._specs or b'"$"' in header:
            tree = codec.decode(tree, self._specs, self._memories)
            self._specs, self._memories = [], []
        self._expect_prelude()
        return _new_frame((self._kind & ~HAS_RAW_BYTES, tree))


DESCRIPTORS_MAX = 253


class Encoded(NamedTuple):
    head: bytes
    descriptors: Any = ()
    parts: Any = ()
    owners: Any = ()


_old = encode


def encode(kind: int, body: Any, *, memfd: bool = False) -> Encoded:  # type: ignore
    head, buffers = _old(kind, body, memfd=False)
    return Encoded(head, (), [b.data for b in buffers], ())


Decoder.wants_descriptors = False  # type: ignore
