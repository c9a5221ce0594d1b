"""Train a small network that is cut twice: into pipeline stages, and each layer over two ranks.

torchrun --nproc-per-node 4 pipeline_tensor.py
miniray run --local 2x2 pipeline_tensor.py

Rank r is in stage r // 2; the two ranks of a stage share each of its layers. What goes from stage
to stage is whole: a layer is split by columns, the next one by rows, and their product is summed.
"""

import argparse
import os

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

WIDTH, TENSOR_RANKS = 32, 2


class Layer(nn.Module):
    """Two matrices with a nonlinearity in between, beside which the input passes."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, WIDTH) to the same."""
        return x + self.down(torch.relu(self.up(x)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--micro-batches", type=int, default=4)
    options = parser.parse_args()

    has_gpu = torch.cuda.is_available()
    kind = "cuda" if has_gpu else "cpu"
    if has_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if has_gpu else "gloo")
    stages = dist.get_world_size() // TENSOR_RANKS
    mesh = init_device_mesh(kind, (stages, TENSOR_RANKS), mesh_dim_names=("pipeline", "tensor"))
    stage_rank = mesh["pipeline"].get_local_rank()
    device = torch.device(kind, torch.cuda.current_device()) if has_gpu else torch.device("cpu")

    # Each stage has two layers of its own, the same on the ranks that share them.
    torch.manual_seed(100 + stage_rank)
    part = nn.Sequential(Layer(), Layer()).to(device)
    for layer in part:
        parallelize_module(
            layer, mesh["tensor"], {"up": ColwiseParallel(), "down": RowwiseParallel()}
        )
    stage = PipelineStage(part, stage_rank, stages, device, group=mesh["pipeline"].get_group())
    schedule = ScheduleGPipe(stage, options.micro_batches, loss_fn=nn.functional.mse_loss)
    optimizer = torch.optim.AdamW(part.parameters(), lr=1e-2)

    # Every rank makes the same data, and uses of it what its stage needs.
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(options.batch_size, WIDTH, generator=generator).to(device)
    targets = inputs.roll(1, dims=1).sin()
    for step in range(1, options.steps + 1):
        losses: list[torch.Tensor] = []
        if stage.is_first and stage.is_last:
            schedule.step(inputs, target=targets, losses=losses)
        elif stage.is_first:
            schedule.step(inputs)
        elif stage.is_last:
            schedule.step(target=targets, losses=losses)
        else:
            schedule.step()
        optimizer.step()
        optimizer.zero_grad()
        if losses and mesh["tensor"].get_local_rank() == 0:
            print(f"step {step} loss {torch.stack(losses).mean().item():.6f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
