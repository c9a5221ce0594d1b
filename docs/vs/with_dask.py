"""Square numbers on four workers, with Dask: python with_dask.py"""

import json
import statistics
import time

from distributed import Client, LocalCluster


class Squarer:
    def square(self, number):
        return number * number


def main():
    began = time.perf_counter()
    with (
        LocalCluster(n_workers=4, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        addresses = list(client.scheduler_info(n_workers=-1)["workers"])
        futures = [
            client.submit(Squarer, actor=True, workers=[one], pure=False) for one in addresses
        ]
        workers = [future.result() for future in futures]
        answers = [worker.square(number) for number, worker in enumerate(workers)]
        squares = [answer.result() for answer in answers]
        first_s = time.perf_counter() - began
        trips = []
        for _ in range(200):
            start = time.perf_counter()
            workers[1].square(7).result()
            trips.append(time.perf_counter() - start)
    print(json.dumps({"squares": squares, "first_s": first_s, "trip_s": statistics.median(trips)}))


if __name__ == "__main__":
    main()
