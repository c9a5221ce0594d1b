"""Memory to receive into, used again: fresh memory is most of the time of a large receive."""

import contextlib
import mmap
import sys
import threading

from miniray import inherited
from miniray.errors import ProtocolError

POOLED_BYTES_MIN = 1024 * 1024
POOL_BYTES_MAX = 256 * 1024 * 1024


class Pool:
    """Keep up to POOL_BYTES_MAX of large pieces, least recently used first.

    Fresh memory costs a page fault every 4 KiB. A piece whose only reference is the pool's is
    free: whoever builds an array or a tensor on it holds one more.
    """

    def __init__(self) -> None:
        self.pieces: list[mmap.mmap] = []
        self._lock = threading.Lock()
        inherited.own(self)

    def allocate(self, nbytes: int) -> bytearray | mmap.mmap:
        """Return memory that nobody holds; a large size costs nothing until bytes arrive in it."""
        if nbytes < POOLED_BYTES_MIN:
            return bytearray(nbytes)
        # Who cannot have the pool at once does without it. The holder may be what this signal's
        # handler interrupted, and would be waited for for ever.
        if nbytes > POOL_BYTES_MAX or not self._lock.acquire(blocking=False):
            return _map(nbytes)
        try:
            return self._find(nbytes)
        finally:
            self._lock.release()

    def _find(self, nbytes: int) -> mmap.mmap:
        pieces = self.pieces
        for index in range(len(pieces)):
            # Two references are the pool's own and getrefcount's argument.
            if len(pieces[index]) == nbytes and sys.getrefcount(pieces[index]) <= 2:
                pieces.append(pieces.pop(index))
                return pieces[-1]
        pieces.append(_map(nbytes))
        while sum(map(len, pieces)) > POOL_BYTES_MAX:
            del pieces[0]
        return pieces[-1]

    def empty(self) -> None:
        """Give the memory back; whoever still holds a piece keeps it."""
        self.pieces = []

    def abandon(self) -> None:
        """Begin anew in a forked child: the thread that held the lock may not be there."""
        self.pieces, self._lock = [], threading.Lock()


def _map(nbytes: int) -> mmap.mmap:
    try:
        memory = mmap.mmap(-1, nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise ProtocolError(f"a buffer of {nbytes} bytes: {error.strerror}") from error
    with contextlib.suppress(AttributeError, OSError):  # not Linux, or a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)  # a page fault every 2 MiB instead of 4 KiB
    return memory


_pool = Pool()
allocate, empty = _pool.allocate, _pool.empty
