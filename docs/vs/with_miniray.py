"""Square numbers on four workers, with MiniRay: python with_miniray.py"""

import json
import statistics
import time

from miniray import Cluster, NodeConfig


def square(channel):
    for number in channel:
        channel.send(number * number)


def main():
    began = time.perf_counter()
    with Cluster([NodeConfig.local(4)]) as cluster:
        workers = cluster.start("with_miniray.square")
        for number, worker in enumerate(workers):
            worker.send(number)
        squares = [worker.recv() for worker in workers]
        first_s = time.perf_counter() - began
        trips = []
        for _ in range(200):
            start = time.perf_counter()
            workers[1].send(7)
            workers[1].recv()
            trips.append(time.perf_counter() - start)
    print(json.dumps({"squares": squares, "first_s": first_s, "trip_s": statistics.median(trips)}))


if __name__ == "__main__":
    main()
