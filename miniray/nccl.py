"""Ranks, devices, backend: a process group of torch.distributed, from its plan to its end."""

import contextlib
import os
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from miniray.fake_gpu import has_fake_gpus, limited_memory
from miniray.fake_gpu import memory_bytes as memory_bytes  # for whoever looks for it here
from miniray.rendezvous import NCCLConfig, environment, from_environment

if TYPE_CHECKING:
    import torch

__all__ = ["NCCLConfig", "choose_device", "create_nccl_configs", "process_group"]


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
    configs: list[NCCLConfig] = []
    for node_rank, (_, local_world_size) in enumerate(nodes):
        for local_rank in range(local_world_size):
            place = (len(configs), world_size, local_rank, local_world_size, node_rank)
            configs.append(NCCLConfig(master_addr, master_port, *place, backend))
    return configs


@contextlib.contextmanager
def process_group(config: NCCLConfig | dict[str, Any] | None = None) -> Iterator["torch.device"]:
    """Join the process group as one rank, yield its device, and leave the group at the end.

    Without a config the place is that of torchrun's variables, which `Cluster.run` sets as well.
    With fake GPUs (MINIRAY_FAKE_GPUS=1, or Cluster(fake_gpus=True)) the device is the CPU, the
    backend gloo, and training that needs more than MINIRAY_FAKE_GPU_MEMORY raises
    torch.OutOfMemoryError. Raises RuntimeError if there is neither a GPU for this rank nor a fake
    one. An exception that leaves the group gets two attributes, which tell the first culprit from
    the others: `failed_at`, the time, and `in_collective`, whether it is of torch.distributed's.

    >>> with process_group(config) as device:
    ...     torch.distributed.all_reduce(torch.ones(1, device=device))
    """
    import torch
    import torch.distributed as dist

    if not isinstance(config, NCCLConfig):
        config = from_environment() if config is None else NCCLConfig(**config)
    device = choose_device(config)
    with environment(config), contextlib.ExitStack() as undo:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        else:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
            threads = max(1, cores // config.local_world_size)
            torch.set_num_threads(min(threads, torch.get_num_threads()))
        try:
            dist.init_process_group(
                config.backend or ("nccl" if device.type == "cuda" else "gloo"),
                rank=config.rank,
                world_size=config.world_size,
                device_id=device if device.type == "cuda" else None,
            )
            undo.callback(dist.destroy_process_group)
            if has_fake_gpus():
                undo.enter_context(limited_memory(config.rank))
            yield device
        except BaseException as error:
            # Before the group is left: the other ranks' errors come after that.
            note_failure(error)
            raise


def choose_device(config: NCCLConfig) -> "torch.device":
    """Return this rank's device: of the GPUs that are visible here, the one of its local rank."""
    import torch

    if has_fake_gpus() or config.backend == "gloo":
        if config.backend == "nccl":
            raise RuntimeError('backend "nccl" needs real GPUs, and fake ones were asked for')
        return torch.device("cpu")
    count, visible = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if not count:
        raise RuntimeError(
            f"rank {config.rank} has no GPU: install CUDA's torch where there is one, or ask for "
            "fake GPUs with Cluster(fake_gpus=True) or MINIRAY_FAKE_GPUS=1"
        )
    # A scheduler may show each process its own GPU alone.
    index = 0 if count == 1 and visible is not None else config.local_rank
    if index >= count:
        raise RuntimeError(
            f"local rank {config.local_rank} has no GPU: {count} visible on this node "
            f"(CUDA_VISIBLE_DEVICES={visible}); lower num_workers"
        )
    return torch.device("cuda", index)


def note_failure(error: BaseException) -> None:
    """Note on an exception when it left the group, and whether a collective raised it."""
    *_, (innermost, _) = traceback.walk_tb(error.__traceback__)
    # A wrong argument or a lack of memory is a cause, and no other rank's fault.
    is_peers = isinstance(error, RuntimeError) and type(error).__name__ != "OutOfMemoryError"
    with contextlib.suppress(Exception):  # it may forbid this, and counts all the same
        where = f"{innermost.f_code.co_filename}: {error}".lower()
        of_torch = any(word in where for word in ("/torch/distributed/", "gloo", "nccl"))
        vars(error).update(failed_at=time.time(), in_collective=is_peers and of_torch)
