"""Work functions that join a process group, one for each who claims to have one."""

from typing import Any

import torch
import torch.distributed as dist

import miniray.nccl
import stages.stage5_nccl_fsdp.nccl


def _reduce(channel: Any, nccl: Any) -> None:
    """Add up the ranks."""
    config = channel.recv()
    with nccl.process_group(config) as device:
        value = torch.tensor([float(config["rank"])], device=device)
        dist.all_reduce(value)
        channel.send(value.item())


def reduce_stage5_nccl_fsdp(channel: Any) -> None:
    """Be a rank of stage 5."""
    _reduce(channel, stages.stage5_nccl_fsdp.nccl)


def reduce_miniray(channel: Any) -> None:
    """Be a rank of miniray."""
    _reduce(channel, miniray.nccl)
