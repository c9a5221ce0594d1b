"""Train a small transformer with FSDP2 over one side of a mesh, tensor parallelism over the other.

torchrun --nproc-per-node 4 fsdp_tensor.py
miniray run --local 2x2 fsdp_tensor.py --tensor 2

The order is torchtitan's: first each block is split over "tensor", then what each rank has of it
is sharded over "data".
"""

import argparse
import os

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

WORDS, WIDTH, HEADS, LAYERS, CONTEXT = 96, 64, 4, 2, 24


class Block(nn.Module):
    """Attention and a gated layer; how many heads there are here is read off the projections."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.w1, self.w3 = (nn.Linear(WIDTH, 3 * WIDTH, bias=False) for _ in range(2))
        self.w2 = nn.Linear(3 * WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, time, WIDTH) to the same."""
        normed = self.norm1(x)
        query, key, value = (
            project(normed).unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2)
            for project in (self.wq, self.wk, self.wv)
        )
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.wo(seen.transpose(1, 2).flatten(2))
        normed = self.norm2(x)
        return x + self.w2(F.silu(self.w1(normed)) * self.w3(normed))


PLAN = {
    **dict.fromkeys(("wq", "wk", "wv", "w1", "w3"), ColwiseParallel()),
    **dict.fromkeys(("wo", "w2"), RowwiseParallel()),
}


class Transformer(nn.Module):
    """Words in, logits of the next word out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map (batch, time) to (batch, time, WORDS)."""
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--tensor", type=int, default=2, help="ranks that share each layer")
    parser.add_argument("--batch-size", type=int, default=8)
    options = parser.parse_args()

    has_gpu = torch.cuda.is_available()
    kind = "cuda" if has_gpu else "cpu"
    if has_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if has_gpu else "gloo")
    size = dist.get_world_size()
    mesh = init_device_mesh(
        kind, (size // options.tensor, options.tensor), mesh_dim_names=("data", "tensor")
    )

    torch.manual_seed(42)
    model = Transformer().to(kind)
    for layer in model.layers:
        parallelize_module(layer, mesh["tensor"], PLAN)
        fully_shard(layer, mesh=mesh["data"])
    fully_shard(model, mesh=mesh["data"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    # The ranks of one tensor group read the same; each data rank reads something else.
    generator = torch.Generator().manual_seed(mesh["data"].get_local_rank())
    for step in range(1, options.steps + 1):
        begins = torch.randint(WORDS, (options.batch_size, 1), generator=generator)
        tokens = ((begins + 7 * torch.arange(CONTEXT + 1)) % WORDS).to(kind)
        logits = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach().clone()
        dist.all_reduce(mean, group=mesh["data"].get_group())
        if dist.get_rank() == 0:
            print(f"step {step} loss {mean.item() / mesh['data'].size():.6f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
