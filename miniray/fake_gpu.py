"""The memory of a GPU that is not there: how large it is, and what training takes of it.

Nothing is allocated there, and no operation is intercepted: hooks look at what a rank holds when a
module has run, when a gradient is there, and around a step. docs/MINIRAY.md says what that counts.
"""

import contextlib
import inspect
import os
import re
import weakref
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from miniray.holdings import (
    ACTIVATIONS,
    GATHERED,
    Holdings,
    local_part,
    saved_for_backward,
    tensors_in,
)
from miniray.window import show_memory

if TYPE_CHECKING:
    import torch

FAKE_GPU_MEMORY = "64MiB"
_UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
# What memory is held for, and what helps where that is most of it. Buffers are parameters here,
# and gathered are those that FSDP makes whole for as long as it needs them.
_REMEDIES = {
    "parameters": "shard over more ranks",
    GATHERED: "shard smaller modules",
    "gradients": "shard over more ranks",
    "optimizer": "shard over more ranks",
    ACTIVATIONS: "take a smaller batch, or checkpoint activations",
}


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


def memory_allocated() -> int:
    """Return the bytes that this rank holds on its fake GPU."""
    return sum(memory_parts().values())


def max_memory_allocated() -> int:
    """Return the most bytes that it was seen to hold, since it began or since the last reset."""
    return _this_rank().peak_bytes


def reset_peak_memory_stats() -> None:
    """Forget how much was held until now."""
    _this_rank().peak_bytes = memory_allocated()


def memory_parts() -> dict[str, int]:
    """Return the bytes that this rank holds, by what they are for.

    That is "parameters" (and buffers), "gathered" (those that FSDP has made whole for a moment),
    "gradients", "optimizer" and "activations". Outside of `process_group` there is no fake GPU, and
    this raises RuntimeError, as the other figures do.
    """
    return _this_rank().parts()


def memory_bytes(optimizer: "torch.optim.Optimizer") -> dict[str, int]:
    """Return the bytes of one optimizer's tensors: {"parameters", "gradients", "optimizer"}.

    Of a sharded parameter (DTensor) only this rank's shard counts.
    """
    parameters = _parameters(optimizer)
    return {
        "parameters": sum(map(_nbytes, parameters)),
        "gradients": sum(_nbytes(one.grad) for one in parameters if one.grad is not None),
        "optimizer": sum(map(_nbytes, tensors_in(list(optimizer.state.values())))),
    }


@contextlib.contextmanager
def limited_memory(rank: int) -> Iterator[None]:
    """Have training in this process raise torch.OutOfMemoryError where a GPU would be full.

    A step that does not fit changes nothing: what it is going to make counts before it is made.
    """
    global _current
    before, _current = _current, _Memory(rank, fake_gpu_memory_bytes())
    try:
        with _current.watching():
            yield
    finally:
        _current = before


class _Memory:
    """What one rank holds: hooks add to it, and look whether it still fits."""

    def __init__(self, rank: int, limit_bytes: int) -> None:
        self.peak_bytes = 0
        self._rank, self._limit_bytes = rank, limit_bytes
        self._holdings = Holdings(*_REMEDIES)
        self._seen: weakref.WeakSet[torch.nn.Module | torch.optim.Optimizer] = weakref.WeakSet()
        self._ran: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()
        self._depth = 0  # of modules that call modules
        self._undo = contextlib.ExitStack()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Look at every module and every optimizer of this process meanwhile."""
        from torch.nn.modules import module
        from torch.optim import optimizer

        with self._undo:
            for handle in (
                module.register_module_forward_pre_hook(self._before_forward),
                module.register_module_forward_hook(self._after_forward, always_call=True),
                optimizer.register_optimizer_step_pre_hook(self._before_step),
                optimizer.register_optimizer_step_post_hook(self._after_step),
            ):
                self._undo.callback(handle.remove)
            yield

    def parts(self) -> dict[str, int]:
        """Return the bytes that are held, by what they are for."""
        return self._holdings.nbytes()

    def _before_forward(self, module: "torch.nn.Module", _: Any) -> None:
        if _is_compiling():
            return
        self._depth += 1
        if module not in self._seen:  # and FSDP has not gathered anything for it
            self._seen.update(module.modules())
            self._hold_parameters("parameters", [*module.parameters(), *module.buffers()])

    def _after_forward(self, module: "torch.nn.Module", _: Any, output: Any) -> None:
        if _is_compiling():
            return
        self._depth -= 1
        if output is None:  # it raised
            return
        if module not in self._ran:  # what FSDP has gathered for it is still there
            self._ran.add(module)
            self._hold_parameters(GATHERED, list(module.parameters(recurse=False)))
        self._holdings.hold(ACTIVATIONS, output)
        if self._depth == 0:
            self._holdings.hold(ACTIVATIONS, list(saved_for_backward(output)))
        self._check(f"in the forward pass of {type(module).__name__}")

    def _hold_parameters(self, purpose: str, tensors: "list[torch.Tensor]") -> None:
        """Count those that are new, and their gradients as soon as they have some."""
        for tensor in tensors:
            if not self._holdings.knows(tensor):
                self._holdings.hold(purpose, tensor)
                if tensor.requires_grad and tensor.is_leaf:
                    hooked: Any = tensor
                    handle = hooked.register_post_accumulate_grad_hook(self._after_gradient)
                    self._undo.callback(handle.remove)

    def _after_gradient(self, parameter: "torch.Tensor") -> None:
        self._holdings.hold("gradients", parameter.grad)
        self._check("in the backward pass")

    def _before_step(self, optimizer: "torch.optim.Optimizer", *_: Any) -> None:
        parameters = _parameters(optimizer)
        self._holdings.hold("parameters", parameters)
        self._holdings.hold("gradients", [one.grad for one in parameters])
        if optimizer not in self._seen:  # it may have taken steps before, or loaded a checkpoint
            self._seen.add(optimizer)
            self._holdings.hold("optimizer", list(optimizer.state.values()))
        self._check(f"before a step of {type(optimizer).__name__}", _state_to_come(optimizer))

    def _after_step(self, optimizer: "torch.optim.Optimizer", *_: Any) -> None:
        self._holdings.hold("optimizer", list(optimizer.state.values()))
        self._check(f"after a step of {type(optimizer).__name__}")

    def _check(self, when: str, optimizer_bytes: int = 0) -> None:
        """Raise OutOfMemoryError if what is held, and more state of an optimizer, does not fit."""
        parts = self.parts()
        parts["optimizer"] += optimizer_bytes
        total = sum(parts.values())
        if total > self._limit_bytes:
            from torch import OutOfMemoryError

            named = [f"{name} {_in_words(nbytes)}" for name, nbytes in parts.items() if nbytes]
            raise OutOfMemoryError(
                f"fake GPU of rank {self._rank} is out of memory {when}: {' + '.join(named)} = "
                f"{_in_words(total)} of {_in_words(self._limit_bytes)}; "
                f"{_REMEDIES[max(parts, key=lambda name: parts[name])]}, "
                "or raise MINIRAY_FAKE_GPU_MEMORY"
            )
        self.peak_bytes = max(self.peak_bytes, total)
        show_memory(total, self._limit_bytes)


_current: _Memory | None = None


def _this_rank() -> _Memory:
    if _current is None:
        raise RuntimeError(
            "this process has no fake GPU; ask within process_group(...), with MINIRAY_FAKE_GPUS=1"
        )
    return _current


def _state_to_come(optimizer: "torch.optim.Optimizer") -> int:
    """Return the bytes of state that the next step will add.

    A copy of the optimizer takes that step, on tensors that have a shape and no memory.
    """
    import torch

    new = [one for one in _parameters(optimizer) if one.grad is not None]
    new = [one for one in new if one not in optimizer.state]
    if not new:
        return 0
    twin, shapes = object.__new__(type(optimizer)), {id(one): _shape_of(one) for one in new}
    vars(twin).update(vars(optimizer), state=defaultdict(dict))
    twin.param_groups = [
        group
        | {name: False for name in ("foreach", "fused") if name in group}  # not for such tensors
        | {"params": [shapes[id(one)] for one in group["params"] if id(one) in shapes]}
        for group in optimizer.param_groups
    ]
    # The method itself: around it there are hooks, ours among them.
    step = inspect.unwrap(type(optimizer).step)
    # Who wants to see values, or needs a closure, may raise anything: then `_after_step` looks.
    with contextlib.suppress(Exception), torch.no_grad():
        step(twin)
    return sum(map(_nbytes, tensors_in(list(twin.state.values()))))


def _shape_of(parameter: "torch.Tensor") -> "torch.Tensor":
    import torch

    local, gradient = local_part(parameter), local_part(parameter.grad)
    shape = torch.nn.Parameter(torch.empty_like(local, device="meta"))
    shape.grad = torch.empty_like(gradient, device="meta")
    return shape


def _parameters(optimizer: "torch.optim.Optimizer") -> "list[torch.Tensor]":
    return [one for group in optimizer.param_groups for one in group["params"]]


def _nbytes(tensor: Any) -> int:
    local = local_part(tensor)
    return int(local.numel() * local.element_size())


def _in_words(nbytes: int) -> str:
    return f"{nbytes / 2**20:.1f} MiB" if nbytes >= 2**20 else f"{nbytes / 2**10:.1f} KiB"


def _is_compiling() -> bool:
    """Return whether torch.compile reads this code, rather than runs it."""
    import torch

    return torch.compiler.is_compiling()
