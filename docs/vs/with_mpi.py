"""Square numbers on four ranks, with MPI: mpiexec -n 4 python with_mpi.py"""

import json
import os
import statistics
import time

from mpi4py import MPI


def main():
    world = MPI.COMM_WORLD
    rank, size = world.Get_rank(), world.Get_size()
    number = world.scatter(list(range(size)) if rank == 0 else None)
    squares = world.gather(number * number)
    if rank == 0:
        first_s = time.time() - float(os.environ.get("BEGAN", "nan"))
        trips = []
        for _ in range(200):
            start = time.perf_counter()
            world.send(7, 1)
            world.recv(source=1)
            trips.append(time.perf_counter() - start)
        trip_s = statistics.median(trips)
        print(json.dumps({"squares": squares, "first_s": first_s, "trip_s": trip_s}))
    elif rank == 1:
        for _ in range(200):
            world.send(world.recv(source=0) ** 2, 0)


if __name__ == "__main__":
    main()
