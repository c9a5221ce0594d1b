"""Square numbers on four workers, with Monarch: python with_monarch.py"""

from monarch.actor import Actor, current_rank, endpoint, this_host
from timing import Clock


class Squarer(Actor):
    @endpoint
    def square(self, numbers):
        return numbers[current_rank().rank] ** 2


def main():
    clock = Clock()
    processes = this_host().spawn_procs({"gpus": 4})
    workers = processes.spawn("squarers", Squarer)
    squares = [value for _, value in workers.square.call([0, 1, 2, 3]).get().items()]
    sevens = [7, 7, 7, 7]
    clock.report(squares, lambda: workers.slice(gpus=1).square.call_one(sevens).get())
    processes.stop().get()


if __name__ == "__main__":
    main()
