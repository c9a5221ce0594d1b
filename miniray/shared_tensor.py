"""A tensor whose memory another process on this machine can map too."""

import mmap
import os
from collections.abc import Sequence
from typing import Any


class SharedTensor:
    """Hold a CPU tensor of any shape that a local Worker receives without a copy.

    Both sides see each other's writes to `.tensor`; who writes when is for their messages to
    settle. `dtype` is a torch.dtype (default float32). The memory is a memfd (Linux): it is freed
    when the last process that maps it lets go.

    >>> shared = SharedTensor((2, 3))
    >>> shared.tensor[0] = 1.0
    """

    def __init__(
        self, shape: Sequence[int], dtype: Any = None, *, descriptor: int | None = None
    ) -> None:
        import torch

        dtype = torch.float32 if dtype is None else dtype
        nbytes = max(torch.Size(shape).numel() * dtype.itemsize, 1)
        if descriptor is None:
            descriptor = create_memory(nbytes)
        self.descriptor: int = descriptor
        self.tensor: torch.Tensor = (
            torch.frombuffer(map_memory(descriptor, nbytes), dtype=dtype, count=-1).reshape(shape)
            if torch.Size(shape).numel()
            else torch.empty(shape, dtype=dtype)
        )

    def __del__(self) -> None:
        if (descriptor := getattr(self, "descriptor", None)) is not None:
            os.close(descriptor)

    def __repr__(self) -> str:
        return f"<SharedTensor {list(self.tensor.shape)} {self.tensor.dtype}>"


def create_memory(nbytes: int) -> int:
    """Return the descriptor of new anonymous memory that can be sent to another process."""
    if not hasattr(os, "memfd_create"):
        raise NotImplementedError("memory shared between processes needs memfd, which is Linux's")
    descriptor = os.memfd_create("miniray", os.MFD_CLOEXEC)
    os.truncate(descriptor, nbytes)
    return descriptor


def map_memory(descriptor: int, nbytes: int) -> mmap.mmap:
    """Map received memory; raise ValueError if it is shorter than promised."""
    held = os.fstat(descriptor).st_size
    if held < nbytes:
        # Reading past the end of a mapped file would kill this process with SIGBUS.
        raise ValueError(f"shared memory of {held} bytes where {nbytes} were promised")
    return mmap.mmap(descriptor, nbytes)
