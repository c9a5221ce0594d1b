"""Square numbers on four workers, with Ray: python with_ray.py"""

import ray
from timing import Clock


@ray.remote(num_cpus=0)
class Squarer:
    def square(self, number):
        return number * number


def main():
    clock = Clock()
    ray.init(log_to_driver=False, include_dashboard=False)
    workers = [Squarer.remote() for _ in range(4)]
    squares = ray.get([worker.square.remote(number) for number, worker in enumerate(workers)])
    clock.report(squares, lambda: ray.get(workers[1].square.remote(7)))
    ray.shutdown()


if __name__ == "__main__":
    main()
