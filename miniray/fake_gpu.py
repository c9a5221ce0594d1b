"""The memory of a GPU that is not there: how large it is, and what training takes of it."""

import contextlib
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

FAKE_GPU_MEMORY = "64MiB"
_UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def has_fake_gpus() -> bool:
    """Return whether this process is to take CPU memory for a GPU."""
    return os.environ.get("MINIRAY_FAKE_GPUS", "0") not in ("", "0")


def fake_gpu_memory_bytes() -> int:
    """Return the size of a fake GPU from MINIRAY_FAKE_GPU_MEMORY, such as "64MiB"."""
    text = os.environ.get("MINIRAY_FAKE_GPU_MEMORY", FAKE_GPU_MEMORY)
    match = re.fullmatch(r"(\d+)\s*(|KiB|MiB|GiB)", text)
    if match is None:
        raise ValueError(f"MINIRAY_FAKE_GPU_MEMORY must be like 64MiB or 2GiB, got {text!r}")
    return int(match[1]) * _UNITS[match[2]]


def memory_bytes(optimizer: "torch.optim.Optimizer") -> dict[str, int]:
    """Return the bytes that this rank holds: {"parameters", "gradients", "optimizer"}.

    Of a sharded parameter (DTensor) only this rank's shard counts.
    """
    parameters = _parameters(optimizer)
    states = [value for one in optimizer.state.values() for value in one.values()]
    return {
        "parameters": sum(map(_local_bytes, parameters)),
        "gradients": sum(_local_bytes(one.grad) for one in parameters if one.grad is not None),
        "optimizer": sum(_local_bytes(value) for value in states if hasattr(value, "numel")),
    }


@contextlib.contextmanager
def limited_memory(rank: int) -> Iterator[None]:
    """Have an optimizer's step raise OutOfMemoryError if this rank would then hold too much.

    As on a GPU, the parameters are then what they were before the step.
    """
    import torch
    from torch.optim import optimizer as hooks

    limit_bytes = fake_gpu_memory_bytes()
    saved: dict[torch.Tensor, torch.Tensor] = {}

    def before_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        _check(optimizer, rank, limit_bytes)
        if not optimizer.state:  # the step will make it, which is when memory runs out
            saved.update((one, one.detach().clone()) for one in _parameters(optimizer))

    def after_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        try:
            _check(optimizer, rank, limit_bytes)
        except torch.OutOfMemoryError:
            optimizer.state.clear()
            for parameter, value in saved.items():
                parameter.detach().copy_(value)
            raise
        finally:
            saved.clear()

    with contextlib.ExitStack() as undo:
        undo.callback(hooks.register_optimizer_step_pre_hook(before_step).remove)
        undo.callback(hooks.register_optimizer_step_post_hook(after_step).remove)
        yield


def _check(optimizer: "torch.optim.Optimizer", rank: int, limit_bytes: int) -> None:
    from torch import OutOfMemoryError

    held = memory_bytes(optimizer)
    if sum(held.values()) > limit_bytes:
        parts = " + ".join(f"{name} {nbytes / 2**20:.1f} MiB" for name, nbytes in held.items())
        raise OutOfMemoryError(
            f"fake GPU of rank {rank} is out of memory: {parts} = "
            f"{sum(held.values()) / 2**20:.1f} MiB of {limit_bytes / 2**20:.1f} MiB; "
            "shard over more ranks, or raise MINIRAY_FAKE_GPU_MEMORY"
        )


def _parameters(optimizer: "torch.optim.Optimizer") -> list["torch.Tensor"]:
    return [one for group in optimizer.param_groups for one in group["params"]]


def _local_bytes(tensor: Any) -> int:
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return int(local.numel() * local.element_size())
