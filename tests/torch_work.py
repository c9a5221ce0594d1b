"""Work functions of the tests that need torch."""

import os
import signal
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.torch_version import TorchVersion

from miniray import Channel, Worker, fake_gpu, process_group
from miniray.extras.pinned import PinnedMemory
from miniray.fake_gpu import max_memory_allocated, memory_bytes, memory_parts
from tests.support import ports

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


def tell_device(channel: Channel) -> None:
    """Sum the ranks over NCCL, or gloo; answer the sum and which GPU this rank has."""
    with process_group(channel.recv()) as device:
        number = torch.full((1,), float(dist.get_rank()), device=device)
        dist.all_reduce(number)
        gpu = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else "CPU"
        channel.send((number.item(), str(device), gpu))


def train_in_bf16(channel: Channel) -> None:
    """Train sharded, computing in bfloat16, reducing in float32; answer the losses and dtypes."""
    with process_group(channel.recv()) as device:
        torch.manual_seed(0)
        layers = [torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1)]
        model, batch = torch.nn.Sequential(*layers).to(device), torch.randn(32, 64).to(device)
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        for layer in (model[0], model[2], model):
            fully_shard(layer, mp_policy=policy)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        losses = []
        for _ in range(10):
            output = model(batch)
            loss = (output.float() - 1).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        kept = next(model.parameters()).dtype
        channel.send((losses, str(output.dtype), str(kept)))


def hold_on_device(channel: Channel) -> None:
    """Take two steps, and answer what is allocated after the first, the second and at most."""
    with process_group(channel.recv()) as device:
        memory = torch.cuda if device.type == "cuda" else fake_gpu
        before = memory.memory_allocated()
        model = torch.nn.Sequential(*(torch.nn.Linear(512, 512, bias=False) for _ in range(4)))
        model = model.to(device)
        optimizer, batch = torch.optim.AdamW(model.parameters()), torch.ones(256, 512).to(device)
        held = []
        for _ in range(2):
            output = model(batch)
            held.append(memory.memory_allocated() - before)
            output.sum().backward()
            del output
            held.append(memory.memory_allocated() - before)
            optimizer.step()
            optimizer.zero_grad()
            held.append(memory.memory_allocated() - before)
        channel.send((held, memory.max_memory_allocated() - before))


def hold_memory(channel: Channel) -> None:
    """Take so many bytes of GPU memory, say so, and keep them."""
    held = torch.empty(channel.recv(), dtype=torch.uint8, device="cuda")
    channel.send(held.nbytes)
    channel.recv()


def free_memory(channel: Channel) -> None:
    """Answer how many bytes of the GPU are free, whenever asked."""
    for _ in channel:
        channel.send(torch.cuda.mem_get_info()[0])


def send_from_gpu(channel: Channel) -> None:
    """Echo what comes by way of the GPU, or say why that cannot be sent without a copy."""
    memory = PinnedMemory()
    for message in channel:
        on_gpu = {name: tensor.to("cuda") for name, tensor in message.items()}
        try:
            channel.send(on_gpu)
        except TypeError as error:
            copy = memory.copy(on_gpu)
            are_pinned = all(one.is_pinned() for one in copy.values() if one.numel())
            channel.send((str(error), are_pinned, copy))


def fork_after_cuda(channel: Channel) -> None:
    """Use CUDA, and then try to start a worker; answer why that cannot be."""
    torch.ones(1, device="cuda")
    try:
        Worker(free_memory).close()
    except RuntimeError as error:
        channel.send(str(error))
    else:
        channel.send("it was forked")


def meet(rounds: int, torch_version: str = "") -> list[Any]:
    """Make groups in each way that there is; return what they sum up, and where a rank listens."""
    if torch_version:
        torch.__version__ = TorchVersion(torch_version)
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    ones, found = torch.ones(1), []
    for _ in range(rounds):
        with process_group():
            dist.all_reduce(ones)
            dist.barrier()
        for method in ("env://", f"tcp://{f'[{address}]' if ':' in address else address}:{port}"):
            place = {"rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}
            dist.init_process_group("gloo", init_method=method, **place)
            dist.all_reduce(ones)
            dist.destroy_process_group()
        found += ports.listening(port)
    return [ones.item(), sorted(set(found))]
