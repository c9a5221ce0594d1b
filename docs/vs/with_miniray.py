"""Square numbers on four workers, with MiniRay: python with_miniray.py"""

from timing import Clock

from miniray import Cluster, NodeConfig


def square(channel):
    for number in channel:
        channel.send(number * number)


def main():
    clock = Clock()
    with Cluster([NodeConfig.local(4)]) as cluster:
        workers = cluster.start("with_miniray.square")
        for number, worker in enumerate(workers):
            worker.send(number)
        squares = [worker.recv() for worker in workers]
        clock.report(squares, lambda: (workers[1].send(7), workers[1].recv()))


if __name__ == "__main__":
    main()
