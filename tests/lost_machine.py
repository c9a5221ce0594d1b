"""A coordinator that waits for a machine in every way there is, each in a thread of its own.

It prints "ready", reads the moment when the machine was lost, and prints how each way ended.
"""

import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from miniray import Channel, Cluster, NodeConfig, RemoteWorker, Worker, wait

NOTICED_S = 20.0  # what the design promises
GIVE_UP_S = NOTICED_S + 10
PATIENCE_S = 60.0
TICK_S = 0.05
PIECE = bytes(1 << 20)
LARGE = bytes(64 << 20)

TRAFFIC = ("idle", "to the node", "from the node")


def work_fn(channel: Channel) -> None:
    """Take everything in; if told to, send without an end."""
    for message in channel:
        while message == "stream":
            channel.send(PIECE)


def talk(channel: Channel) -> None:
    """Say something every now and then."""
    while True:
        channel.send("tick")
        try:
            channel.recv(timeout=TICK_S)
        except TimeoutError:
            continue


@dataclass
class Waiter:
    """One way to wait; `worker` is on the machine that is lost, `other` is elsewhere."""

    worker: RemoteWorker
    other: Any

    def __post_init__(self) -> None:
        self.rank = self.worker.name.partition(":")[0]  # as errors name it

    def recv(self) -> NoReturn:
        while True:
            self.worker.recv()

    def recv_with_a_timeout(self) -> NoReturn:
        while True:
            self.worker.recv(PATIENCE_S)

    def wait(self) -> NoReturn:
        while True:
            self._hear(wait([self.worker]))

    def wait_briefly_again_and_again(self) -> NoReturn:
        while True:
            self._hear(wait([self.worker], timeout=0.2))

    def wait_while_another_talks(self) -> NoReturn:
        while True:
            self._hear(wait([self.worker, self.other]))

    def send_a_large_message(self) -> NoReturn:
        while True:
            self.worker.send(LARGE)

    def group_recv_on_the_lost_rank(self) -> NoReturn:
        while True:
            self.worker.recv(PATIENCE_S)

    def group_recv_on_another_rank(self) -> NoReturn:
        while True:
            self.other.recv(PATIENCE_S)

    def group_recv_without_a_timeout(self) -> NoReturn:
        while True:
            self.other.recv()

    def group_wait_for_another_rank(self) -> NoReturn:
        while True:
            self._hear(wait([self.other], timeout=0.2))

    def _hear(self, ready: Sequence[Channel]) -> None:
        for channel in ready:
            channel.recv()


WAYS = [name for name in vars(Waiter) if name[0] != "_"]


class Coordinator:
    """Waits in every way, under every traffic, and writes down how each ended."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.waiters: dict[tuple[str, str], Waiter] = {}
        self.endings: list[dict[str, Any]] = []
        self.lost = threading.Event()
        self.lost_at = 0.0

    def start(self, *workers_per_node: int) -> tuple[Cluster, list[RemoteWorker]]:
        nodes = [
            NodeConfig(f"node{number}", count, python=sys.executable, **self.options)
            for number, count in enumerate(workers_per_node, start=1)
        ]
        cluster = Cluster(nodes, fake_gpus=True)
        return cluster, cluster.start("tests.lost_machine.work_fn")

    def begin(self) -> None:
        """Give each case a worker of its own, and to those that wait in a group a group."""
        # First of all: a process that has threads should not fork.
        talkers = [Worker(talk) for _ in TRAFFIC]
        alone = [way for way in WAYS if not way.startswith("group")]
        cases = list(itertools.product(alone, TRAFFIC))
        self.clusters = [self.start(1, len(cases))]
        for case, worker in zip(cases, self.clusters[0][1][1:], strict=True):
            self.waiters[case] = Waiter(worker, talkers[TRAFFIC.index(case[1])])
        for case in itertools.product(WAYS, TRAFFIC):
            if case not in self.waiters:
                cluster, (other, worker) = self.start(1, 1)
                cluster.nccl_configs()
                self.waiters[case] = Waiter(worker, other)
                self.clusters.append((cluster, [other, worker]))
        for (_, traffic), waiter in self.waiters.items():
            if traffic == "from the node":
                waiter.worker.send("stream")

    def run(self, way: str, traffic: str) -> None:
        """Wait in one way, and note how that ended."""
        waiter = self.waiters[way, traffic]
        if traffic == "to the node" or way.startswith("send"):
            self.lost.wait()
        try:
            if traffic == "to the node":
                waiter.worker.send("late")
            getattr(waiter, way)()
        except Exception as error:
            seconds = time.monotonic() - self.lost_at
            ending = {"way": way, "traffic": traffic, "rank": waiter.rank, "seconds": seconds}
            self.endings.append(ending | {"error": type(error).__name__, "text": str(error)})

    def main(self) -> None:
        """Talk with the test."""
        self.begin()
        threads = [
            threading.Thread(target=self.run, args=case, daemon=True) for case in self.waiters
        ]
        for thread in threads:
            thread.start()
        print("ready", flush=True)
        self.lost_at = float(sys.stdin.readline())
        self.lost.set()
        for thread in threads:
            thread.join(max(self.lost_at + GIVE_UP_S - time.monotonic(), 0))
        print(json.dumps(self.endings), flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    Coordinator(json.loads(sys.argv[1])).main()
    os._exit(0)  # those that wait for ever are daemons, and hold what they wait for
