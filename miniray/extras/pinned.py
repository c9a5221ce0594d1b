"""Send what is on a GPU: through pinned memory, which the GPU copies into by itself.

`channel.send` refuses such tensors, so that no copy happens unseen. Here it is seen, and takes one
pass over PCIe into memory that is used again, where `.cpu()` takes fresh memory each time.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

ALIGNMENT = 64  # bytes, which any dtype divides


class PinnedMemory:
    """Memory of the host's for the tensors of one message at a time.

    It grows to the largest message, and is given back when this object is dropped. Whatever thread
    uses it, one at a time may.

    >>> pinned = PinnedMemory()
    >>> worker.send(pinned.copy({"weights": model.state_dict()}))
    """

    def __init__(self) -> None:
        self._memory: torch.Tensor | None = None

    def copy(self, message: Any) -> Any:
        """Return a message that can be sent, with every tensor of a GPU's as a copy in this memory.

        What is on the CPU stays what it is. The copies are valid until the next `copy`: a `send` or
        a `broadcast` that has returned needs them no more. Waits for what the GPU still computes.
        """
        tensors: list[torch.Tensor] = []
        _replace(message, lambda tensor: tensors.append(tensor))
        memory = self._room_for(sum(map(_aligned_bytes, tensors)))
        copies, offset = [], 0
        for tensor in tensors:
            place = memory[offset : offset + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            copies.append(place.copy_(tensor.detach(), non_blocking=True))
            offset += _aligned_bytes(tensor)
        for device in {tensor.device for tensor in tensors}:
            wait_for(device)
        remaining = iter(copies)
        return _replace(message, lambda _: next(remaining))

    def _room_for(self, nbytes: int) -> "torch.Tensor":
        if self._memory is None or self._memory.nbytes < nbytes:
            self._memory = None  # before there is more of it
            self._memory = allocate(nbytes)
        return self._memory


def is_on_gpu(value: Any) -> bool:
    """Return whether a value is a tensor that a channel would refuse for where it is."""
    return getattr(value, "is_cuda", False) is True


def allocate(nbytes: int) -> "torch.Tensor":
    """Return so many bytes of pinned memory."""
    import torch

    return torch.empty(nbytes, dtype=torch.uint8, pin_memory=nbytes > 0)


def wait_for(device: "torch.device") -> None:
    """Wait until a GPU has done all that this thread has asked of it."""
    import torch

    torch.cuda.current_stream(device).synchronize()


def _replace(value: Any, replacement: Any) -> Any:
    """Return a value with each tensor of a GPU's replaced, in the order in which they stand."""
    if is_on_gpu(value):
        return replacement(value)
    if type(value) in (list, tuple):
        return type(value)(_replace(one, replacement) for one in value)
    if isinstance(value, dict):
        return {name: _replace(one, replacement) for name, one in value.items()}
    return value


def _aligned_bytes(tensor: "torch.Tensor") -> int:
    return -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
