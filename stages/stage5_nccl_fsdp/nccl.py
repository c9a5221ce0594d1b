"""Ranks, rendezvous, backend and fake GPUs: what torch.distributed needs to know."""

import contextlib
import dataclasses
import fcntl
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SIOCGIFADDR = 0x8915


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
            world_size=len(places),
            local_rank=local_rank,
            local_world_size=num_workers,
            node_rank=node_rank,
            backend=backend,
        )
        for rank, (node_rank, local_rank, num_workers) in enumerate(places)
    ]


@contextlib.contextmanager
def process_group(config: NCCLConfig | dict[str, Any]) -> Iterator["torch.device"]:
    """Join the process group as one rank, yield its device, and leave the group at the end.

    With fake GPUs (MINIRAY_FAKE_GPUS=1, or Cluster(fake_gpus=True)) the device is the CPU and the
    backend gloo. Raises RuntimeError if there is neither a GPU for this rank nor a fake one.

    >>> with process_group(config) as device:
    ...     torch.distributed.all_reduce(torch.ones(1, device=device))
    """
    import torch
    import torch.distributed as dist

    config = NCCLConfig(**config) if isinstance(config, dict) else config
    device = _choose_device(config)
    os.environ.update(config.environment())
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        if interface := _interface_towards(config.master_addr):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        torch.set_num_threads(1)  # the ranks of a machine share its cores
    dist.init_process_group(
        config.backend or ("nccl" if device.type == "cuda" else "gloo"),
        rank=config.rank,
        world_size=config.world_size,
        device_id=device if device.type == "cuda" else None,
    )
    try:
        yield device
    finally:
        dist.destroy_process_group()


def has_fake_gpus() -> bool:
    """Return whether this process is to take the CPU for a GPU."""
    return os.environ.get("MINIRAY_FAKE_GPUS", "0") not in ("", "0")


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


def _choose_device(config: NCCLConfig) -> "torch.device":
    import torch

    if has_fake_gpus() or config.backend == "gloo":
        return torch.device("cpu")
    if config.local_rank >= torch.cuda.device_count():
        raise RuntimeError(
            f"rank {config.rank} has no GPU: {torch.cuda.device_count()} visible on this node; "
            "lower num_workers, or ask for fake GPUs with Cluster(fake_gpus=True)"
        )
    return torch.device("cuda", config.local_rank)


def _interface_towards(host: str) -> str | None:
    """Return the network interface whose address this machine uses to reach a host.

    Gloo would otherwise take the one that this machine's own name resolves to.
    """
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # sends nothing: it only looks the route up
        ours = socket.inet_aton(probe.getsockname()[0])
        for _, name in socket.if_nameindex():
            query = struct.pack("256s", name.encode()[:15])
            with contextlib.suppress(OSError):  # an interface without an IPv4 address
                # The address begins at byte 20 of the answer.
                if fcntl.ioctl(probe, SIOCGIFADDR, query)[20:24] == ours:
                    return name
    return None  # no route, or IPv6: gloo's own choice may still do
