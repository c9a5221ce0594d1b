"""Learn to tell two spirals apart, with Hugging Face's accelerate.

torchrun --nproc-per-node 4 accelerate_points.py
miniray run --local 2x2 accelerate_points.py
"""

import argparse
import math

import torch
import torch.nn as nn
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader, TensorDataset


def make_spirals(count: int) -> TensorDataset:
    """Return points (count, 2), half of them on either spiral, and which it is (count,)."""
    generator = torch.Generator().manual_seed(7)
    labels = torch.arange(count) % 2
    distance = torch.rand(count, generator=generator)
    angle = 3 * math.pi * distance + labels * math.pi
    points = torch.stack([distance * angle.cos(), distance * angle.sin()], dim=1)
    return TensorDataset(points + 0.02 * torch.randn(count, 2, generator=generator), labels)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()

    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    set_seed(11)
    model: nn.Module = nn.Sequential(
        nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loader = DataLoader(make_spirals(1024), batch_size=32, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    for epoch in range(1, options.epochs + 1):
        losses, hits = [], []
        for points, labels in loader:
            logits = model(points)
            loss = nn.functional.cross_entropy(logits, labels)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
            hits.append((logits.argmax(1) == labels).float().mean())
        # (2,) of every rank, one after the other.
        figures = torch.stack([torch.stack(losses).mean(), torch.stack(hits).mean()])
        loss, hit = accelerator.gather(figures).view(-1, 2).mean(0).tolist()
        accelerator.print(f"step {epoch} loss {loss:.6f} right {hit:.3f}")
    # The model goes first, as in ddp_gpt.py, and for the same reason.
    model, optimizer, loader = accelerator.free_memory(model, optimizer, loader)
    accelerator.end_training()


if __name__ == "__main__":
    main()
