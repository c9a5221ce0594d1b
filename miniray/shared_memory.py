"""Memory without a name (a memfd), which goes to another process as a descriptor."""

import mmap
import os


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
