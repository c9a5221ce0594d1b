"""What every contestant of `recovery` does: train, save each step, go on from there after a kill.

As a program it is one of two things: `rank` is what torchrun starts; `node` forks ranks after one
import, anew for each port that it is told, which is the limit.
"""

import os
import signal
import sys
from pathlib import Path

import torch
import torch._dynamo
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter, load, save
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

from miniray import process_group

NODES, RANKS_PER_NODE = 2, 4
WIDTH, LAYERS, BATCH = 256, 2, 16
GROUP, STEP = "group", "step"


def work(folder: str) -> None:
    """Do it as one rank of a cluster."""
    with process_group():
        train(Path(folder))


def train(folder: Path) -> None:
    """Tell when the group works and when the first step is done; go on until there is `stop`."""
    torch.set_num_threads(1)
    dist.all_reduce(torch.ones(1))
    tell(folder, GROUP)
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
    for layer in model:
        fully_shard(layer)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    done = max((int(one.name[5:]) for one in folder.glob("done-*")), default=0)
    if done:
        weights, moments = get_state_dict(model, optimizer)
        state = {"model": weights, "optimizer": moments}
        load(state, storage_reader=FileSystemReader(folder / f"step-{done % 2}"))
        set_state_dict(
            model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
        )
    has_told, stop = False, torch.zeros(1)
    while not stop:
        model(torch.randn(BATCH, WIDTH)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if not has_told:
            tell(folder, STEP)
            has_told = True
        done += 1
        weights, moments = get_state_dict(model, optimizer)
        state = {"model": weights, "optimizer": moments}
        save(state, storage_writer=FileSystemWriter(folder / f"step-{done % 2}"))
        if dist.get_rank() == 0:  # now it is whole
            (folder / f"done-{done}").touch()
            stop.fill_((folder / "stop").exists())
        dist.broadcast(stop, 0)


def tell(folder: Path, event: str) -> None:
    """Say it to whoever measures, in one write."""
    told = os.open(folder / "told", os.O_WRONLY)
    os.write(told, f"{event} {dist.get_rank()} {os.getpid()}\n".encode())
    os.close(told)


def fork_anew(node_rank: int, folder: Path) -> None:
    """For each port that is told, kill this node's ranks and fork others."""
    children: list[int] = []
    for port in sys.stdin:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        for pid in children:
            os.waitpid(pid, 0)
        children.clear()
        for local_rank in range(RANKS_PER_NODE):
            pid = os.fork()
            if pid == 0:
                dist.init_process_group(
                    "gloo",
                    init_method=f"tcp://127.0.0.1:{int(port)}",
                    rank=node_rank * RANKS_PER_NODE + local_rank,
                    world_size=NODES * RANKS_PER_NODE,
                )
                train(folder)
                os._exit(0)
            children.append(pid)


if __name__ == "__main__":
    if sys.argv[1] == "node":
        fork_anew(int(sys.argv[2]), Path(sys.argv[3]))
    else:
        dist.init_process_group("gloo")
        train(Path(sys.argv[2]))
        dist.barrier()
        os._exit(0)
