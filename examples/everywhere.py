"""One work function and one coordinator, whoever starts the ranks.

    python examples/everywhere.py --local 2
    python examples/everywhere.py --ray 2
    torchrun --nproc-per-node 2 -m miniray run-rank everywhere:work --coordinator everywhere:main
    srun --ntasks 16 miniray run-rank everywhere:work --coordinator everywhere:main

The last two are started in the folder of this file, and in a pod of Kubernetes it is the same as
under srun. On a machine without GPUs set MINIRAY_FAKE_GPUS=1.
"""

import argparse
import os
import sys
from typing import Any

import torch
from torch import nn

from miniray import Channel, Cluster, NodeConfig, process_group
from miniray.errors import MiniRayError

REPLY_S = 120.0


def work(channel: Channel) -> None:
    """Be one rank: train on each batch that comes, and answer with its loss."""
    with process_group(channel.recv()) as device:
        torch.manual_seed(0)
        model = nn.parallel.DistributedDataParallel(nn.Linear(8, 1).to(device))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for batch in channel:
            inputs = batch["inputs"].to(device)
            loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            channel.send(loss.item())


def main(cluster: Any, steps: int = 3) -> None:
    """Be the coordinator of ranks that are there: a Cluster's, a RayCluster's, or torchrun's."""
    for worker, config in zip(cluster.workers, cluster.nccl_configs(), strict=True):
        worker.send(config.__dict__)
    generator = torch.Generator().manual_seed(0)
    for step in range(1, steps + 1):
        for worker in cluster.workers:
            worker.send({"inputs": torch.randn(16, 8, generator=generator)})
        losses = [worker.recv(REPLY_S) for worker in cluster.workers]
        print(f"step {step}: mean loss {sum(losses) / len(losses):.4f}", flush=True)


def start(options: argparse.Namespace) -> Any:
    """Return a cluster, on this machine or on Ray, that is about to be started."""
    fake = os.environ.get("MINIRAY_FAKE_GPUS") == "1"
    if options.ray:
        from miniray.extras.ray_cluster import RayCluster

        return RayCluster([NodeConfig("ray", options.ray)], fake_gpus=fake)
    return Cluster([NodeConfig.local(options.local)], fake_gpus=fake)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--local", type=int, default=2, metavar="N", help="N ranks here")
    parser.add_argument("--ray", type=int, metavar="N", help="N ranks on Ray")
    try:
        with start(parser.parse_args()) as cluster:
            cluster.start(work)
            main(cluster)
    except (MiniRayError, OSError, ValueError) as error:
        sys.exit(f"training failed: {error}")
