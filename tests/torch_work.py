"""Work functions of the tests that need torch."""

import os
import signal

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from miniray import Channel, process_group
from miniray.fake_gpu import max_memory_allocated, memory_bytes, memory_parts

TORCHRUN = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK"),
    *("MASTER_ADDR", "MASTER_PORT"),
)


def all_reduce(channel: Channel) -> None:
    """Join the group that the first message describes; sum ones, again for each message."""
    with process_group(channel.recv()) as device:
        order = "all_reduce"
        while True:
            if order == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            ones = torch.ones(1, device=device)
            dist.all_reduce(ones)
            channel.send(ones.item())
            order = channel.recv()


def fail_in_a_group(channel: Channel) -> None:
    """Raise on rank 2, while the others wait for it in a collective."""
    config = channel.recv()
    with process_group(config) as device:
        dist.barrier()
        channel.send("joined")
        channel.recv()
        if config["rank"] == 2:
            raise ValueError("only rank 2 fails")
        dist.all_reduce(torch.ones(1, device=device))
        channel.send("done")


def tell_environment(channel: Channel) -> None:
    with process_group(channel.recv()):
        inside = {name: os.environ[name] for name in TORCHRUN}
        os.environ["SET_INSIDE"] = "mine"
        dist.barrier()  # who leaves while others still connect takes them along
    after = {name: os.environ[name] for name in TORCHRUN if name in os.environ}
    channel.send((inside, after, os.environ.get("SET_INSIDE")))


def tell_failure(channel: Channel) -> None:
    """Fail as told, and send what the exception says when it has left the group."""
    order, config = channel.recv()
    try:
        with process_group(config) as device:
            fail(order, config["rank"], device)
    except Exception as error:
        failed_at, in_collective = getattr(error, "failed_at", None), error.in_collective  # type: ignore[attr-defined]
        channel.send([type(error).__name__, failed_at, in_collective])


class OddError(ValueError):
    """An exception with attributes of its own."""

    __slots__ = ()

    @property
    def failed_at(self) -> str:
        return "step 7"


def fail(order: str, rank: int, device: torch.device) -> None:
    ones = torch.ones(2, device=device)
    match order:
        case "odd":
            raise OddError("as told")
        case "value":
            dist.all_reduce("no tensor")  # type: ignore[arg-type]
        case "memory":
            raise torch.OutOfMemoryError("CUDA out of memory")
        case "all_reduce":
            if rank == 1:
                os._exit(1)
            dist.all_reduce(ones)
        case "backward":
            model = DistributedDataParallel(torch.nn.Linear(2, 2))
            if rank == 1:
                os._exit(1)
            model(ones).sum().backward()


def train_sharded(channel: Channel) -> None:
    """Take two steps with a model of 1 MiB of parameters; answer the loss and the bytes held."""
    with process_group(channel.recv()) as device:
        torch.manual_seed(0)
        model = torch.nn.Linear(512, 512).to(device)
        fully_shard(model)
        optimizer = torch.optim.AdamW(model.parameters())
        for _ in range(2):
            loss = model(torch.ones(4, 512, device=device)).square().mean()
            loss.backward()
            optimizer.step()
        channel.send((loss.item(), memory_bytes(optimizer)))


def hold_sharded(channel: Channel) -> None:
    """Answer what is held in each layer's forward pass, after it, after backward, and at most."""

    def parts() -> dict[str, int]:
        return {name: memory_parts()[name] for name in ("parameters", "gathered", "gradients")}

    with process_group(channel.recv()) as device:
        model = torch.nn.Sequential(*(torch.nn.Linear(32, 32, bias=False) for _ in range(4)))
        in_forward: list[dict[str, int]] = []
        for layer in model.to(device):
            # Called with what is gathered, as FSDP's own hook comes after it.
            layer.register_forward_hook(lambda *_: in_forward.append(parts()))
            fully_shard(layer)
        fully_shard(model)
        output = model(torch.ones(1, 32, device=device))
        after_forward = parts()
        output.sum().backward()
        channel.send((in_forward, after_forward, parts(), max_memory_allocated()))
