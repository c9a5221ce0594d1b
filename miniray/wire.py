"""Frames to bytes and bytes to frames, within limits, without any I/O.

A frame on the wire:

    4 bytes   magic b"MRY1": the format and its version
    1 byte    kind: MESSAGE, ERROR, EXIT or AUTH; plus 128 if raw bytes follow the header, plus 64
              if descriptors do
    4 bytes   length of the header, big-endian
    header    JSON {"body": tree, "buffers": [{"type", "dtype", "shape", "nbytes"}, ...]};
              without "buffers" if there are none
    1 byte    zero, only if descriptors follow: all of them come with it
    buffers   their raw bytes, in order, nothing between them

Descriptors are for two processes of one machine. Each SharedTensor brings one, in order. If the
other buffers are MEMFD_BYTES_MIN or more together, they are packed into one memory whose descriptor
comes first, and no raw bytes follow.
"""

import functools
import mmap
import struct
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, NamedTuple

from miniray import codec, pool
from miniray.errors import ProtocolError
from miniray.header import HEADER_BYTES_MAX, HEADER_VALUES_MAX, dumps, exceeds_limits, parse
from miniray.shared_memory import SharedMemory, pack, unpack
from miniray.shared_tensor import SharedTensor

MAGIC = b"MRY1"
MESSAGE, ERROR, EXIT, AUTH = KINDS = 1, 2, 3, 4
HAS_RAW_BYTES = 128
HAS_DESCRIPTORS = 64
MESSAGE_BYTES_MAX = 8 * 1024 * 1024 * 1024
AUTH_BYTES_MAX = 4096
MEMFD_BYTES_MIN = 1024 * 1024
DESCRIPTORS_MAX = 253  # what Linux takes with one byte

_PRELUDE = struct.Struct("!4sBI")
_KIND_BITS = HAS_DESCRIPTORS - 1

Memory = bytearray | mmap.mmap | memoryview


class Frame(NamedTuple):
    """One complete frame; the body of a MESSAGE is what the user sent."""

    kind: int
    body: Any


class Encoded(NamedTuple):
    """One frame to send: the head, a zero byte with the descriptors if there are any, the parts."""

    head: bytes
    descriptors: Sequence[int]
    parts: Sequence[Any]
    owners: Sequence[SharedMemory]  # who keep the descriptors open


# Memory to fill, whether that ends the frame, whether descriptors come; the frame before, if whole.
Steps = Generator[tuple[Memory, bool, bool, Frame | None], Iterable[int], Any]

# Half the time of Frame(kind, body), and every message needs one.
_new_frame: Callable[[tuple[int, Any]], Frame] = functools.partial(tuple.__new__, Frame)
_new_encoded: Callable[[Any], Encoded] = functools.partial(tuple.__new__, Encoded)


def encode(kind: int, body: Any, *, memfd: bool = False) -> Encoded:
    """Return a frame as it is to be sent, with descriptors only to a `memfd` channel.

    Raises TypeError for what cannot be sent and ValueError for what exceeds a limit.
    """
    tree, buffers = codec.encode(body)
    if not buffers:
        text = f'{{"body":{dumps(tree)}}}'
        if len(text) > AUTH_BYTES_MAX:
            _check_limits(text, 0)
        head = _PRELUDE.pack(MAGIC, kind, len(text)) + text.encode()
        return _new_encoded((head, (), (), ()))
    text = dumps({"body": tree, "buffers": [buffer.spec for buffer in buffers]})
    filled = [buffer.data for buffer in buffers if buffer.spec["nbytes"]]
    parts = [data for data in filled if type(data) is not SharedTensor]
    owners = [data.memory for data in filled if type(data) is SharedTensor]
    raw_bytes = sum(map(len, parts))
    _check_limits(text, raw_bytes)
    if not memfd and any(buffer.spec["type"] == "shared" for buffer in buffers):
        raise TypeError("a SharedTensor cannot leave this machine; send its .tensor")
    packed = memfd and raw_bytes >= MEMFD_BYTES_MIN
    if len(owners) + packed > DESCRIPTORS_MAX:
        raise ValueError(
            f"a message of {len(owners)} SharedTensors: the limit is {DESCRIPTORS_MAX - packed}; "
            "send it in parts, or make one larger SharedTensor"
        )
    if packed:
        owners, parts = [pack(parts), *owners], []
    kind |= (HAS_RAW_BYTES if parts else 0) | (HAS_DESCRIPTORS if owners else 0)
    head = _PRELUDE.pack(MAGIC, kind, len(text)) + text.encode()
    return Encoded(head, [owner.descriptor for owner in owners], parts, owners)


def _check_limits(text: str, raw_bytes: int) -> None:
    if exceeds_limits(text) or len(text) + raw_bytes > MESSAGE_BYTES_MAX:
        raise ValueError(
            f"a message of {raw_bytes} raw bytes and {len(text)} bytes of JSON: the limits are "
            f"{MESSAGE_BYTES_MAX} in all, {HEADER_BYTES_MAX} of JSON, and {HEADER_VALUES_MAX} "
            "values in that; send numbers as an array, or send it in parts"
        )


class Decoder:
    """Assemble frames from bytes that arrive in pieces of any size.

    `want` is the exact memory that the next bytes belong in: fill some of it and say how much
    with `advance`. It never reaches past the current frame, and `ends_frame` says whether the
    frame is complete once it is full. A large buffer arrives where its array or tensor will live.
    If `wants_descriptors`, they come with the next byte, and belong to the decoder from then on.
    """

    want: Memory
    ends_frame: bool
    wants_descriptors: bool

    def __init__(self, *, auth_only: bool = False, memfd: bool = False) -> None:
        self._steps = _read_frames(auth_only, memfd)
        self.want, self.ends_frame, self.wants_descriptors, _ = next(self._steps)

    def advance(self, nbytes: int, descriptors: Iterable[int] = ()) -> Frame | None:
        """Count `nbytes` more as received; return the frame if that completes one.

        Raises ProtocolError, and nothing else, for bytes that no encoder makes; nothing can be
        decoded after that.
        """
        if nbytes < len(self.want):
            self.want = memoryview(self.want)[nbytes:]
            return None
        self.want, self.ends_frame, self.wants_descriptors, frame = self._steps.send(descriptors)
        return frame

    def close(self) -> None:
        """Let go of the frame that is under way, and of its descriptors."""
        self._steps.close()


def _read_frames(auth_only: bool, memfd: bool) -> Steps:
    """Read frames: yield the memory to fill and what the decoder says of it, go on once full."""
    flags = (0, HAS_RAW_BYTES, HAS_DESCRIPTORS, HAS_RAW_BYTES | HAS_DESCRIPTORS)
    others = {kind | flag for kind in KINDS[:-1] for flag in flags[: 4 if memfd else 2]}
    kinds = {AUTH} if auth_only else {AUTH, *others}
    prelude = bytearray(_PRELUDE.size)
    complete: list[Frame | None] = [None]
    while True:
        yield prelude, False, False, complete.pop()  # of which nothing is kept here
        kind, nbytes = _check_prelude(prelude, kinds)
        header = pool.allocate(nbytes)
        yield header, kind < HAS_DESCRIPTORS, False, None
        body, specs, is_marked = parse(header)
        if specs or kind >= HAS_DESCRIPTORS:
            body = yield from _read_buffers(kind, nbytes, body, specs, memfd)
        elif is_marked:
            body = codec.decode(body, [], {})
        complete.append(_new_frame((kind & _KIND_BITS, body)))
        del header, body


def _check_prelude(prelude: bytearray, kinds: set[int]) -> tuple[int, int]:
    """Return the kind of a frame and the length of its header."""
    magic, kind, nbytes = _PRELUDE.unpack(prelude)
    if magic != MAGIC:
        raise ProtocolError(
            f"expected a frame that begins with {MAGIC!r}, got {magic!r}: "
            "the other side is not MiniRay, or another version of it"
        )
    if kind not in kinds:
        raise ProtocolError(f"a frame of kind {kind} is not expected here")
    nbytes_max = AUTH_BYTES_MAX if kind == AUTH else HEADER_BYTES_MAX
    if not 0 < nbytes <= nbytes_max:
        raise ProtocolError(f"a header of {nbytes} bytes; the limit is {nbytes_max}")
    return kind, nbytes


def _read_buffers(
    kind: int, header_bytes: int, tree: Any, specs: Sequence[codec.Spec], memfd: bool
) -> Steps:
    """Read what follows a header; return what the tree stands for with that."""
    if kind == AUTH:  # nor may a stranger have us import torch to make an empty tensor
        raise ProtocolError("a handshake has no buffers")
    raw, shared = codec.check_specs(specs, shared=memfd)
    if header_bytes + sum(raw.values()) > MESSAGE_BYTES_MAX:
        raise ProtocolError(f"{sum(raw.values())} raw bytes; the limit is {MESSAGE_BYTES_MAX}")
    packed = bool(raw) and not kind & HAS_RAW_BYTES
    promised = len(shared) + packed
    flags = (HAS_RAW_BYTES if raw and not packed else 0) | (HAS_DESCRIPTORS if promised else 0)
    if kind & ~_KIND_BITS != flags:
        raise ProtocolError(f"a frame of kind {kind} whose buffers are of another kind")
    memories: dict[int, Any] = {}
    owners: list[SharedMemory] = []
    try:
        if promised:
            descriptors = yield bytearray(1), kind < HAS_RAW_BYTES, True, None
            owners = list(map(SharedMemory, descriptors))
            if len(owners) != promised:  # fewer where this process may not open as many
                raise ProtocolError(f"{len(owners)} descriptors came where {promised} should")
            memories.update(zip(shared, owners[packed:], strict=True))
        if packed:
            memories.update(zip(raw, unpack(owners[0], [*raw.values()]), strict=True))
        else:
            last = next(reversed(raw), None)
            for index, nbytes in raw.items():
                # Made only now: sizes that are only claimed cost nothing.
                memories[index] = pool.allocate(nbytes)
                yield memoryview(memories[index]), index == last, False, None
        return codec.decode(tree, specs, memories)
    except BaseException:  # `close` of the decoder comes here, too
        for owner in owners:
            owner.close()
        raise
