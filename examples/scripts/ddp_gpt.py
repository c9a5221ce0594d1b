"""Train a small character-level GPT with DistributedDataParallel.

torchrun --nproc-per-node 4 ddp_gpt.py
miniray run --local 2x2 ddp_gpt.py --steps 50
miniray run --local 2x2 --restarts 3 ddp_gpt.py --steps 50 --checkpoint run.pt

With a checkpoint it goes on where it was. Rank 0 keeps the file, and its word is for all: nobody
else has to see it.
"""

import argparse
import contextlib
import os

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

TEXT = (
    "A worker says hello, and a worker says goodbye.\n"
    "In between it waits for a message, does what it says, and answers.\n"
    "A rank that leaves early leaves the others alone in a collective.\n"
) * 40
CHARACTERS = sorted(set(TEXT))


class Block(nn.Module):
    """Attention to what came before, then a layer for each position alone."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, time, width) to the same."""
        batch, time, width = x.shape
        parts = self.qkv(self.norm1(x)).view(batch, time, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, time, width))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """Characters in, logits of the next character out."""

    def __init__(self, context: int, width: int = 64, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.token = nn.Embedding(len(CHARACTERS), width)
        nn.init.normal_(self.token.weight, std=0.02)
        self.position = nn.Parameter(0.02 * torch.randn(context, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map (batch, time) to (batch, time, characters); the embedding is used both ways."""
        x = self.blocks(self.token(tokens) + self.position[: tokens.shape[1]])
        return self.norm(x) @ self.token.weight.T


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=8, help="sequences a rank and micro-step")
    parser.add_argument("--accumulate", type=int, default=2, help="micro-steps a step")
    parser.add_argument("--context", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--checkpoint", help="write it after each step, and begin with it")
    options = parser.parse_args()

    has_gpu = torch.cuda.is_available()
    dist.init_process_group("nccl" if has_gpu else "gloo")
    rank = dist.get_rank()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if has_gpu else torch.device("cpu")
    if has_gpu:
        torch.cuda.set_device(device)

    torch.manual_seed(1337)  # DDP would copy rank 0's parameters to all anyway
    model = DistributedDataParallel(
        GPT(options.context).to(device), device_ids=[device.index] if has_gpu else None
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)
    data = torch.tensor([CHARACTERS.index(character) for character in TEXT])
    generator = torch.Generator().manual_seed(rank)  # every rank reads elsewhere

    def draw() -> torch.Tensor:
        size = (options.batch_size,)
        return torch.randint(len(data) - options.context, size, generator=generator)

    done, saved = 0, None
    if rank == 0 and options.checkpoint and os.path.exists(options.checkpoint):
        saved = torch.load(options.checkpoint, map_location="cpu")
    # If each looked for itself, those who share no disk would begin at different steps, and wait
    # for each other for ever.
    everybodys = [saved]
    dist.broadcast_object_list(everybodys, src=0)
    if (saved := everybodys[0]) is not None:
        model.module.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        done = saved["steps"]
        for _ in range(done * options.accumulate):
            draw()  # what has been read is not read again
        # DDP packs its buckets anew after the first pass, and from then on adds in another order.
        # A pass for nothing, and a run that is resumed does not differ in the last bits.
        model(data[None, : options.context].to(device)).sum().backward()
        optimizer.zero_grad(set_to_none=True)

    for step in range(done + 1, options.steps + 1):
        total = torch.zeros((), device=device)
        for micro in range(options.accumulate):
            begins = draw()
            windows = torch.stack([data[at : at + options.context + 1] for at in begins])
            inputs, targets = windows[:, :-1].to(device), windows[:, 1:].to(device)
            is_last = micro == options.accumulate - 1
            # Gradients are exchanged once a step, in the last backward pass.
            with contextlib.nullcontext() if is_last else model.no_sync():
                logits = model(inputs)
                loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
                (loss / options.accumulate).backward()
            total += loss.detach() / options.accumulate
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        dist.all_reduce(total)
        if rank == 0:
            print(f"step {step} loss {total.item() / dist.get_world_size():.6f}")
            if options.checkpoint:  # the others cannot get further than one step meanwhile
                parts = {"model": model.module.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save({**parts, "steps": step}, f"{options.checkpoint}.new")
                os.replace(f"{options.checkpoint}.new", options.checkpoint)  # whole, or not at all
    # Before the group: if DDP's reducer were the last to hold it, it would wait for gloo's threads
    # while it holds Python's lock, which one of them may be waiting for.
    del model
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
