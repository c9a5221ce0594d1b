"""Square numbers on four ranks, with torchrun: torchrun --nproc-per-node 4 with_torchrun.py"""

import json
import os
import statistics
import time

import torch
import torch.distributed as dist


def main():
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    number = torch.zeros(1)
    numbers = [torch.tensor([float(n)]) for n in range(world_size)] if rank == 0 else None
    dist.scatter(number, numbers)
    squares = [torch.zeros(1) for _ in range(world_size)] if rank == 0 else None
    dist.gather(number * number, squares)
    if rank == 0:
        first_s = time.time() - float(os.environ.get("BEGAN", "nan"))
        trips = []
        for _ in range(200):
            start = time.perf_counter()
            dist.send(torch.tensor([7.0]), 1)
            dist.recv(number, 1)
            trips.append(time.perf_counter() - start)
        found = [int(one.item()) for one in squares]
        trip_s = statistics.median(trips)
        print(json.dumps({"squares": found, "first_s": first_s, "trip_s": trip_s}))
    elif rank == 1:
        for _ in range(200):
            dist.recv(number, 0)
            dist.send(number * number, 0)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
