"""Square numbers on four ranks, with torchrunx: python with_torchrunx.py"""

import cloudpickle
import timing
import torchrunx


def square(numbers):
    import torch
    import torch.distributed as dist

    rank, number = dist.get_rank(), torch.zeros(1)
    trip_s = None
    if rank == 0:
        seven = torch.tensor([7.0])
        trip_s = timing.median_trip(lambda: (dist.send(seven, 1), dist.recv(number, 1)))
    elif rank == 1:
        for _ in range(timing.TRIPS):
            dist.recv(number, 0)
            dist.send(number * number, 0)
    return numbers[rank] ** 2, trip_s


def main():
    clock = timing.Clock()
    cloudpickle.register_pickle_by_value(timing)  # it goes along with the function
    launcher = torchrunx.Launcher(hostnames=["localhost"], workers_per_host=4, backend="gloo")
    results = launcher.run(square, [0, 1, 2, 3])
    squares, trips = zip(*[results.rank(rank) for rank in range(4)], strict=True)
    clock.report(squares, trips[0])


if __name__ == "__main__":
    main()
