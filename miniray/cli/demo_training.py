"""The demo's training: a byte-level GPT, sharded with FSDP2 over the ranks or whole in one process.

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
from miniray.cli.demo_settings import RECENT, VOCABULARY, Settings
from miniray.nccl import has_fake_gpus, memory_bytes, process_group


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
    torch.set_num_threads(os.cpu_count() or 1)  # the other ranks wait meanwhile
    model = make_model(settings).to(device)
    batches = make_batches(settings, dict(enumerate(slices)), device)
    run_steps(channel, settings, model, batches)
    channel.send({"kind": "done"})


def run_steps(
    channel: Channel, settings: Settings, model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]
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


class GPT(nn.Module):
    """A small decoder-only transformer over bytes."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        width = settings.width
        self.context = settings.context
        # One table for the latest byte, one for the byte before it, and so on: a model that
        # trains for a minute has no time to find out by attention how words are spelled.
        self.recent = nn.Embedding(RECENT * VOCABULARY, width)
        self.position = nn.Embedding(settings.context, width)
        self.blocks = nn.ModuleList(Block(width, settings.heads) for _ in range(settings.blocks))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.4)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the next byte's logits: int64 (batch, length) -> (batch, length, 256)."""
        length = tokens.shape[1]
        x = self.position.weight[:length]
        for back in range(RECENT):
            shifted = F.pad(tokens, (back, 0))[:, :length]
            x = x + self.recent(shifted + back * VOCABULARY)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


class Block(nn.Module):
    """Attention to earlier positions, then a two-layer network at each position by itself."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.RMSNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.network_norm = nn.RMSNorm(width)
        self.network_in = nn.Linear(width, 4 * width, bias=False)
        self.network_out = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, length, width) to the same shape."""
        batch, length, width = x.shape
        joint = self.query_key_value(self.attention_norm(x)).view(batch, length, 3, self.heads, -1)
        query, key, value = joint.permute(2, 0, 3, 1, 4)  # each (batch, heads, length, -1)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.attention_out(mixed.transpose(1, 2).reshape(batch, length, width))
        y: Tensor = x + self.network_out(F.gelu(self.network_in(self.network_norm(x))))
        return y


def make_model(settings: Settings) -> GPT:
    """Return the untrained model; the same seed gives the same numbers on every rank."""
    torch.manual_seed(settings.seed)
    return GPT(settings)


def gathered_bytes_max(model: nn.Module) -> int:
    """Return the most that FSDP gathers at once, beyond the shards: an upper bound, in bytes.

    The root's own parameters stay whole from forward to backward. In backward one block is in
    use, with its whole gradients, while the next one is already being gathered.
    """
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if not units:
        return 0
    whole = {
        module: sum(p.numel() * p.element_size() for p in _parameters(module)) for module in units
    }
    blocks = [whole[module] for module in units if module is not model]
    return whole[model] - sum(blocks) + 3 * max(blocks)


def _parameters(module: Any) -> Iterator[Tensor]:
    parameters: Iterator[Tensor] = module.parameters()
    return parameters


def gather_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter whole, on the CPU; all ranks have to call it together."""
    return {
        name: parameter.full_tensor().detach().cpu()
        if isinstance(parameter, DTensor)
        else parameter
        for name, parameter in model.named_parameters()
    }


def generate(settings: Settings, parameters: dict[str, Tensor]) -> bytes:
    """Return what the trained model writes after a new line."""
    model = make_model(settings)
    model.load_state_dict(parameters)
    generator = torch.Generator().manual_seed(settings.seed)
    text = list(b"\n")
    with torch.no_grad():
        for _ in range(settings.sample_bytes):
            logits = model(torch.tensor([text[-settings.context :]]))[0, -1]
            chances = (logits / settings.temperature).softmax(0)
            text.append(int(torch.multinomial(chances, 1, generator=generator)))
    return bytes(text)
