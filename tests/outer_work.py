"""What ranks and their coordinator do that another launcher has started, in the tests."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from miniray import Channel, gather
from miniray.cli import outer_rank
from miniray.extras.hosted import HostedCluster


def work(channel: Channel) -> None:
    """Do as each message says, and send back any other."""
    for order, *rest in channel:
        match order:
            case "exit":
                sys.exit(rest[0])
            case "raise":
                raise ValueError("no such batch: 7")
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "return":
                return
            case "environment":
                channel.send({name: os.environ.get(name) for name in rest})
            case "pause":
                channel.send("pausing")
                signal.pause()
            case "pids":
                channel.send([os.getpid(), os.getppid()])
            case "spawn and exit":
                sleep = subprocess.Popen(["sleep", "600"])
                Path(rest[0]).write_text(str(sleep.pid))
                os._exit(5)
            case "wait for a signal":
                wait_for_a_signal(channel, *rest)
            case _:
                channel.send([order, *rest])


def wait_for_a_signal(channel: Channel, number: int, file: str) -> None:
    """Note in a file that a signal has come, as one would who saves a checkpoint."""

    def save(number: int, frame: Any) -> None:
        with open(f"{file}.heard", "a") as heard:
            heard.write(".")
        select.select([], [], [], 0.2)  # it takes a moment
        Path(file).write_text(signal.Signals(number).name)
        sys.exit()

    signal.signal(number, save)
    channel.send("waiting")
    while True:
        signal.pause()


def exchange(cluster: HostedCluster, text: str = "hello") -> None:
    """Send each rank its place, and print what comes back."""
    for worker, config in zip(cluster.workers, cluster.nccl_configs(), strict=True):
        place = (config.rank, config.world_size, config.local_rank, config.node_rank)
        worker.send([text, *place])
    for worker in cluster.workers:
        print("back:", *worker.recv(20.0), flush=True)


def order(cluster: HostedCluster, rank: int, order: list[Any]) -> None:
    """Have one rank do something, and wait for what comes of it on another one."""
    cluster.nccl_configs()
    cluster.workers[rank].send(order)
    print(cluster.workers[rank - 1].recv(60.0), flush=True)


def leave_paused(cluster: HostedCluster) -> None:
    """Return while a rank is busy."""
    cluster.workers[1].send(["pause"])
    cluster.workers[1].recv(20.0)


def tell_pids(cluster: HostedCluster, file: str) -> None:
    """Write which process is what, and wait for ever."""
    cluster.nccl_configs()
    cluster.broadcast(["pids"])
    pids = gather(cluster.workers, 20.0)
    cluster.broadcast(["pause"])  # as one does who computes, and sees nobody hang up
    gather(cluster.workers, 20.0)
    draft = Path(f"{file}.draft")
    draft.write_text(repr({"coordinator": os.getpid(), "ranks": pids}))
    draft.rename(file)
    cluster.workers[0].recv()


def await_signals(cluster: HostedCluster, number: int, folder: str) -> None:
    """Have each rank wait for a signal, and wait for the end of all."""
    for rank, worker in enumerate(cluster.workers):
        worker.send(["wait for a signal", number, f"{folder}/rank{rank}"])
    gather(cluster.workers, 20.0)
    Path(folder, "all wait").touch()
    for worker in cluster.workers:
        for _ in worker:
            pass


def environment(cluster: HostedCluster) -> None:
    """Print what a rank sees of some variables."""
    cluster.workers[1].send(["environment", "MINIRAY_KEY", "COLOUR"])
    print(cluster.workers[1].recv(20.0), flush=True)


def call(cluster: HostedCluster) -> None:
    """Have functions called."""
    print(cluster.run("os.getenv", "COLOUR"), flush=True)
    print(list(cluster.map("math.factorial", [3, 4, 5])), flush=True)


def fail(cluster: HostedCluster) -> None:
    """Fail without any rank's fault."""
    raise LookupError("the coordinator's own")


def leave(cluster: HostedCluster, status: Any) -> None:
    """Leave with a status."""
    sys.exit(status)


def place(channel: Channel) -> None:
    """Say which rank one is."""
    config = channel.recv()
    channel.send(f"my rank is {config['rank']} of {config['world_size']}")


def fail_once(channel: Channel) -> None:
    """Fail as rank 1 if there is no such file yet."""
    file = Path(channel.recv())
    if os.environ["RANK"] == "1" and not file.exists():
        file.touch()
        sys.exit(9)
    work(channel)


def send_file(cluster: HostedCluster, file: str) -> None:
    """Have rank 1 fail once."""
    for worker in cluster.workers:
        worker.send(file)
    exchange(cluster)


def reduce(channel: Channel) -> None:
    """Add up the ranks, as a process group."""
    import torch
    import torch.distributed as dist

    from miniray import process_group

    with process_group(channel.recv()) as device:
        total = torch.tensor([float(dist.get_rank())], device=device)
        dist.all_reduce(total)
        channel.send(total.item())


def stop(cluster: HostedCluster) -> None:
    """End the ranks oneself, as one does who writes `with cluster`."""
    with cluster:
        exchange(cluster)


def exit_on_rank_1(status: int) -> None:
    """Leave rank 1 with a status, and have the others wait for that."""
    if os.environ["RANK"] == "1":
        sys.exit(status)
    signal.pause()


def run_and_fail(cluster: HostedCluster) -> None:
    """Call what fails on rank 1."""
    cluster.run("tests.outer_work.exit_on_rank_1", 7)


def compute(cluster: HostedCluster, file: str) -> None:
    """Look at no rank for ever, while one has returned and the others are busy."""
    outer_rank.SEEN_S = 0.0
    cluster.workers[0].send(["return"])
    cluster.workers[0].wait(20.0)
    for worker in cluster.workers[1:]:
        worker.send(["pause"])
        worker.recv(20.0)
    Path(file).touch()
    while True:
        signal.pause()
