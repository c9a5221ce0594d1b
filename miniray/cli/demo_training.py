"""The demo's training: sharded with FSDP2 over the ranks, or whole in one process.

This half of the demo runs on the workers. Every node's server imports it once and then forks, so
the imports cost a worker nothing, and importing makes no tensor and starts no thread.
"""

import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from miniray.channel import Channel
from miniray.cli.demo_model import GPT, make_model
from miniray.cli.demo_settings import Settings
from miniray.fake_gpu import has_fake_gpus, memory_bytes
from miniray.nccl import process_group


def train(channel: Channel) -> None:
    """Train once for every message, as one rank of a process group or, without one, alone.

    A message holds `settings`, `config` (an NCCLConfig as a dict, or None to train alone) and
    `slices` (the text of this rank; alone, that of every rank). The replies are one "joined", one
    "step" a step and one "done"; or one "out of memory".
    """
    for message in channel:
        settings = Settings(**message["settings"])
        try:
            if message["config"] is None:
                train_alone(channel, settings, message["slices"])
            else:
                train_sharded(channel, settings, message["slices"], message["config"])
        except torch.OutOfMemoryError as error:
            channel.send({"kind": "out of memory", "error": str(error)})


def train_sharded(
    channel: Channel, settings: Settings, slices: list[bytes], config: dict[str, Any]
) -> None:
    """Train as one rank: this rank's batch, and a shard of every parameter."""
    rank = config["rank"]
    with process_group(config) as device:
        channel.send(
            {
                "kind": "joined",
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "device": str(device),
            }
        )
        model = make_model(settings).to(device)
        mesh = init_device_mesh(device.type, (config["world_size"],))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        batches = make_batches(settings, {rank: slices[0]}, device)
        run_steps(channel, settings, model, batches)
        whole = gather_parameters(
            model
        )  # every rank takes part, though only rank 0 has a use for it
    done: dict[str, Any] = {"kind": "done"}
    if rank == 0:
        done["sample"] = generate(settings, whole)
    channel.send(done)


def train_alone(channel: Channel, settings: Settings, slices: list[bytes]) -> None:
    """Train the same model on the same batches in this one process: what sharding has to equal."""
    on_gpu = torch.cuda.is_available() and not has_fake_gpus()
    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    torch.set_num_threads(1)  # two that wait for each other are slower than one on a busy machine
    model = make_model(settings).to(device)
    batches = make_batches(settings, dict(enumerate(slices)), device)
    run_steps(channel, settings, model, batches)
    channel.send({"kind": "done"})


def run_steps(
    channel: Channel, settings: Settings, model: GPT, batches: Iterator[tuple[Tensor, Tensor]]
) -> None:
    """Train, and report every step's loss and what this rank holds in memory."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _learning_rate(settings))
    gathered = gathered_bytes_max(model)
    for step in range(settings.steps):
        began = time.monotonic()
        inputs, targets = next(batches)
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
        optimizer.step()
        memory = memory_bytes(optimizer)
        optimizer.zero_grad()
        schedule.step()
        channel.send(
            {
                "kind": "step",
                "step": step,
                "loss": loss.item(),
                "seconds": time.monotonic() - began,
                "memory": memory,
                "gathered": gathered,
            }
        )


def _learning_rate(settings: Settings) -> Callable[[int], float]:
    """Return the factor for each step: up during the warm-up, then down to a tenth."""

    def factor(step: int) -> float:
        up = (step + 1) / settings.warmup_steps
        down = 1 - 0.9 * step / settings.steps
        return min(up, down)

    return factor


def make_batches(
    settings: Settings, slices: dict[int, bytes], device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (inputs, targets) a step: int64 (sequences, context), one rank's after the other's.

    What a rank reads depends on the seed, the step and the rank alone. So a process that holds
    every rank's slice gets exactly what the ranks get together.
    """
    texts = {
        rank: torch.frombuffer(bytearray(text), dtype=torch.uint8) for rank, text in slices.items()
    }
    for step in range(settings.steps):
        windows = []
        for rank, text in texts.items():
            seed = (settings.seed * settings.steps + step) * settings.ranks + rank
            generator = torch.Generator().manual_seed(seed)
            last = len(text) - settings.context - 1
            starts = torch.randint(last, (settings.sequences_per_rank,), generator=generator)
            windows += [text[start : start + settings.context + 1] for start in starts.tolist()]
        tokens = torch.stack(windows).to(device, torch.int64)
        yield tokens[:, :-1], tokens[:, 1:]


def gathered_bytes_max(model: GPT) -> int:
    """Return the most that FSDP gathers at once, beyond the shards: an upper bound, in bytes.

    The root's own parameters stay whole from forward to backward. In backward one block is in
    use, with its whole gradients, while the next one is already being gathered.
    """
    if not isinstance(model, FSDPModule):
        return 0
    blocks = [_whole_bytes(block) for block in model.blocks]
    return _whole_bytes(model) - sum(blocks) + 3 * max(blocks)


def _whole_bytes(module: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def gather_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter whole, on the CPU; all ranks have to call it together."""
    return {
        name: parameter.full_tensor().detach().cpu()
        if isinstance(parameter, DTensor)
        else parameter
        for name, parameter in model.named_parameters()
    }


def generate(settings: Settings, parameters: dict[str, Tensor]) -> bytes:
    """Return how the trained model continues the settings' prompt."""
    model = make_model(settings)
    model.load_state_dict(parameters)
    generator = torch.Generator().manual_seed(settings.seed)
    text = list(settings.prompt.encode())
    with torch.no_grad():
        for _ in range(settings.sample_bytes):
            logits = model(torch.tensor([text[-settings.context :]]))[0, -1]
            chances = (logits / settings.temperature).softmax(0)
            text.append(int(torch.multinomial(chances, 1, generator=generator)))
    return bytes(text)
