"""Ranks that hang, each in its own way, and a coordinator that waits for them.

python -m tests.hanging HOW OPTIONS starts four ranks on two nodes, and prints the ranks' pids once
they are about to hang. OPTIONS are those of every NodeConfig, in JSON; with "local" both nodes are
this machine.
"""

import itertools
import json
import os
import re
import signal
import sys
import threading
from typing import Any

import torch
import torch.distributed as dist

from miniray import Channel, Cluster, NodeConfig, process_group

CULPRIT = 2


def loop() -> None:
    for _ in itertools.count():
        pass  # here: loop


def loop_in_c() -> None:
    re.match("(a*)*b", "a" * 60)  # here: loop_in_c


def sleep() -> None:
    threading.Event().wait()  # here: sleep


def skip() -> None:
    dist.barrier()  # here: skip


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)  # here: stop


WAYS = {one.__name__: one for one in (loop, loop_in_c, sleep, skip, stop)}


def train(channel: Channel) -> None:
    """Meet the others, and hang with them, if this is the culprit in its own way."""
    how, place = channel.recv()
    with process_group(place) as device:
        dist.all_reduce(torch.ones(1, device=device))
        channel.send(os.getpid())
        if how == "two_ranks_recv":
            swap()
        elif dist.get_rank() == CULPRIT:
            WAYS[how]()
        dist.all_reduce(torch.ones(1, device=device))  # here: wait


def swap() -> None:
    """Have ranks 1 and 2 each wait for a tensor of the other's; the rest goes on."""
    ours = torch.zeros(1)
    if dist.get_rank() == 1:
        dist.recv(ours, src=2)  # here: recv of rank 1
    if dist.get_rank() == 2:
        dist.recv(ours, src=1)  # here: recv of rank 2


def wait_for_word(channel: Channel) -> None:
    """Wait for a second message, for which the coordinator does not think."""
    channel.recv()
    channel.send(os.getpid())
    channel.recv()  # here: recv of a rank


def main(how: str, options: dict[str, Any]) -> None:
    names = ("node1", "node2")
    if options.pop("local", False):
        nodes = [NodeConfig.local(2, host=name, **options) for name in names]
    else:
        nodes = [NodeConfig(name, 2, python=sys.executable, **options) for name in names]
    with Cluster(nodes, fake_gpus=True) as cluster:
        work_fn = "wait_for_word" if how == "recv_and_recv" else "train"
        workers = cluster.start(f"tests.hanging.{work_fn}")
        places = cluster.nccl_configs()
        for worker, place in zip(workers, places, strict=True):
            worker.send([how, place.__dict__])
        print(json.dumps([worker.recv(30.0) for worker in workers]), flush=True)
        workers[CULPRIT].recv()  # here: recv of the coordinator


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
