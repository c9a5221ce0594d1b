"""What the workers of a round do. A copy goes along to the nodes, so it is a module by itself."""

import os
import resource
import select
import signal
from pathlib import Path
from types import FrameType
from typing import Any

SIGNS = Path(os.environ["CHAOS_SIGNS"])
MOMENT = os.environ["CHAOS_MOMENT"]
WHO = f"{os.environ['CHAOS_HOST']}-{os.getpid()}"
ROOM_BYTES = 64 << 20
FLOOD_LINES = int(os.environ["CHAOS_FLOOD_LINES"])
FLOOD_LINE = "flood " + "x" * 93


def wait_for_go() -> None:
    while not (SIGNS / "go").exists():
        select.select([], [], [], 0.01)


(SIGNS / f"importing-{WHO}").touch()
if MOMENT == "import":
    wait_for_go()
if MOMENT == "group":
    import torch
    import torch.distributed

    from miniray import process_group
(SIGNS / f"imported-{WHO}").touch()


def harm(number: int, frame: FrameType | None) -> None:
    """Do what the file `act` says, wherever this process is just now."""
    match (SIGNS / "act").read_text():
        case "memory":
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + ROOM_BYTES, resource.RLIM_INFINITY))
            hoard()
        case "oom":  # whoever says so has put us into a cgroup before
            hoard()
        case "heir":
            if os.fork():
                os.kill(os.getpid(), signal.SIGKILL)
            os.setsid()
            while True:  # it holds what the worker had open
                signal.pause()
        case "flood":
            for _ in range(FLOOD_LINES):
                print(FLOOD_LINE)


def hoard() -> None:
    """Take all the memory that there is."""
    held = []
    while True:
        held.append(b"x" * (1 << 20))


def work_fn(channel: Any) -> None:
    """Do what the coordinator orders."""
    signal.signal(signal.SIGUSR1, harm)
    order = channel.recv()
    match order["order"]:
        case "wait":
            wait_for_go()
            channel.send("done")
        case "echo":
            for message in channel:
                channel.send(message)
        case "hang":
            channel.send("hanging")
            while True:
                signal.pause()
        case "all_reduce":
            with process_group(order["config"]) as device:
                while True:
                    ones = torch.ones(1, device=device)
                    torch.distributed.all_reduce(ones)
                    channel.send(ones.item())
                    channel.recv()
