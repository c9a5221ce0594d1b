"""Memory without a name (a memfd), which goes to another process as a descriptor."""

import itertools
import mmap
import os
from collections.abc import Iterable
from typing import Any

from miniray import inherited
from miniray.errors import ProtocolError

# Of what is packed, each part begins where every processor likes to read its numbers.
ALIGNMENT_BYTES = 64


class SharedMemory:
    """Own the descriptor of memory that can be sent to another process."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def map(self, nbytes: int, flags: int = mmap.MAP_SHARED) -> mmap.mmap:
        """Return the memory itself; raise ValueError if it is shorter than promised."""
        held = os.fstat(self.descriptor).st_size
        if held < nbytes:
            # Reading past the end of a mapped file would kill this process with SIGBUS.
            raise ValueError(f"shared memory of {held} bytes where {nbytes} were promised")
        return mmap.mmap(self.descriptor, nbytes, flags)

    def close(self) -> None:
        """Close the descriptor, once."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    abandon = __del__ = close


def create_memory(nbytes: int) -> SharedMemory:
    """Return new anonymous memory, all zeros."""
    if not hasattr(os, "memfd_create"):
        raise NotImplementedError("memory shared between processes needs memfd, which is Linux's")
    memory = SharedMemory(os.memfd_create("miniray", os.MFD_CLOEXEC))
    os.truncate(memory.descriptor, nbytes)
    return memory


def pack(parts: Iterable[Any]) -> SharedMemory:
    """Return new memory that holds a copy of each part, in order and aligned."""
    with inherited.lock:  # a child that is forked meanwhile gets no copy that nobody closes
        memory = create_memory(0)
        inherited.own(memory)
    with open(memory.descriptor, "wb", buffering=64 * 1024, closefd=False) as file:
        for part in parts:
            file.write(part)
            file.write(bytes(-len(part) % ALIGNMENT_BYTES))
    return memory


def unpack(memory: SharedMemory, sizes: list[int]) -> list[memoryview]:
    """Return where each part of packed memory is; any of them keeps all of it mapped.

    What is written there stays in this process: a child that is forked later does not see it.
    """
    padded = [nbytes + -nbytes % ALIGNMENT_BYTES for nbytes in sizes]
    begins = list(itertools.accumulate(padded, initial=0))
    try:
        whole = memoryview(memory.map(begins.pop(), mmap.MAP_PRIVATE))
    except (OSError, ValueError) as error:
        raise ProtocolError(f"shared memory cannot be mapped: {error}") from error
    return [whole[begin : begin + nbytes] for begin, nbytes in zip(begins, sizes, strict=True)]
