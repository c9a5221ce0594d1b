"""Square numbers on four workers, with Dask: python with_dask.py"""

from distributed import Client, LocalCluster
from timing import Clock


class Squarer:
    def square(self, number):
        return number * number


def main():
    clock = Clock()
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
        clock.report(squares, lambda: workers[1].square(7).result())


if __name__ == "__main__":
    main()
