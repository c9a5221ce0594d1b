"""Functions that the tests call in workers."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import miniray


def square(number: float) -> float:
    return number * number


def describe(*args: Any, **kwargs: Any) -> Any:
    return [args, kwargs]


def fail(text: str) -> None:
    raise ValueError(text)


def leave(status: Any) -> None:
    sys.exit(status)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    signal.pause()


def hang_at(task: int) -> None:
    hang()


def return_a_lambda() -> Any:
    return {"loss": 1.0, "model": [lambda: None]}


def read(fifo: str) -> str:
    """Wait until somebody writes to a FIFO."""
    with open(fifo) as file:
        return file.read()


def read_or_not(fifo: str) -> str:
    return read(fifo) if fifo else "at once"


def square_or_die(number: int) -> int:
    if number < 0:
        die()
    return number * number


def variables(*names: str) -> list[str | None]:
    return [os.environ.get(name) for name in names]


def fail_on(rank: int) -> str:
    if os.environ["RANK"] == str(rank):
        raise ValueError("no such batch: 7")
    signal.pause()
    return "never"


def add_ranks() -> float:
    import torch
    import torch.distributed as dist

    with miniray.process_group() as device:
        number = torch.full((1,), float(dist.get_rank()), device=device)
        dist.all_reduce(number)
        return number.item()


def add_ranks_as_under_torchrun() -> float:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    number = torch.full((1,), float(dist.get_rank()))
    dist.all_reduce(number)
    dist.destroy_process_group()
    return number.item()


def fail_in_the_middle(rank: int) -> None:
    import torch.distributed as dist

    with miniray.process_group():
        if dist.get_rank() == rank:
            raise ValueError("no such batch: 7")
        dist.barrier()


def make_closure() -> Callable[[], int]:
    secret = 3
    return lambda: secret


def make_function() -> Callable[[], int]:
    def inner() -> int:
        return 3

    return inner


class Model:
    def train(self) -> None:
        pass


def shadowed() -> int:
    return 1


first_of_two = shadowed


def shadowed() -> int:  # type: ignore[no-redef]  # as after an edit in a notebook
    return 2
