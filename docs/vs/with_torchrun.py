"""Square numbers on four ranks, with torchrun: torchrun --nproc-per-node 4 with_torchrun.py"""

import torch
import torch.distributed as dist
from timing import TRIPS, Clock


def main():
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    number = torch.zeros(1)
    numbers = [torch.tensor([float(n)]) for n in range(world_size)] if rank == 0 else None
    dist.scatter(number, numbers)
    squares = [torch.zeros(1) for _ in range(world_size)] if rank == 0 else None
    dist.gather(number * number, squares)
    if rank == 0:
        found = [int(one.item()) for one in squares]
        seven = torch.tensor([7.0])
        clock = Clock(launched=True)
        clock.report(found, lambda: (dist.send(seven, 1), dist.recv(number, 1)))
    elif rank == 1:
        for _ in range(TRIPS):
            dist.recv(number, 0)
            dist.send(number * number, 0)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
