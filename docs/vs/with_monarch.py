"""Square numbers on four workers, with Monarch: python with_monarch.py"""

import json
import statistics
import time

from monarch.actor import Actor, current_rank, endpoint, this_host


class Squarer(Actor):
    @endpoint
    def square(self, numbers):
        return numbers[current_rank().rank] ** 2


def main():
    began = time.perf_counter()
    processes = this_host().spawn_procs({"gpus": 4})
    workers = processes.spawn("squarers", Squarer)
    squares = [value for _, value in workers.square.call([0, 1, 2, 3]).get().items()]
    first_s = time.perf_counter() - began
    trips = []
    for _ in range(200):
        start = time.perf_counter()
        workers.slice(gpus=1).square.call_one([7, 7, 7, 7]).get()
        trips.append(time.perf_counter() - start)
    print(json.dumps({"squares": squares, "first_s": first_s, "trip_s": statistics.median(trips)}))
    processes.stop().get()


if __name__ == "__main__":
    main()
