"""Square numbers on four workers, with Ray: python with_ray.py"""

import json
import statistics
import time

import ray


@ray.remote(num_cpus=0)
class Squarer:
    def square(self, number):
        return number * number


def main():
    began = time.perf_counter()
    ray.init(log_to_driver=False, include_dashboard=False)
    workers = [Squarer.remote() for _ in range(4)]
    squares = ray.get([worker.square.remote(number) for number, worker in enumerate(workers)])
    first_s = time.perf_counter() - began
    trips = []
    for _ in range(200):
        start = time.perf_counter()
        ray.get(workers[1].square.remote(7))
        trips.append(time.perf_counter() - start)
    print(json.dumps({"squares": squares, "first_s": first_s, "trip_s": statistics.median(trips)}))
    ray.shutdown()


if __name__ == "__main__":
    main()
