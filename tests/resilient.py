"""Training that goes on from its last checkpoint, and is killed at some steps on its way."""

import os
import signal
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import load, save
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

from miniray import process_group


def train(folder: str, steps: int, kills: list[list[int]]) -> list[float]:
    """Train a small sharded model, with a checkpoint a step; return its parameters.

    Of `kills`, [step, rank], each happens once: a file says that it has.
    """
    path = Path(folder)
    with process_group() as device:
        torch.manual_seed(0)
        model = fully_shard(torch.nn.Linear(16, 16).to(device))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        done = [int(one.name.partition("-")[2]) for one in path.glob("done-*")]
        begin = max(done, default=0)
        if begin:
            _restore(model, optimizer, path / f"step-{begin}")
        for step in range(begin, steps):
            torch.manual_seed(step)
            batch = torch.randn(8, 16)[dist.get_rank() :: dist.get_world_size()].to(device)
            model(batch).square().mean().backward()
            if [step, dist.get_rank()] in kills and not (path / f"killed-{step}").exists():
                (path / f"killed-{step}").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            optimizer.step()
            optimizer.zero_grad()
            state = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
            save(state, checkpoint_id=path / f"step-{step + 1}")
            if dist.get_rank() == 0:  # now it is whole
                (path / f"done-{step + 1}").touch()
        whole = [one.full_tensor().flatten() for one in model.parameters()]
        return [float(number) for number in torch.cat(whole)]


def _restore(model: torch.nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> None:
    weights, moments = get_state_dict(model, optimizer)
    state = {"model": weights, "optimizer": moments}
    load(state, checkpoint_id=path)
    set_state_dict(
        model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
    )
