"""How memory is shared out, and counted."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

from exercises.checking import expect


class Tensor:
    """What a count may ask of a tensor, in the words of torch, which takes seconds to import."""

    def __init__(self, rows: int, columns: int, *, each: int = 4) -> None:
        self.rows, self.columns, self.each = rows, columns, each
        self.shape: tuple[int, ...] = (rows, columns)
        self.requires_grad = self.is_leaf = True
        self.grad: Any = None

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the check's stand-in for a tensor has no {name}")

    def __bool__(self) -> bool:
        raise RuntimeError("Boolean value of Tensor with more than one value is ambiguous")

    @property
    def itemsize(self) -> int:
        return self.each

    @property
    def nbytes(self) -> int:
        return self.numel() * self.each

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> Any:
        return SimpleNamespace(itemsize=self.each)

    def dim(self) -> int:
        return self.ndim

    def size(self, dimension: int | None = None) -> Any:
        return self.shape if dimension is None else self.shape[dimension]

    def untyped_storage(self) -> Any:
        return SimpleNamespace(nbytes=lambda: self.nbytes)

    def numel(self) -> int:
        return self.rows * self.columns

    def element_size(self) -> int:
        return self.each

    def __hash__(self) -> int:
        return id(self)


class Sharded(Tensor):
    """A tensor of which this rank has some rows, `rows_here`."""

    def __init__(self, rows: int, columns: int, *, rows_here: int, each: int = 4) -> None:
        super().__init__(rows, columns, each=each)
        self.rows_here = rows_here

    def to_local(self) -> Tensor:
        return Tensor(self.rows_here, self.columns, each=self.each)


def _stand_in_for_torch() -> None:
    """Let an answer ask torch what a tensor is."""
    names = ("torch", "torch.distributed", "torch.distributed.tensor", "torch.distributed._tensor")
    for name in names:
        sys.modules[name] = ModuleType(name)
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, sys.modules[name])
    for name in names[2:]:
        sys.modules[name].__dict__["DTensor"] = Sharded
    sys.modules["torch"].__dict__.update(
        Tensor=Tensor,
        is_tensor=lambda value: isinstance(value, Tensor),
        nn=SimpleNamespace(Parameter=Tensor),
    )


def _adam(*groups: list[Tensor], backward: bool = True, step: Any = None) -> Any:
    """Return an optimizer like Adam, with two moments for each parameter."""
    state: dict[Tensor, dict[str, Any]] = {}
    for parameter in (one for group in groups for one in group):
        parameter.grad = _like(parameter) if backward else None
        state[parameter] = {"exp_avg": _like(parameter), "exp_avg_sq": _like(parameter)}
        if step is not None:
            state[parameter]["step"] = step
    return SimpleNamespace(param_groups=[{"params": group} for group in groups], state=state)


def _like(tensor: Tensor) -> Tensor:
    if isinstance(tensor, Sharded):
        return Sharded(tensor.rows, tensor.columns, rows_here=tensor.rows_here, each=tensor.each)
    return Tensor(tensor.rows, tensor.columns, each=tensor.each)


def _expect(answer: Any, optimizer: Any, parameters: int, gradients: int, more: int) -> None:
    _stand_in_for_torch()
    got = answer.nccl.memory_bytes(optimizer)
    expected = {"parameters": parameters, "gradients": gradients, "optimizer": more}
    shown = [", ".join(f"{name}: {one.get(name)}" for name in expected) for one in (expected, got)]
    expect(got == expected, expected=shown[0], happened=shown[1])


def check_plain(answer: Any) -> None:
    """count for parameters of 10 x 3 and 1 x 7 numbers, 4 bytes each, which are not sharded"""
    _expect(answer, _adam([Tensor(10, 3), Tensor(1, 7)]), 148, 148, 296)


def check_sharded(answer: Any) -> None:
    """count on rank 3 of 4, which has 1 of 10 rows of 100 numbers, and none of 2 rows of 7"""
    shards: list[Tensor] = [Sharded(10, 100, rows_here=1), Sharded(2, 7, rows_here=0)]
    _expect(answer, _adam(shards), 400, 400, 800)


def check_half(answer: Any) -> None:
    """count for a parameter of 10 x 3 numbers with 2 bytes each"""
    _expect(answer, _adam([Tensor(10, 3, each=2)]), 60, 60, 120)


def check_groups(answer: Any) -> None:
    """count for two groups of parameters, of 10 and of 6 numbers"""
    _expect(answer, _adam([Tensor(10, 1)], [Tensor(6, 1)]), 64, 64, 128)


def check_plain_numbers(answer: Any) -> None:
    """count with an optimizer that keeps the number of steps, as an int"""
    _expect(answer, _adam([Tensor(5, 1)], step=12), 20, 20, 40)


def check_before_backward(answer: Any) -> None:
    """count before the first backward: there are no gradients"""
    _expect(answer, _adam([Tensor(5, 1)], backward=False), 20, 0, 40)


def check_momentum(answer: Any) -> None:
    """count with SGD, whose state for each parameter is one momentum_buffer"""
    parameter = Tensor(5, 1)
    parameter.grad = _like(parameter)
    state = {parameter: {"momentum_buffer": _like(parameter)}}
    optimizer = SimpleNamespace(param_groups=[{"params": [parameter]}], state=state)
    _expect(answer, optimizer, 20, 20, 20)


def check_a_tensor_without_dimensions(answer: Any) -> None:
    """count with an optimizer that keeps the number of steps in a tensor of one number"""
    step = Tensor(1, 1)
    step.shape = ()
    _expect(answer, _adam([Tensor(5, 1)], step=step), 20, 20, 44)
