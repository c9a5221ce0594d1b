"""Bytes to frames, in pieces of any size, without any I/O."""

import contextlib
from collections.abc import Generator, Iterable, Sequence
from typing import Any

from miniray import codec, loans, pool, wire
from miniray.errors import ProtocolError
from miniray.header import HEADER_BYTES_MAX, parse
from miniray.wire import (
    AHEAD_BYTES,
    AUTH,
    AUTH_BYTES_MAX,
    HAS_DESCRIPTORS,
    HAS_LOAN,
    HAS_RAW_BYTES,
    KIND_BITS,
    KINDS,
    LOAN,
    MAGIC,
    PRELUDE,
    Frame,
    new_frame,
)

# What is to come next of a frame: memory to fill, or a number of bytes.
Steps = Generator[tuple[memoryview | None, int], bytes | None, Any]


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
        self.missing = PRELUDE.size
        self._data, self._at = b"", 0
        flags = range(0, 256, HAS_LOAN) if memfd else (0, HAS_RAW_BYTES)
        others = {kind | flag for kind in KINDS[:-1] for flag in flags}
        self._kinds = {AUTH} if auth_only else {AUTH, *others}
        self._local = loans.Local() if memfd else None
        self._steps: Steps | None = None  # of a frame whose header or buffers are under way
        self._error = ""  # what was wrong; the error itself would hold what came of the frame
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

        Raises ProtocolError, and nothing else, for bytes that no encoder makes, now and ever after.
        """
        if self._error:
            raise ProtocolError(self._error)
        try:
            return self._next_frame()
        except ProtocolError as error:
            self._error = str(error)
            raise

    def _next_frame(self) -> Frame | None:
        while self.may_hold_frame:
            if self._steps is not None:
                if (frame := self._go_on(self._steps)) is not None:
                    return frame
                continue
            data, begin = self._data, self._at + PRELUDE.size
            if begin > len(data):
                self._want(PRELUDE.size)
                continue
            magic, kind, nbytes = PRELUDE.unpack_from(data, self._at)
            if magic != MAGIC or kind not in self._kinds or not 0 < nbytes <= AUTH_BYTES_MAX:
                _check_prelude(magic, kind, nbytes, self._kinds)
            end = begin + nbytes
            if nbytes > AHEAD_BYTES:
                self._at = begin
                self._begin(kind, _read_large(kind, nbytes, self._local))
            elif end > len(data):
                self._want(PRELUDE.size + nbytes)
            else:
                self._at = end
                body, specs, is_marked = parse(data[begin:end])
                if not specs and kind < HAS_LOAN:  # as in most frames
                    self.missing, self.may_hold_frame = PRELUDE.size, end < len(data)
                    return new_frame((kind, codec.decode(body, [], {}) if is_marked else body))
                self._begin(kind, _read_buffers(kind, nbytes, body, specs, self._local))
        return None

    def _want(self, nbytes: int) -> None:
        """Note how many bytes of what comes next are missing."""
        self.missing = nbytes - (len(self._data) - self._at)
        self.may_hold_frame = self.missing <= 0

    def _begin(self, kind: int, steps: Steps) -> None:
        self._kind, self._steps, self._wanted = kind & KIND_BITS, steps, 0

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
            self.missing, self.may_hold_frame = PRELUDE.size, self._at < len(self._data)
            return new_frame((self._kind, done.value))

    def close(self) -> None:
        """Let go of the frame that is under way, and of all descriptors."""
        steps, self._steps, self.memory = self._steps, None, None
        if steps is not None:
            with contextlib.suppress(ValueError):  # a thread that is not here, or not done, runs it
                steps.close()
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
    if specs or kind > KIND_BITS:
        return (yield from _read_buffers(kind, nbytes, body, specs, local))
    return codec.decode(body, [], {}) if is_marked else body


def _read_buffers(
    kind: int,
    header_bytes: int,
    tree: Any,
    told: Sequence[Any],
    local: loans.Local | None,
) -> Steps:
    """Read what follows a header; return what the tree stands for with that."""
    if kind & KIND_BITS == AUTH:  # nor may a stranger have us import torch to make an empty tensor
        raise ProtocolError("a handshake has no buffers")
    specs, raw, shared = codec.check_specs(told, shared=local is not None)
    raw_bytes = sum(raw.values())
    if header_bytes + raw_bytes > wire.MESSAGE_BYTES_MAX:
        raise ProtocolError(f"{raw_bytes} raw bytes; the limit is {wire.MESSAGE_BYTES_MAX}")
    is_lent = bool(kind & HAS_LOAN)
    flags = (HAS_RAW_BYTES if raw and not is_lent else 0) | (HAS_DESCRIPTORS if shared else 0)
    if kind & ~KIND_BITS & ~HAS_LOAN != flags or (is_lent and not raw):
        raise ProtocolError(f"a frame of kind {kind} whose buffers are of another kind")
    memories: dict[int, Any] = {}
    if local is not None:
        number, bits, reader = LOAN.unpack((yield None, LOAN.size) or b"") if is_lent else (0, 0, 0)
        is_new, is_shared = bits & 1, bool(bits & 2)
        came = local.take(is_new + len(shared))
        if is_lent:
            memory = came.pop(0) if is_new else None
            lent = local.borrower.borrow(
                number, reader, memory, [*raw.values()], is_shared=is_shared
            )
            memories.update(zip(raw, lent, strict=True))
        memories.update(zip(shared, came, strict=True))
    if not is_lent and raw_bytes >= wire.PACKED_BYTES_MIN:
        begins, nbytes = loans.places([*raw.values()])
        # One memory for all: sizes that are only claimed cost nothing.
        whole = memoryview(pool.allocate(nbytes))
        yield whole, 0
        for (index, size), begin in zip(raw.items(), begins, strict=True):
            memories[index] = whole[begin : begin + size]
    elif not is_lent:
        for index, nbytes in raw.items():
            if nbytes <= AHEAD_BYTES:
                data = (yield None, nbytes) or b""
                memories[index] = data if specs[index]["type"] == "bytes" else bytearray(data)
            else:
                memories[index] = pool.allocate(nbytes)
                yield memoryview(memories[index]), 0
    return codec.decode(tree, specs, memories)
