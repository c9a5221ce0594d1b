"""Square numbers on four ranks, with torchrunx: python with_torchrunx.py"""

import json
import time

import torchrunx


def square(numbers):
    import statistics

    import torch
    import torch.distributed as dist

    rank, number = dist.get_rank(), torch.zeros(1)
    trips = []
    for _ in range(200 if rank < 2 else 0):
        start = time.perf_counter()
        if rank == 0:
            dist.send(torch.tensor([7.0]), 1)
            dist.recv(number, 1)
        else:
            dist.recv(number, 0)
            dist.send(number * number, 0)
        trips.append(time.perf_counter() - start)
    return numbers[rank] ** 2, statistics.median(trips or [0.0])


def main():
    began = time.perf_counter()
    launcher = torchrunx.Launcher(hostnames=["localhost"], workers_per_host=4, backend="gloo")
    results = launcher.run(square, [0, 1, 2, 3])
    first_s = time.perf_counter() - began
    squares, trips = zip(*[results.rank(rank) for rank in range(4)], strict=True)
    print(json.dumps({"squares": squares, "first_s": first_s, "trip_s": trips[0]}))


if __name__ == "__main__":
    main()
