"""Lab: one rank of a collective is killed while the others wait for it."""

import importlib
import os
import signal
import socket
import time

from exercises.labs.lab import Lab, Record, ms
from stages import torch_here
from stages.stage5_nccl_fsdp.channel import Channel, wait
from stages.stage5_nccl_fsdp.errors import WorkerDied, WorkerFailed
from stages.stage5_nccl_fsdp.nccl import create_nccl_configs, process_group
from stages.stage5_nccl_fsdp.worker import Worker

RANKS, DEAD = 4, 2
WAITING_S = 0.5
NOTICED_S = 5.0
T = 30.0


def reduce(channel: Channel) -> None:
    """Join the group, and sum ones over all its ranks for each message."""
    import torch

    with process_group(channel.recv()) as device:
        for _ in channel:
            ones = torch.ones(1, device=device)
            torch.distributed.all_reduce(ones)
            channel.send(ones.item())


def missing() -> str | None:
    """Return what this machine lacks."""
    if remedy := torch_here.remedy():
        return f"it needs torch: {remedy}"
    return None


def run(record: Record) -> None:
    """Kill a rank that has not come to the collective in which the others wait."""
    importlib.import_module("torch.distributed")  # here once, and not by every rank after its fork
    record.say("torch is imported")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    ranks = [Worker(reduce, name=f"rank {rank}") for rank in range(RANKS)]
    try:
        _reduce_and_kill(record, ranks, port)
    finally:
        for rank in ranks:
            rank.close(timeout=0.2)


def _reduce_and_kill(record: Record, ranks: list[Worker], port: int) -> None:
    configs = create_nccl_configs("127.0.0.1", [("here", RANKS)], port, backend="gloo")
    for rank, config in zip(ranks, configs, strict=True):
        rank.send(config.__dict__)
        rank.send("sum")
    sums = [rank.recv(T) for rank in ranks]
    record.say(f"{RANKS} ranks have joined, and an all_reduce of ones gives {sums}")
    others = [rank for rank in ranks if rank is not ranks[DEAD]]
    for rank in others:
        rank.send("sum")
    early = wait(others, WAITING_S)
    record.say(f"all but rank {DEAD} enter the next; {WAITING_S} s later {len(early)} are through")
    os.kill(ranks[DEAD].pid, signal.SIGKILL)
    killed = time.monotonic()
    record.say(f"SIGKILL to rank {DEAD}, process {ranks[DEAD].pid}")
    heard: dict[str, tuple[float, WorkerDied | WorkerFailed | None]] = {}
    busy = list(ranks)
    while busy and (ready := wait(busy, T)):
        for rank in ready:
            busy.remove(rank)
            error: WorkerDied | WorkerFailed | None = None
            after = time.monotonic() - killed
            try:
                rank.recv(T)
            except (WorkerDied, WorkerFailed) as caught:
                error = caught
            heard[rank.name] = after, error
            first = str(error).splitlines()[0].partition(". ")[0]  # torch says a lot
            record.say(f"{ms(after)} later {type(error).__name__}: {first}")

    claim = not early
    record.left("before the kill", f"{len(early)} of 3 went on", claim=claim, expected="0")
    for rank in ranks:
        after, error = heard.get(rank.name, (float("inf"), None))
        expected = WorkerDied if rank is ranks[DEAD] else WorkerFailed
        claim = isinstance(error, expected) and after < NOTICED_S
        found = f"{type(error).__name__} after {ms(after)}, exit status {rank.wait(T)}"
        record.left(rank.name, found, claim=claim, expected=expected.__name__)


LAB = Lab(
    title="a rank of a collective is killed",
    stage=5,
    question=f"""{RANKS} ranks are in a process group of torch, over gloo. All but rank {DEAD} have
    entered an all_reduce, and wait for it. Rank {DEAD} gets SIGKILL. What do the others do?""",
    answers=(
        "they wait for the group's timeout, which is 30 minutes",
        "they fail within seconds, each with an error of its own",
        "they go on, and the sum is that of three ranks",
        "they wait until the coordinator ends them",
    ),
    right=1,
    run=run,
    missing=missing,
    why="""A collective needs every rank, so without one there is no sum, neither a right one nor a
    smaller one. The ranks are connected by TCP, and the kernel closes the dead one's connections:
    its neighbours read the end of file and raise. They end in turn, and so do the ranks that were
    waiting for them. A rank that hangs closes nothing, and neither does a machine that vanishes:
    then the others would wait for a timeout. What the others raise tells of a lost connection; only
    WorkerDied names the rank that was killed.""",
)
