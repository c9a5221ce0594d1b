"""The job as eight ranks train it: a model of which each holds an eighth, with checkpoints."""

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TextIO

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from stages.stage5_nccl_fsdp.channel import Channel
from stages.stage5_nccl_fsdp.cluster import Cluster, NodeConfig
from stages.stage5_nccl_fsdp.errors import WorkerDied, WorkerError, WorkerFailed
from stages.stage5_nccl_fsdp.nccl import process_group
from stages.stage5_nccl_fsdp.remote_worker import RemoteWorker
from stages.stage5_nccl_fsdp.train import make_batch, make_model

from . import job

STEPS, SAVE_EVERY, RANKS, RATE, PATIENCE_S = 12, 4, 8, 0.25, 30.0
WORK = f"{__name__}.work"


@dataclass
class Checkpoint:
    """Where to go on, and with which parameters: whole tensors, None for a new model."""

    step: int = 0
    parameters: dict[str, Tensor] | None = None


def work(channel: Channel) -> None:
    """Train as a rank: from a checkpoint on, with a message for every step."""
    order = channel.recv()
    config = order["config"]
    with process_group(config) as device:
        model = make_model()
        if order["parameters"]:
            model.load_state_dict(order["parameters"])
        model = model.to(device)
        mesh = init_device_mesh(device.type, (config["world_size"],))
        for layer in model:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        for step in range(order["step"], STEPS):
            channel.recv()  # the coordinator's word for every step
            loss = take_step(model, optimizer, step, range(config["rank"], config["rank"] + 1))
            dist.all_reduce(loss)
            answer: dict[str, Any] = {"loss": loss.item() / config["world_size"]}
            if (step + 1) % SAVE_EVERY == 0:  # every rank has to take part; one sends it
                whole = {name: gather(one) for name, one in model.named_parameters()}
                answer["parameters"] = whole if config["rank"] == 0 else None
            channel.send(answer)


def gather(parameter: Any) -> Tensor:
    """Return a whole parameter, to which every rank brings its shard."""
    whole: Tensor = parameter.full_tensor()
    return whole


def take_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, step: int, ranks: range
) -> Tensor:
    """Take one step on the batches of some ranks; return the loss before it."""
    text = torch.frombuffer(bytearray(job.TEXT.read_bytes()), dtype=torch.uint8)
    inputs, targets = make_batch(text, step, ranks)
    loss = F.cross_entropy(model(inputs), targets)
    loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def run(
    cluster: Cluster,
    workers: list[RemoteWorker],
    checkpoint: Checkpoint,
    late_s: float = PATIENCE_S,
) -> Iterator[tuple[int, float]]:
    """Run all ranks from a checkpoint on; yield (step, loss), and keep the checkpoint current."""
    for worker, config in zip(workers, cluster.nccl_configs(), strict=True):
        order = {"step": checkpoint.step, "parameters": checkpoint.parameters}
        worker.send({"config": config.__dict__, **order})
    first = checkpoint.step
    for step in range(first, STEPS):
        for worker in workers:
            with contextlib.suppress(WorkerError):  # said below, when all have had their word
                worker.send("go on")
        # The first step takes longer than the others: there the ranks meet.
        seconds = PATIENCE_S if step == first else late_s
        answers = [receive(worker, seconds) for worker in workers]
        if answers[0].get("parameters"):
            checkpoint.step, checkpoint.parameters = step + 1, answers[0]["parameters"]
        yield step, answers[0]["loss"]


def receive(worker: RemoteWorker, seconds: float) -> Any:
    """Receive, and ask again of a rank that is late: late is not dead."""
    for _ in range(round(PATIENCE_S / seconds)):
        try:
            return worker.recv(timeout=seconds)
        except TimeoutError as error:
            print(f"   TimeoutError: {error}; asking again")
    raise TimeoutError(f"{worker.name} said nothing for {PATIENCE_S}s")


def make_cluster(log: TextIO | None = None) -> Cluster:
    """Return two nodes of four fake GPUs each, on this machine."""
    nodes = [NodeConfig.local(RANKS // 2, host=host) for host in ("node1", "node2")]
    return Cluster(nodes, fake_gpus=True, log=log or io.StringIO())


def explain(workers: list[RemoteWorker]) -> tuple[WorkerDied | None, int]:
    """Return how the rank ended that said nothing, and how many others have complained."""
    died, others = None, 0
    for worker in workers:
        try:
            while True:
                worker.recv(timeout=PATIENCE_S)
        except WorkerDied as error:
            died = error
        except WorkerFailed:
            others += 1
    return died, others


def compare(losses: dict[int, float]) -> str:
    """Say how far the losses are from those of one process, to which nothing ever happens."""
    torch.set_num_threads(1)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    alone = [take_step(model, optimizer, step, range(RANKS)).item() for step in range(STEPS)]
    difference = max(abs(losses[step] - loss) for step, loss in enumerate(alone))
    return f"the losses of one process to which nothing happened: at most {difference:.0e} off"
