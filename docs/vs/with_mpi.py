"""Square numbers on four ranks, with MPI: mpiexec -n 4 python with_mpi.py"""

from mpi4py import MPI
from timing import TRIPS, Clock


def main():
    world = MPI.COMM_WORLD
    rank, size = world.Get_rank(), world.Get_size()
    number = world.scatter(list(range(size)) if rank == 0 else None)
    squares = world.gather(number * number)
    if rank == 0:
        clock = Clock(launched=True)
        clock.report(squares, lambda: (world.send(7, 1), world.recv(source=1)))
    elif rank == 1:
        for _ in range(TRIPS):
            world.send(world.recv(source=0) ** 2, 0)


if __name__ == "__main__":
    main()
