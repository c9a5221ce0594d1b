"""Ranks of a process group that hang in a collective, because one of them is not in it.

python -m tests.hanging_torch OPTIONS does with them what tests.hanging does with its own.
"""

import json
import os
import sys

import torch
import torch.distributed as dist

from miniray import Channel, process_group
from tests import hanging


def skip() -> None:
    dist.barrier()  # here: skip


WAYS = {**hanging.WAYS, "skip": skip}


def train(channel: Channel) -> None:
    """Meet the others, and hang with them; the culprit hangs in its own way."""
    how, place = channel.recv()
    with process_group(place) as device:
        dist.all_reduce(torch.ones(1, device=device))
        channel.send(os.getpid())
        if how == "two_ranks_recv":
            swap()
        elif dist.get_rank() == hanging.CULPRIT:
            WAYS[how]()
        dist.all_reduce(torch.ones(1, device=device))  # here: wait


def swap() -> None:
    """Have ranks 1 and 2 each wait for a tensor of the other's; the others go on."""
    ours = torch.zeros(1)
    if dist.get_rank() == 1:
        dist.recv(ours, src=2)  # here: recv of rank 1
    if dist.get_rank() == 2:
        dist.recv(ours, src=1)  # here: recv of rank 2


if __name__ == "__main__":
    hanging.main("tests.hanging_torch.train", json.loads(sys.argv[1]))
