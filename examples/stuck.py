"""A script of which one rank gets stuck, to find out which with `miniray stacks`.

miniray run --local 2x2 examples/stuck.py --how loop
"""

import argparse
import itertools
import os
import signal
import time

import torch
import torch.distributed as dist

STUCK_RANK = 2
STUCK_STEP = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--how", choices=HOW, default="loop", help="how it gets stuck")
    options = parser.parse_args()
    dist.init_process_group("gloo")
    for step in range(1, 1000):
        if step == STUCK_STEP and dist.get_rank() == STUCK_RANK:
            print(f"step {step} takes its time", flush=True)
            HOW[options.how]()
        total = torch.ones(1)
        dist.all_reduce(total)
        time.sleep(0.1)
    dist.destroy_process_group()


def loop() -> None:
    """Add up all numbers."""
    sum(itertools.count())


def sleep() -> None:
    """Wait for a file system, say, that has gone."""
    time.sleep(100_000)


def skip() -> None:
    """Take a branch that the others do not take."""
    dist.barrier()


def stop() -> None:
    """Be stopped, as by `kill -STOP`."""
    os.kill(os.getpid(), signal.SIGSTOP)


HOW = {"loop": loop, "sleep": sleep, "skip": skip, "stop": stop}


if __name__ == "__main__":
    main()
