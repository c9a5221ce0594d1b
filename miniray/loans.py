"""Memory that large messages to a process of this machine travel in, lent and used again.

The sender copies a message's buffers into a piece of shared memory that nobody has on loan. The
receiver builds its arrays on the same memory, and gives the piece back once the last of them is
gone. Fresh memory costs a page fault every 4 KiB on both sides; a piece that goes back and forth
costs one copy a message. It begins with a flag for each reader, which is 1 while that has it.
"""

import collections
import ctypes
import itertools
import mmap
import os
import threading
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

from miniray import inherited
from miniray.errors import ProtocolError
from miniray.shared_memory import SharedMemory, create_memory

FLAGS_BYTES = mmap.ALLOCATIONGRANULARITY
DROPPED = FLAGS_BYTES - 1  # the last flag: the sender will not use it again
READERS_MAX = FLAGS_BYTES - 2  # the sender has the first flag
PIECES_MAX = 8
DESCRIPTORS_MAX = 253  # what Linux takes with one byte
LENT_BYTES_MAX = 256 * 1024 * 1024
NOT_POOLED = PIECES_MAX  # the number of a piece that is lent once
# Each of a message's buffers begins where every processor likes to read its numbers.
ALIGNMENT_BYTES = 64
_GRANULE_BYTES = 1024 * 1024
_serials = itertools.count()


def padding(nbytes: int) -> int:
    """Return how many bytes lie between a buffer and the next, if they are packed."""
    return -nbytes % ALIGNMENT_BYTES


def places(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Return where each buffer of a packed message begins, and how many bytes all of them take."""
    begins = list(itertools.accumulate((size + padding(size) for size in sizes), initial=0))
    return begins[:-1], begins[-1]


class Piece:
    """Shared memory of the sender's, and who has it on loan."""

    def __init__(self, number: int, nbytes: int) -> None:
        self.number, self.serial, self.nbytes = number, next(_serials), nbytes
        self.readers = 0
        with inherited.lock:  # a child that is forked meanwhile gets no copy that nobody closes
            self.memory = create_memory(FLAGS_BYTES + nbytes)
            inherited.own(self.memory)
        self._is_fresh = True
        self._map = self.memory.map(FLAGS_BYTES + nbytes)

    def is_free(self) -> bool:
        """Return whether nobody has it."""
        return self._map.find(b"\1", 0, self.readers + 1) < 0

    def fill(self, parts: Sequence[Any], begins: Sequence[int]) -> None:
        """Copy a message's buffers into it, each to its place."""
        if self._is_fresh:
            # The kernel need not clear what it is given at once.
            with open(self.memory.descriptor, "wb", closefd=False) as file:
                for begin, part in zip(begins, parts, strict=True):
                    file.seek(FLAGS_BYTES + begin)
                    file.write(part)
            self._is_fresh = False
        else:
            with memoryview(self._map) as whole:
                for begin, part in zip(begins, parts, strict=True):
                    start = FLAGS_BYTES + begin
                    whole[start : start + len(part)] = memoryview(part).cast("B")

    def flag(self, reader: int, is_lent: bool) -> None:
        """Note that a reader has it, or that it has given it back."""
        self._map[reader] = is_lent

    def give_back(self) -> None:
        """Note that the sender does not need it any more."""
        self.flag(0, False)
        _truncate_if_unused(self._map, self.memory)

    def drop(self) -> None:
        """Give the memory back, if nobody has it; else the last reader does."""
        self.flag(DROPPED, True)
        _truncate_if_unused(self._map, self.memory)


def _truncate_if_unused(mapped: mmap.mmap, memory: SharedMemory) -> None:
    """Free a dropped piece's memory, whoever maps it, but for the flags."""
    if mapped[DROPPED] and mapped.find(b"\1", 0, DROPPED) < 0 and memory.descriptor >= 0:
        os.truncate(memory.descriptor, FLAGS_BYTES)


class Loan:
    """One message in a piece; the sender has it, too, until this is dropped."""

    def __init__(self, piece: Piece) -> None:
        self.piece = piece
        self.is_shared = False  # with several readers, none of whom may see another's writes
        piece.readers = 0
        piece.flag(0, True)

    def add_reader(self) -> int:
        """Return the number of one more reader, who has it from now on."""
        if self.piece.readers == READERS_MAX:
            raise ValueError(f"one message to more than {READERS_MAX} workers of this machine")
        self.piece.readers += 1
        self.piece.flag(self.piece.readers, True)
        return self.piece.readers

    def __del__(self) -> None:
        self.piece.give_back()


class Lender:
    """The pieces of this process, least recently used first: few, and not too large."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self._lock = threading.Lock()
        inherited.own(self)

    def lend(self, parts: Sequence[Any]) -> Loan:
        """Return a message's buffers in a piece that nobody else has."""
        begins, nbytes = places([len(part) for part in parts])
        # Who cannot have the pieces at once does without: the holder may be what this signal's
        # handler interrupted.
        if nbytes > LENT_BYTES_MAX or not self._lock.acquire(blocking=False):
            loan = Loan(Piece(NOT_POOLED, nbytes))
        else:
            try:
                loan = Loan(self._find(nbytes))
            finally:
                self._lock.release()
        loan.piece.fill(parts, begins)
        return loan

    def _find(self, nbytes: int) -> Piece:
        for index, piece in enumerate(self.pieces):
            if nbytes <= piece.nbytes <= 2 * nbytes + _GRANULE_BYTES and piece.is_free():
                self.pieces.append(self.pieces.pop(index))
                return piece
        nbytes += -nbytes % _GRANULE_BYTES
        while len(self.pieces) == PIECES_MAX or self._pooled_bytes() + nbytes > LENT_BYTES_MAX:
            self.pieces.pop(0).drop()
        numbers = {piece.number for piece in self.pieces}
        piece = Piece(next(one for one in range(PIECES_MAX) if one not in numbers), nbytes)
        self.pieces.append(piece)
        return piece

    def _pooled_bytes(self) -> int:
        return sum(piece.nbytes for piece in self.pieces)

    def empty(self) -> None:
        """Give the memory back, but for what somebody still has."""
        if self._lock.acquire(blocking=False):
            try:
                while self.pieces:
                    self.pieces.pop().drop()
            finally:
                self._lock.release()

    def abandon(self) -> None:
        """Begin anew in a forked child."""
        self.pieces, self._lock = [], threading.Lock()


class Borrower:
    """The pieces that one channel's other side lends, by their numbers."""

    def __init__(self) -> None:
        self._pieces: dict[int, tuple[SharedMemory, mmap.mmap]] = {}

    def borrow(
        self,
        number: int,
        reader: int,
        memory: SharedMemory | None,
        sizes: Sequence[int],
        *,
        is_shared: bool,
    ) -> list[memoryview]:
        """Return a message's buffers; all together are given back when the last is dropped.

        A piece's `memory` comes with its first message. What is written into buffers that others
        share stays here. Raises ProtocolError if there is no memory, or less than that.
        """
        begins, nbytes = places(sizes)
        if memory is not None:
            self._pieces.pop(number, None)
            self._pieces[number] = memory, _map_whole(memory, nbytes)
        if number not in self._pieces:
            raise ProtocolError(f"a message in memory {number}, which did not come")
        memory, mapped = self._pieces[number]
        if len(mapped) < FLAGS_BYTES + nbytes or not 0 < reader <= READERS_MAX:
            size = f"a message of {nbytes} bytes in memory of {len(mapped)}"
            raise ProtocolError(f"{size}, as reader {reader}")
        if number == NOT_POOLED:
            del self._pieces[number]
        whole = memoryview(_take(memory, mapped, reader, nbytes, is_shared)).cast("B")
        return [whole[at : at + size] for at, size in zip(begins, sizes, strict=True)]

    def close(self) -> None:
        """Let go of all pieces; whoever holds an array on one keeps it."""
        self._pieces.clear()


def _map_whole(memory: SharedMemory, nbytes: int) -> mmap.mmap:
    try:
        inherited.own(memory)
        return memory.map(max(FLAGS_BYTES + nbytes, os.fstat(memory.descriptor).st_size))
    except (OSError, ValueError) as error:
        raise ProtocolError(f"shared memory cannot be mapped: {error}") from error


class Local:
    """What came from another process of this machine beside the bytes."""

    def __init__(self) -> None:
        self.borrower = Borrower()
        self._descriptors: collections.deque[SharedMemory] = collections.deque()

    def add(self, descriptors: Iterable[int]) -> None:
        """Own descriptors that have come."""
        self._descriptors.extend(map(SharedMemory, descriptors))
        # Those of the frame that is under way, and of the next, whose head has come with its end.
        if len(self._descriptors) > 2 * DESCRIPTORS_MAX:
            raise ProtocolError("descriptors came that no frame speaks of")

    def take(self, count: int) -> list[SharedMemory]:
        """Return the next so many descriptors' memory; raise ProtocolError if fewer have come."""
        if (came := len(self._descriptors)) < count:  # this process may not open as many
            self.close()
            raise ProtocolError(f"{came} descriptors came where {count} should")
        return [self._descriptors.popleft() for _ in range(count)]

    def close(self) -> None:
        """Close the descriptors that nobody has taken, and let go of what was lent."""
        while self._descriptors:
            self._descriptors.pop().close()
        self.borrower.close()


# What this process has on loan: what gives it back, where it is, how large, and in which memory;
# None where what is written stays in this process anyway.
_on_loan: "dict[int, tuple[weakref.finalize[..., Any], int, int, SharedMemory | None]]" = {}


def _take(
    memory: SharedMemory, mapped: mmap.mmap, reader: int, nbytes: int, is_shared: bool
) -> Any:
    """Return a message's memory, which is given back when nobody has it or a part of it."""
    data = memory.map(FLAGS_BYTES + nbytes, mmap.MAP_PRIVATE) if is_shared else mapped
    with inherited.lock:  # between a fork's preparation and the fork nothing is taken
        raw = (ctypes.c_ubyte * nbytes).from_buffer(data, FLAGS_BYTES)
        serial = next(_serials)
        finalizer = weakref.finalize(raw, _give_back, serial, memory, mapped, reader)
        finalizer.atexit = False
        address = ctypes.addressof(raw)
        _on_loan[serial] = finalizer, address, nbytes, None if is_shared else memory
    return raw


def _give_back(serial: int, memory: SharedMemory, mapped: mmap.mmap, reader: int) -> None:
    _on_loan.pop(serial, None)
    mapped[reader] = 0
    _truncate_if_unused(mapped, memory)


def _keep_what_is_on_loan() -> None:
    """Make it this process's own, where it lies, and never give it back.

    A forked child has it, too, for as long as it likes. What either of them writes from now on
    stays with the one that writes it, as with all memory.
    """
    for serial, (finalizer, address, nbytes, memory) in list(_on_loan.items()):
        _on_loan.pop(serial, None)
        kept = finalizer.detach()  # which also holds the memory, until it is done
        if kept is not None and memory is not None:
            _make_private(address, nbytes, memory)
        del kept


def _make_private(address: int, nbytes: int, memory: SharedMemory) -> None:
    flags = mmap.MAP_PRIVATE | 0x10  # MAP_FIXED: in place of what is there
    access = mmap.PROT_READ | mmap.PROT_WRITE
    map_memory = ctypes.CDLL(None, use_errno=True).mmap
    map_memory.restype = ctypes.c_void_p
    place = ctypes.c_void_p(address), ctypes.c_size_t(nbytes)
    offset = ctypes.c_long(FLAGS_BYTES)
    if map_memory(*place, access, flags, memory.descriptor, offset) != address:
        raise OSError(ctypes.get_errno(), "what is on loan cannot be made this process's own")


inherited.before_fork(_keep_what_is_on_loan)
lender = Lender()
lend, empty = lender.lend, lender.empty
