"""What every contestant of `start` does once it runs: join a process group, and one all_reduce.

As a program it is one of three things: `node` forks ranks after one import, which is the limit;
`rank` is what torchrun starts.
"""

import os
import sys

import torch
import torch._dynamo
import torch.distributed as dist
import torch.distributed.fsdp

from miniray import Channel, process_group

RANKS_PER_NODE = 4
NODES = 2
DONE = b"."


def work(channel: Channel) -> None:
    """Join with each config that comes, all_reduce, and report the sum."""
    for config in channel:
        with process_group(config) as device:
            ones = torch.ones(1, device=device)
            dist.all_reduce(ones)
            channel.send(ones.item())


def fork_node(node_rank: int, port: int) -> None:
    """Fork this node's ranks, and wait for them."""
    children = []
    for local_rank in range(RANKS_PER_NODE):
        pid = os.fork()
        if pid == 0:
            rank = node_rank * RANKS_PER_NODE + local_rank
            dist.init_process_group(
                "gloo",
                init_method=f"tcp://127.0.0.1:{port}",
                rank=rank,
                world_size=NODES * RANKS_PER_NODE,
            )
            reduce_and_tell()
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)


def reduce_and_tell() -> None:
    """All_reduce, write one byte to stdout, and end without torch's tidying up."""
    torch.set_num_threads(1)
    ones = torch.ones(1)
    dist.all_reduce(ones)
    assert ones.item() == NODES * RANKS_PER_NODE
    os.write(1, DONE)
    dist.barrier()  # who leaves early breaks the others' connections
    os._exit(0)


if __name__ == "__main__":
    if sys.argv[1] == "node":
        fork_node(int(sys.argv[2]), int(sys.argv[3]))
    else:
        dist.init_process_group("gloo")
        reduce_and_tell()
