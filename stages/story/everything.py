"""The last page: one run, to which everything happens that the chapters were about.

The page shows a recording: python -m stages.story everything > docs/tutorial/everything.txt
"""

import os
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

import torch

from stages.stage4_ssh_cluster.demo import wait_for_end
from stages.stage5_nccl_fsdp.channel import Channel
from stages.stage5_nccl_fsdp.errors import WorkerError
from stages.stage5_nccl_fsdp.remote_worker import RemoteWorker
from stages.stage5_nccl_fsdp.worker import Worker

from . import ranks

LATE_S, STOPPED_S = 2.0, 3.0


def run() -> None:
    """Run it."""
    losses: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "checkpoint.pt")
        for coordinator in ("the first coordinator", "the second coordinator"):
            with Worker(lambda channel: coordinate(channel, file), name=coordinator) as worker:
                if not watch(worker, losses):
                    break
    print(f"   {ranks.compare(losses)}")


def watch(coordinator: Worker, losses: dict[int, float]) -> bool:
    """Note what a coordinator tells, and do to it what must be done; return whether it died."""
    first = not losses
    pids: list[int] = []
    for said in coordinator:
        if "pids" in said:
            pids = said["pids"]
            continue
        losses[said["step"]] = said["loss"]
        print(f"   step {said['step']:2}  loss {said['loss']:.4f}")
        if first and said["step"] == 9:
            print("The coordinator is killed with SIGKILL, which nobody can catch.")
            os.kill(coordinator.pid, signal.SIGKILL)
            coordinator.wait()
            print(f"   of its eight ranks still run: {wait_for_end(pids) or 'none'}")
            print("A new coordinator reads the checkpoint.")
            return True
        coordinator.send("go on")
        if first and said["step"] == 3:
            print("Rank 3 is stopped for a while, as on a machine that has run out of memory.")
            os.kill(pids[3], signal.SIGSTOP)
            time.sleep(STOPPED_S)
            os.kill(pids[3], signal.SIGCONT)
    return False


def coordinate(channel: Channel, file: Path) -> None:
    """Be the coordinator: start ranks, train, and start others when these have died."""
    while True:
        checkpoint, is_first = ranks.Checkpoint(), not file.exists()
        if file.exists():
            checkpoint = ranks.Checkpoint(**torch.load(file))
            print(f"   eight new ranks go on at step {checkpoint.step}")
        with ranks.make_cluster(log=sys.stdout) as cluster:
            workers = cluster.start(ranks.WORK)
            channel.send({"pids": [worker.pid for worker in workers]})
            try:
                for step, loss in ranks.run(cluster, workers, checkpoint, LATE_S):
                    if checkpoint.step == step + 1:
                        torch.save(vars(checkpoint), file)
                    channel.send({"step": step, "loss": loss})
                    channel.recv()
                    if is_first:
                        make_trouble(step, workers)
                return
            except WorkerError:
                died, others = ranks.explain(workers)
                print(f"   {died}\n   and {others} errors about connections, from the others")


def make_trouble(step: int, workers: list[RemoteWorker]) -> None:
    """Do what the chapters were about."""
    match step:
        case 1:
            print("Two strangers come to node1: one is silent, one takes it for a web server.")
            address = workers[0].host, workers[0].port
            with socket.create_connection(address), socket.create_connection(address) as browser:
                browser.sendall(b"GET / HTTP/1.1\r\n\r\n")
                time.sleep(2.5)
        case 6:
            print("Rank 5 crashes.")
            os.kill(workers[5].pid, signal.SIGSEGV)
