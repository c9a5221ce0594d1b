"""Frames to bytes and bytes to frames, within limits, without any I/O.

A frame on the wire:

    4 bytes   magic b"MRY1": the format and its version
    1 byte    kind: MESSAGE, ERROR, EXIT or AUTH; plus 128 if raw bytes follow the header, 64 if
              descriptors came with the frame's first byte, and 32 if a loan follows the header
    4 bytes   length of the header, big-endian
    header    JSON {"body": tree, "buffers": [{"type", "dtype", "shape", "nbytes"}, ...]};
              without "buffers" if there are none
    loan      4 bytes: in which of the sender's memories the buffers lie (see `loans`), whether
              this is its first message, and then its descriptor is the first; as which reader
    buffers   their raw bytes, in order; nothing between them unless they are packed

Buffers of PACKED_BYTES_MIN or more together are packed: each begins at a multiple of 64 bytes, so
that all of them can arrive in one memory. Loans and descriptors are for two processes of one
machine. Each SharedTensor brings a descriptor, in order.
"""

import functools
import struct
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, NamedTuple

from miniray import codec, loans, pool
from miniray.errors import ProtocolError
from miniray.header import HEADER_BYTES_MAX, HEADER_VALUES_MAX, dumps, exceeds_limits, parse
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

_PRELUDE = struct.Struct("!4sBI")
_LOAN = struct.Struct("!BBH")
_KIND_BITS = HAS_LOAN - 1


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


# What is to come next of a frame: memory to fill, or a number of bytes.
Steps = Generator[tuple[memoryview | None, int], bytes, Any]

# Half the time of Frame(kind, body), and every message needs one.
_new_frame: Callable[[tuple[int, Any]], Frame] = functools.partial(tuple.__new__, Frame)
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
        head = _PRELUDE.pack(MAGIC, kind, len(text)) + text.encode()
        return _new_encoded((head, (), (), None))
    text = dumps({"body": tree, "buffers": [buffer.spec for buffer in buffers]})
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
        parts = [one for data in parts for one in (data, bytes(loans.padding(len(data)))) if len(one)]
    if len(owners) + bool(loan) > DESCRIPTORS_MAX:
        raise ValueError(
            f"a message of {len(owners)} SharedTensors: the limit is "
            f"{DESCRIPTORS_MAX - bool(loan)}; send it in parts, or make one larger SharedTensor"
        )
    # What is lent for the first time on a channel comes with its descriptor, which `lend_to` says.
    kind |= (HAS_RAW_BYTES if parts else 0) | (HAS_LOAN if loan else 0)
    kind |= HAS_DESCRIPTORS if owners else 0
    head = _PRELUDE.pack(MAGIC, kind, len(text)) + text.encode()
    return Encoded(head, parts, owners, loan)


def describe_loan(number: int, is_new: bool, reader: int) -> bytes:
    """Return what tells the other side in which memory a message's buffers lie."""
    return _LOAN.pack(number, is_new, reader)


def _check_limits(text: str, raw_bytes: int) -> None:
    if exceeds_limits(text) or len(text) + raw_bytes > MESSAGE_BYTES_MAX:
        raise ValueError(
            f"a message of {raw_bytes} raw bytes and {len(text)} bytes of JSON: the limits are "
            f"{MESSAGE_BYTES_MAX} in all, {HEADER_BYTES_MAX} of JSON, and {HEADER_VALUES_MAX} "
            "values in that; send numbers as an array, or send it in parts"
        )


class Decoder:
    """Assemble frames from bytes that arrive in pieces of any size.

    Give it what arrives with `feed`, and take frames from `next_frame`. Of a large buffer it asks
    for more by `memory`, which is where its array or tensor will live: fill some of that, and say
    how much with `filled`. Who must not take in a byte of the frame after this one feeds it no more
    than `missing` bytes at once.
    """

    def __init__(self, *, auth_only: bool = False, memfd: bool = False) -> None:
        self.may_hold_frame = False
        self.memory: memoryview | None = None
        self.missing = _PRELUDE.size
        self._data, self._at = b"", 0
        flags = range(0, 256, HAS_LOAN) if memfd else (0, HAS_RAW_BYTES)
        others = {kind | flag for kind in KINDS[:-1] for flag in flags}
        self._kinds = {AUTH} if auth_only else {AUTH, *others}
        self._local = loans.Local() if memfd else None
        self._steps: Steps | None = None  # of a frame whose header or buffers are under way
        self._kind = self._wanted = 0

    def feed(self, data: bytes, descriptors: Iterable[int] = ()) -> None:
        """Take in what has arrived, with the descriptors that came with it, and are now its own."""
        if descriptors and self._local is not None:
            self._local.add(descriptors)
        self._data = self._data[self._at :] + data if self._at < len(self._data) else data
        self._at = 0
        self.may_hold_frame = True

    def filled(self, nbytes: int) -> None:
        """Count `nbytes` more as received in `memory`."""
        assert self.memory is not None
        self.memory = self.memory[nbytes:]
        self.missing = len(self.memory)
        self.may_hold_frame = not self.memory

    def next_frame(self) -> Frame | None:
        """Return the next frame, if all of it is here.

        Raises ProtocolError, and nothing else, for bytes that no encoder makes; nothing can be
        decoded after that.
        """
        while self.may_hold_frame:
            if self._steps is not None:
                if (frame := self._go_on(self._steps)) is not None:
                    return frame
                continue
            data, begin = self._data, self._at + _PRELUDE.size
            if begin > len(data):
                self._want(_PRELUDE.size)
                continue
            magic, kind, nbytes = _PRELUDE.unpack_from(data, self._at)
            if magic != MAGIC or kind not in self._kinds or not 0 < nbytes <= AUTH_BYTES_MAX:
                _check_prelude(magic, kind, nbytes, self._kinds)
            end = begin + nbytes
            if nbytes > AHEAD_BYTES:
                self._at = begin
                self._begin(kind, _read_large(kind, nbytes, self._local))
            elif end > len(data):
                self._want(_PRELUDE.size + nbytes)
            else:
                self._at = end
                body, specs, is_marked = parse(data[begin:end])
                if not specs and kind < HAS_LOAN:  # as in most frames
                    self.missing, self.may_hold_frame = _PRELUDE.size, end < len(data)
                    return _new_frame((kind, codec.decode(body, [], {}) if is_marked else body))
                self._begin(kind, _read_buffers(kind, nbytes, body, specs, self._local))
        return None

    def _want(self, nbytes: int) -> None:
        """Note how many bytes of what comes next are missing."""
        self.missing = nbytes - (len(self._data) - self._at)
        self.may_hold_frame = self.missing <= 0

    def _begin(self, kind: int, steps: Steps) -> None:
        self._kind, self._steps, self._wanted = kind & _KIND_BITS, steps, 0

    def _go_on(self, steps: Steps) -> Frame | None:
        """Give the frame that is under way what is here of it; return it once it is whole."""
        nbytes = self._wanted if self.memory is None else len(self.memory)
        piece = self._data[self._at : self._at + nbytes]
        if self.memory is not None:
            self.memory[: len(piece)] = piece
            self._at += len(piece)
            self.filled(len(piece))
        elif len(piece) == nbytes:
            self._at += nbytes
        else:
            self._want(nbytes)
        if not self.may_hold_frame:
            return None
        try:
            self.memory, self._wanted = steps.send(piece or None)
            return None
        except StopIteration as done:
            self.memory = self._steps = None
            self.missing, self.may_hold_frame = _PRELUDE.size, self._at < len(self._data)
            return _new_frame((self._kind, done.value))

    def close(self) -> None:
        """Let go of the frame that is under way, and of all descriptors."""
        if self._steps is not None:
            self._steps.close()
        if self._local is not None:
            self._local.close()


def _check_prelude(magic: bytes, kind: int, nbytes: int, kinds: set[int]) -> None:
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


def _read_large(kind: int, nbytes: int, local: loans.Local | None) -> Steps:
    """Read a header that is too large to be received ahead, and what follows it."""
    header = pool.allocate(nbytes)
    yield memoryview(header), 0
    body, specs, is_marked = parse(header)
    if specs or kind > _KIND_BITS:
        return (yield from _read_buffers(kind, nbytes, body, specs, local))
    return codec.decode(body, [], {}) if is_marked else body


def _read_buffers(
    kind: int,
    header_bytes: int,
    tree: Any,
    specs: Sequence[codec.Spec],
    local: loans.Local | None,
) -> Steps:
    """Read what follows a header; return what the tree stands for with that."""
    if kind & _KIND_BITS == AUTH:  # nor may a stranger have us import torch to make an empty tensor
        raise ProtocolError("a handshake has no buffers")
    raw, shared = codec.check_specs(specs, shared=local is not None)
    if header_bytes + sum(raw.values()) > MESSAGE_BYTES_MAX:
        raise ProtocolError(f"{sum(raw.values())} raw bytes; the limit is {MESSAGE_BYTES_MAX}")
    is_lent = bool(kind & HAS_LOAN)
    flags = (HAS_RAW_BYTES if raw and not is_lent else 0) | (HAS_DESCRIPTORS if shared else 0)
    if kind & ~_KIND_BITS & ~HAS_LOAN != flags or (is_lent and not raw):
        raise ProtocolError(f"a frame of kind {kind} whose buffers are of another kind")
    memories: dict[int, Any] = {}
    if local is not None and is_lent:
        number, is_new, reader = _LOAN.unpack((yield None, _LOAN.size))
        memory = local.take_descriptor() if is_new else None
        lent = local.borrower.borrow(number, reader, memory, [*raw.values()])
        memories.update(zip(raw, lent, strict=True))
    if local is not None:
        for index in shared:
            memories[index] = local.take_descriptor()
    if not is_lent and sum(raw.values()) >= PACKED_BYTES_MIN:
        begins, nbytes = loans.places([*raw.values()])
        # One memory for all: sizes that are only claimed cost nothing.
        whole = memoryview(pool.allocate(nbytes))
        yield whole, 0
        for (index, size), begin in zip(raw.items(), begins, strict=True):
            memories[index] = whole[begin : begin + size]
    elif not is_lent:
        for index, nbytes in raw.items():
            if nbytes <= AHEAD_BYTES:
                data = yield None, nbytes
                memories[index] = data if specs[index]["type"] == "bytes" else bytearray(data)
            else:
                memories[index] = pool.allocate(nbytes)
                yield memoryview(memories[index]), 0
    return codec.decode(tree, specs, memories)
