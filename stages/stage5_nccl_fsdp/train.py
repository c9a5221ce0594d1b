"""Train a small model of bytes with FSDP: one function, which every rank runs."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from .channel import Channel
from .nccl import memory_bytes, process_group

CONTEXT, WIDTH, LAYERS = 16, 128, 2
BYTES = 256


def work(channel: Channel) -> None:
    """Train once for each message."""
    for order in channel:
        train(channel, order)


def train(channel: Channel, order: dict[str, Any]) -> None:
    """Train as a rank of a process group, or alone on the batches of every rank.

    An order holds "config" (an NCCLConfig's dict, or None to train alone), "world_size", "steps"
    and "text" (uint8, any length). The replies are one {"loss", "memory"} a step, and at the end
    {"parameters"}: whole tensors from rank 0, None from the others.
    """
    if order["config"] is None:
        torch.set_num_threads(1)  # a forked process has none of the threads of its parent
        run(channel, order, make_model(), range(order["world_size"]), torch.device("cpu"))
        return
    rank = order["config"]["rank"]
    with process_group(order["config"]) as device:
        model = make_model().to(device)
        mesh = init_device_mesh(device.type, (order["world_size"],))
        for layer in model:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        run(channel, order, model, range(rank, rank + 1), device)


def run(
    channel: Channel, order: dict[str, Any], model: nn.Module, ranks: range, device: torch.device
) -> None:
    """Take the steps, and report each."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(order["steps"]):
        inputs, targets = make_batch(order["text"], step, ranks)
        loss = F.cross_entropy(model(inputs.to(device)), targets.to(device))
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
        optimizer.step()
        memory = memory_bytes(optimizer)
        optimizer.zero_grad()
        mean = loss.detach()
        if order["config"] is not None:
            dist.all_reduce(mean)  # every rank takes part, in the same order: else all hang
            mean = mean / order["world_size"]
        channel.send({"loss": mean.item(), "memory": memory})
    parameters = {
        name: parameter.full_tensor().cpu() if hasattr(parameter, "full_tensor") else parameter
        for name, parameter in model.named_parameters()
    }
    channel.send({"parameters": parameters if ranks.start == 0 else None})


def make_model() -> nn.Sequential:
    """Return a model that maps the last CONTEXT bytes, (batch, 16), to logits, (batch, 256)."""
    torch.manual_seed(0)  # every rank makes the same model, of which it then keeps a shard
    table, mix = nn.Embedding(BYTES, WIDTH), nn.Linear(CONTEXT * WIDTH, WIDTH)
    middle = [nn.Sequential(nn.GELU(), nn.Linear(WIDTH, WIDTH)) for _ in range(LAYERS)]
    return nn.Sequential(nn.Sequential(table, nn.Flatten(), mix), *middle, nn.Linear(WIDTH, BYTES))


def make_batch(text: Tensor, step: int, ranks: range, each: int = 32) -> tuple[Tensor, Tensor]:
    """Return inputs (32 * ranks, 16) and targets (32 * ranks,), int64: one rank's after another's.

    What a rank reads depends on the step and the rank alone, so that one process can read it all.
    """
    starts = [
        torch.randint(len(text) - CONTEXT, (each,), generator=torch.Generator().manual_seed(seed))
        for seed in (1000 * step + rank for rank in ranks)
    ]
    windows = torch.cat(starts)[:, None] + torch.arange(CONTEXT + 1)
    tokens = text[windows].long()
    return tokens[:, :-1], tokens[:, -1]
