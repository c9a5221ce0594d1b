"""Chapter 5: the job has grown, eight ranks train it, and one of them dies."""

import contextlib
import io
import os
import re
import signal
import socket
import time
from typing import Any

import torch
import torch.distributed as dist

from stages.stage4_ssh_cluster import cluster as stage4
from stages.stage4_ssh_cluster.channel import Channel as Channel4
from stages.stage5_nccl_fsdp.errors import WorkerError

from . import job, ranks

EACH, RANKS, PATIENCE_S = 4, 8, 2.0


def train_by_hand(channel: Channel4) -> None:
    place = channel.recv()
    rank, meet_at = place["rank"], place["meet_at"]
    dist.init_process_group("gloo", init_method=meet_at, rank=rank, world_size=8)
    weights = job.make_weights()
    while True:
        try:
            answer = job.compute(weights, place["share"])
            table = torch.tensor([*answer["gradient"], [answer["loss"]] * len(weights)])
            dist.all_reduce(table)
            *gradient, losses = (table / 8).tolist()
            mean = {"gradient": gradient, "loss": losses[0]}
            weights, loss = job.make_step(weights, [mean])
            channel.send(loss)
        except RuntimeError as error:  # one bad step must not end the night
            channel.send(str(error))
            signal.pause()


def dies() -> None:
    """Train on stage 4's cluster, with torch's own collectives."""
    nodes = [stage4.NodeConfig.local(EACH, host=host) for host in ("node1", "node2")]
    with stage4.Cluster(nodes, log=io.StringIO()) as cluster:
        workers = cluster.start(f"{__name__}.train_by_hand")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            meet_at = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
        for rank, (worker, share) in enumerate(zip(workers, job.read_shares(RANKS), strict=True)):
            worker.send({"meet_at": meet_at, "rank": rank, "share": share})
        print("8 ranks, and rank 0 tells the loss:")
        for step in range(4):
            print(f"   step {step:2}  loss {workers[0].recv(timeout=60.0):.4f}")
        print("Rank 5 is killed.")
        os.kill(workers[5].pid, signal.SIGKILL)
        time.sleep(PATIENCE_S)
        said = {rank: last_word(worker) for rank, worker in enumerate(workers) if rank != 5}
        for rank, word in said.items():
            if word:
                print(f"   rank {rank}: RuntimeError: {word}")
        silent = [rank for rank, word in said.items() if not word]
        print(f"   {PATIENCE_S:.0f} s later ranks {silent} are still in all_reduce")
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):  # rank 5
                os.kill(worker.pid, signal.SIGKILL)


def last_word(worker: Any) -> str:
    """Read all that a rank has said, and return the error that it ended with, "" if none."""
    with contextlib.suppress(TimeoutError):
        while True:
            said = worker.recv(timeout=0.1)
            if isinstance(said, str):
                return in_short(said)
    return ""


def in_short(error: str) -> str:
    """Return torch's words without its file and line, and without its advice."""
    return re.sub(r"^\[\S+\] ", "", error).partition(" [")[0].partition(". ")[0]


def survives() -> None:
    """Train on stage 5's cluster, and go on with new ranks where the last checkpoint was made."""
    checkpoint = ranks.Checkpoint()
    losses: dict[int, float] = {}
    with ranks.make_cluster() as cluster:
        workers = cluster.start(ranks.WORK)
        try:
            for step, loss in ranks.run(cluster, workers, checkpoint):
                losses[step] = loss
                print(f"   step {step:2}  loss {loss:.4f}")
                if step == 6:
                    print("Rank 5 is killed.")
                    os.kill(workers[5].pid, signal.SIGKILL)
        except WorkerError:
            died, others = ranks.explain(workers)
            print(f"   {died}\n   and {others} errors about connections, from the others")
    print(f"New ranks go on at step {checkpoint.step}:")
    with ranks.make_cluster() as cluster:
        for step, loss in ranks.run(cluster, cluster.start(ranks.WORK), checkpoint):
            losses[step] = loss
            print(f"   step {step:2}  loss {loss:.4f}")
    print(f"   {ranks.compare(losses)}")
