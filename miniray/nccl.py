"""Ranks, rendezvous, backend and fake GPUs: what torch.distributed needs to know."""

import contextlib
import dataclasses
import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

FAKE_GPU_MEMORY = "64MiB"
_UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclasses.dataclass(frozen=True)
class NCCLConfig:
    """One rank's place in a process group; `config.__dict__` can be sent as a message.

    `backend` is "nccl", "gloo" or None: then the rank takes gloo if its GPUs are fake, else nccl.
    """

    master_addr: str
    master_port: int
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int
    backend: str | None = None

    def environment(self) -> dict[str, str]:
        """Return the variables that torchrun would set for this rank."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_world_size),
            "GROUP_RANK": str(self.node_rank),
            "MASTER_ADDR": self.master_addr,
            "MASTER_PORT": str(self.master_port),
        }


def create_nccl_configs(
    master_addr: str,
    nodes: Sequence[tuple[str, int]],
    master_port: int = 29500,
    backend: str | None = None,
) -> list[NCCLConfig]:
    """Return one config a rank for nodes [(name, num_workers), ...], in rank order.

    Rank 0, on the first node, must be reachable at `master_addr`:`master_port` for all others.

    >>> configs = create_nccl_configs("192.168.1.10", nodes=[("node1", 4), ("node2", 4)])
    >>> configs[5].rank, configs[5].node_rank, configs[5].local_rank
    (5, 1, 1)
    """
    if backend not in (None, "nccl", "gloo"):
        raise ValueError(f'backend must be "nccl", "gloo" or None, got {backend!r}')
    if not nodes:
        raise ValueError("nodes is empty; name at least one: [('node1', 4)]")
    for name, num_workers in nodes:
        if num_workers < 1:
            raise ValueError(f"num_workers of {name} must be at least 1, got {num_workers}")
    world_size = sum(num_workers for _, num_workers in nodes)
    places = [
        (node_rank, local_rank, num_workers)
        for node_rank, (_, num_workers) in enumerate(nodes)
        for local_rank in range(num_workers)
    ]
    return [
        NCCLConfig(
            master_addr=master_addr,
            master_port=master_port,
            rank=rank,
            world_size=world_size,
            local_rank=local_rank,
            local_world_size=local_world_size,
            node_rank=node_rank,
            backend=backend,
        )
        for rank, (node_rank, local_rank, local_world_size) in enumerate(places)
    ]


@contextlib.contextmanager
def process_group(config: NCCLConfig | dict[str, Any]) -> Iterator["torch.device"]:
    """Join the process group as one rank, yield its device, and leave the group at the end.

    With fake GPUs (MINIRAY_FAKE_GPUS=1, or Cluster(fake_gpus=True)) the device is the CPU, the
    backend gloo, and an optimizer step that needs more than MINIRAY_FAKE_GPU_MEMORY raises
    torch.OutOfMemoryError. Raises RuntimeError if there is neither a GPU for this rank nor a fake
    one.

    >>> with process_group(config) as device:
    ...     torch.distributed.all_reduce(torch.ones(1, device=device))
    """
    import torch
    import torch.distributed as dist

    if isinstance(config, dict):
        config = NCCLConfig(**config)
    fake = has_fake_gpus()
    device = _choose_device(config, fake)
    backend = config.backend or ("gloo" if fake else "nccl")
    before = dict(os.environ)
    os.environ.update(config.environment())
    with contextlib.ExitStack() as undo:
        undo.callback(_restore_environment, before)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        else:
            if interface := _interface_towards(config.master_addr):
                os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
            torch.set_num_threads(max(1, cores // config.local_world_size))
        dist.init_process_group(
            backend,
            rank=config.rank,
            world_size=config.world_size,
            device_id=device if device.type == "cuda" else None,
        )
        undo.callback(dist.destroy_process_group)
        if fake:
            undo.callback(_guard_fake_memory(config.rank).remove)
        try:
            yield device
        except BaseException as error:
            # Before the group is left: the other ranks' errors come after that.
            error.failed_at = time.time()  # type: ignore[attr-defined]  # an exception has a dict
            raise


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
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    states = [value for one in optimizer.state.values() for value in one.values()]
    return {
        "parameters": sum(map(_local_bytes, parameters)),
        "gradients": sum(_local_bytes(one.grad) for one in parameters if one.grad is not None),
        "optimizer": sum(_local_bytes(value) for value in states if hasattr(value, "numel")),
    }


def _local_bytes(tensor: Any) -> int:
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return int(local.numel() * local.element_size())


def _guard_fake_memory(rank: int) -> Any:
    """Check what a fake GPU holds before and after each optimizer step, as a real one would."""
    from torch import OutOfMemoryError
    from torch.optim.optimizer import register_optimizer_step_post_hook

    limit = fake_gpu_memory_bytes()

    def check(optimizer: "torch.optim.Optimizer", *_: Any) -> None:
        held = memory_bytes(optimizer)
        if sum(held.values()) > limit:
            parts = " + ".join(f"{name} {count / 2**20:.1f} MiB" for name, count in held.items())
            raise OutOfMemoryError(
                f"fake GPU of rank {rank} is out of memory: {parts} = "
                f"{sum(held.values()) / 2**20:.1f} MiB of {limit / 2**20:.1f} MiB; "
                "shard over more ranks, or raise MINIRAY_FAKE_GPU_MEMORY"
            )

    return register_optimizer_step_post_hook(check)


def _choose_device(config: NCCLConfig, fake: bool) -> "torch.device":
    import torch

    if fake or config.backend == "gloo":
        if config.backend == "nccl":
            raise RuntimeError('backend "nccl" needs real GPUs, and fake ones were asked for')
        return torch.device("cpu")
    visible = torch.cuda.device_count()
    if not visible:
        raise RuntimeError(
            f"rank {config.rank} has no GPU: install CUDA's torch where there is one, or ask for "
            "fake GPUs with Cluster(fake_gpus=True) or MINIRAY_FAKE_GPUS=1"
        )
    if config.local_rank >= visible:
        raise RuntimeError(
            f"local rank {config.local_rank} has no GPU: {visible} visible on this node "
            f"(CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')}); lower num_workers"
        )
    return torch.device("cuda", config.local_rank)


def _restore_environment(before: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(before)


def _interface_towards(host: str) -> str | None:
    """Return the network interface whose address this machine uses to reach a host.

    Gloo would otherwise take the one that this machine's own name resolves to.
    """
    import fcntl
    import struct

    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # sends nothing: it only looks the route up
            ours = socket.inet_aton(probe.getsockname()[0])
            for _, name in socket.if_nameindex():
                query = struct.pack("256s", name.encode()[:15])
                with contextlib.suppress(OSError):  # an interface without an IPv4 address
                    # 0x8915 is SIOCGIFADDR; the address begins at byte 20 of the answer.
                    if fcntl.ioctl(probe.fileno(), 0x8915, query)[20:24] == ours:
                        return name
    except OSError:  # no IPv4 route there: gloo's own choice may still do
        return None
    return None
