"""A tensor whose memory another process on this machine can map too."""

from collections.abc import Sequence
from typing import Any

from miniray.shared_memory import SharedMemory, create_memory


class SharedTensor:
    """Hold a CPU tensor of any shape that a local Worker receives without a copy.

    Both sides see each other's writes to `.tensor`; who writes when is for their messages to
    settle. `dtype` is a torch.dtype (default float32). The memory is a memfd (Linux): it is freed
    when the last process that maps it lets go.

    >>> shared = SharedTensor((2, 3))
    >>> shared.tensor[0] = 1.0
    """

    def __init__(
        self, shape: Sequence[int], dtype: Any = None, *, memory: SharedMemory | None = None
    ) -> None:
        import torch

        dtype = torch.float32 if dtype is None else dtype
        count = torch.Size(shape).numel()
        nbytes = max(count * dtype.itemsize, 1)
        self.memory = create_memory(nbytes) if memory is None else memory
        self.tensor: torch.Tensor = (
            torch.frombuffer(self.memory.map(nbytes), dtype=dtype).reshape(shape)
            if count
            else torch.empty(shape, dtype=dtype)
        )

    def __repr__(self) -> str:
        return f"<SharedTensor {list(self.tensor.shape)} {self.tensor.dtype}>"
