"""What each rank of `fsdp` does: a few layers, sharded, one thread, and so many steps.

As a program it is what torchrun starts: STEPS and a folder for its result.
"""

import os
import re
import sys
import time
from pathlib import Path

import torch
import torch._dynamo
import torch.distributed as dist
import torch.distributed.fsdp
from torch import nn

from miniray import Channel, process_group

WIDTH, LAYERS, BATCH = 256, 2, 16
WARM_UP = 5


def work(channel: Channel) -> None:
    """Train as told, and report the steps a second and the memory before, in MiB."""
    for order in channel:
        with process_group(order["config"]):
            channel.send(train(order["steps"]))


def train(steps: int) -> tuple[float, float]:
    """Return the steps a second of this rank, and its memory in MiB before the first."""
    torch.set_num_threads(1)
    dist.barrier()
    mebibytes = own_mebibytes()
    dist.barrier()
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
    for layer in model:
        torch.distributed.fsdp.fully_shard(layer)
    torch.distributed.fsdp.fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = torch.randn(BATCH, WIDTH)
    start = 0.0
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            dist.barrier()
            start = time.perf_counter()
        model(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    dist.barrier()
    return steps / (time.perf_counter() - start), mebibytes


def own_mebibytes() -> float:
    """Return this process's share of memory (PSS): what several have counts for each in part."""
    found = re.search(r"Pss:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text())
    return int(found[1]) / 1024 if found else 0.0


if __name__ == "__main__":
    dist.init_process_group("gloo")
    speed, mebibytes = train(int(sys.argv[1]))
    Path(sys.argv[2], os.environ["RANK"]).write_text(f"{speed} {mebibytes}")
    dist.barrier()
    os._exit(0)
