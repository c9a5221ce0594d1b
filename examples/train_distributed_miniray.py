"""Train with FSDP2 on fake or real GPUs, with checkpoints that any number of ranks can resume.

The same `train_steps` runs in three ways:

    python examples/train_distributed_miniray.py --local 2x2 --fake-gpus
    python examples/train_distributed_miniray.py --hosts node1,node2 --workers-per-node 4
    torchrun --nproc-per-node 4 examples/train_distributed_miniray.py --fake-gpus

Run it again, with more --steps and any number of ranks, and it goes on from the latest checkpoint.
On several hosts the checkpoint directory has to be one that all of them share.
"""

import argparse
import dataclasses
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from miniray import Channel, Cluster, NCCLConfig, NodeConfig, process_group
from miniray.errors import MiniRayError

REPLY_S = 300.0
WIDTH = 64
CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Options:
    """What every rank needs to know."""

    steps: int
    save_every: int
    batch: int
    checkpoints: str


# --- one rank: this is what you replace by your own training ------------------------------------


def train_steps(options: Options, device: torch.device) -> Iterator[dict[str, Any]]:
    """Train as one rank of the process group; yield what happens."""
    torch.manual_seed(0)  # every rank makes the same model, of which it then keeps a shard
    model = make_model().to(device)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    first_step = load_checkpoint(options.checkpoints, model, optimizer)
    if first_step:
        yield {"event": f"loaded step {first_step}", "sha256": hash_parameters(model)}
    for step in range(first_step + 1, options.steps + 1):
        inputs, labels = make_batch(step, dist.get_rank(), options.batch, device)
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach()
        dist.all_reduce(mean)  # the mean over all ranks, for the report alone
        yield {"event": f"step {step}", "loss": mean.item() / dist.get_world_size()}
        if step % options.save_every == 0 or step == options.steps:
            save_checkpoint(options.checkpoints, step, model, optimizer)
            yield {"event": f"saved step {step}", "sha256": hash_parameters(model)}


def make_model() -> nn.Sequential:
    """Return a small classifier."""
    layers = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(3)]
    return nn.Sequential(*layers, nn.Linear(WIDTH, CLASSES))


def make_batch(
    step: int, rank: int, batch: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs (batch, 64) and the labels (batch,) that a fixed random teacher gives them."""
    teacher = torch.randn(WIDTH, CLASSES, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1_000_003 * step + rank)
    inputs = torch.randn(batch, WIDTH, generator=generator)
    return inputs.to(device), (inputs @ teacher).argmax(1).to(device)


def save_checkpoint(
    folder: str, step: int, model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Write every rank's shards; a checkpoint is there as a whole or not at all."""
    final = Path(folder, f"step-{step:06}")
    draft = Path(folder, f"step-{step:06}.partial")
    if dist.get_rank() == 0:
        for old in (draft, final):  # of a run that was cut off, or of one that got further
            shutil.rmtree(old, ignore_errors=True)
        draft.mkdir(parents=True)
    dist.barrier()
    parameters, state = get_state_dict(model, optimizer)
    dcp.save({"model": parameters, "optimizer": state}, checkpoint_id=draft)
    if dist.get_rank() == 0:
        draft.rename(final)
        marker = Path(folder, "latest.partial")
        marker.write_text(final.name + "\n")
        marker.replace(Path(folder, "latest"))
    dist.barrier()


def load_checkpoint(folder: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load the latest checkpoint, if there is one; return its step, else 0.

    Each rank reads what belongs to its own shard, however many ranks there were when it was saved.
    """
    marker = Path(folder, "latest")
    if not marker.exists():
        return 0
    name = marker.read_text().strip()
    parameters, state = get_state_dict(model, optimizer)
    everything = {"model": parameters, "optimizer": state}
    dcp.load(everything, checkpoint_id=Path(folder, name))
    set_state_dict(
        model, optimizer, model_state_dict=parameters, optim_state_dict=everything["optimizer"]
    )
    return int(name.removeprefix("step-"))


def hash_parameters(model: nn.Module) -> str:
    """Return the SHA-256 of all parameters, whole; all ranks have to call it together."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        whole = parameter.full_tensor().detach().cpu().contiguous()
        digest.update(name.encode() + whole.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# --- three ways to run it -----------------------------------------------------------------------


def train(channel: Channel) -> None:
    """Be one rank of a cluster: MiniRay's work function."""
    config = channel.recv()
    options = Options(**channel.recv())
    with process_group(config) as device:
        channel.send({"event": "joined", "pid": os.getpid()})
        for report in train_steps(options, device):
            if config["rank"] == 0:  # all say the same, and the coordinator reads one
                channel.send(report)


def run_cluster(nodes: list[NodeConfig], options: Options, *, fake_gpus: bool) -> None:
    """Start every rank, and print what rank 0 reports."""
    with Cluster(nodes, fake_gpus=fake_gpus, start_timeout=60.0) as cluster:
        workers = cluster.start("train_distributed_miniray.train")
        for worker, config in zip(workers, cluster.nccl_configs(), strict=True):
            worker.send(config.__dict__)
            worker.send(dataclasses.asdict(options))
        joined = [worker.recv(REPLY_S) for worker in workers]
        print(f"{len(workers)} ranks, pids {' '.join(str(one['pid']) for one in joined)}")
        # No deadline, for a step may take any time. But whichever rank dies, that is raised here.
        for report in workers[0]:
            print_report(report)


def run_torchrun(options: Options) -> None:
    """Be one rank under torchrun, which has set the environment."""
    config = NCCLConfig(
        master_addr=os.environ["MASTER_ADDR"],
        master_port=int(os.environ["MASTER_PORT"]),
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        local_rank=int(os.environ["LOCAL_RANK"]),
        local_world_size=int(os.environ["LOCAL_WORLD_SIZE"]),
        node_rank=int(os.environ["GROUP_RANK"]),
    )
    with process_group(config) as device:
        for report in train_steps(options, device):
            if config.rank == 0:
                print_report(report)


def print_report(report: dict[str, Any]) -> None:
    """Print one report as a line."""
    details = [f"loss {report['loss']:.6f}"] if "loss" in report else []
    details += [f"sha256 {report['sha256']}"] if "sha256" in report else []
    print(report["event"], *details, flush=True)


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--local", default="2x2", metavar="NODESxWORKERS", help="(%(default)s)")
    where.add_argument("--hosts", metavar="A,B", help="where to run, over ssh")
    parser.add_argument("--workers-per-node", type=int, default=4, metavar="N")
    parser.add_argument("--fake-gpus", action="store_true", help="gloo on the CPU")
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="in all (%(default)s)")
    parser.add_argument("--save-every", type=int, default=10, metavar="N")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="per rank")
    parser.add_argument("--checkpoints", default="checkpoints", metavar="DIR")
    asked = parser.parse_args()
    folder = os.path.abspath(asked.checkpoints)  # a node's directory may be another one
    options = Options(asked.steps, asked.save_every, asked.batch, folder)

    if "RANK" in os.environ:
        if asked.fake_gpus:
            os.environ["MINIRAY_FAKE_GPUS"] = "1"
        run_torchrun(options)
        # All is done and printed. Torch's own threads now and then abort the interpreter's
        # shutdown ("terminate called ..."), so leave as MiniRay's workers do.
        os._exit(0)
    if asked.hosts:
        nodes = [NodeConfig(host, asked.workers_per_node) for host in asked.hosts.split(",")]
    else:
        count, _, num_workers = asked.local.partition("x")
        if not (count.isdigit() and num_workers.isdigit()):
            parser.error(f"--local is NODESxWORKERS, such as 2x2, not {asked.local!r}")
        nodes = [NodeConfig.local(int(num_workers), host=f"node{n + 1}") for n in range(int(count))]
    try:
        run_cluster(nodes, options, fake_gpus=asked.fake_gpus)
    except (MiniRayError, OSError, ValueError) as error:
        print(f"training failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing was left running", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
