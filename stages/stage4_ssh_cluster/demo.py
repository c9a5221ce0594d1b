"""Watch a cluster of two nodes: python -m stages.stage4_ssh_cluster.demo [--hosts node1,node2]"""

import argparse
import contextlib
import io
import os
import select
import signal
import sys

from .channel import Channel, wait
from .cluster import Cluster, NodeConfig
from .errors import ClusterError, WorkerDied
from .worker import Worker

WORK = f"{__package__}.demo.count_primes"
EACH = 2


def count_primes(channel: Channel) -> None:
    """Count the primes in each (first, last); or die."""
    for message in channel:
        if message == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        first, last = message
        print(f"I am process {os.getpid()}, and look for primes in {first}..{last}")
        numbers = range(max(first, 2), last)
        channel.send(sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in numbers))


def make_nodes(hosts: str | None) -> list[NodeConfig]:
    """Return the nodes that ssh reaches under these names, or two on this machine."""
    if hosts is None:
        return [NodeConfig.local(EACH, host=host) for host in ("node1", "node2")]
    return [NodeConfig(host, EACH, python=sys.executable) for host in hosts.split(",")]


def coordinate(channel: Channel, hosts: str | None) -> None:
    """Start a cluster, say who the workers are, and wait to be killed."""
    workers = Cluster(make_nodes(hosts)).start(WORK)
    channel.send([worker.pid for worker in workers])
    signal.pause()


def wait_for_end(pids: list[int]) -> list[int]:
    """Wait for processes that are nobody's children here; return those that still run."""
    left = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            handle = os.pidfd_open(pid)
            if not select.select([handle], [], [], 10.0)[0]:
                left.append(pid)
            os.close(handle)
    return left


def main() -> None:
    """Run the scenes."""
    parser = argparse.ArgumentParser(description="Watch a cluster.")
    parser.add_argument("--hosts", help="names for ssh; without them, two nodes on this machine")
    hosts = parser.parse_args().hosts
    nodes = make_nodes(hosts)

    print(
        f"1. {len(nodes)} nodes with {EACH} workers each. What they print comes with their names:\n"
    )
    sys.stdout.flush()
    with Cluster(nodes, log=sys.stdout) as cluster:
        workers = cluster.start(WORK)
        for rank, worker in enumerate(workers):
            worker.send([rank * 50_000, (rank + 1) * 50_000])
        total = sum(worker.recv(timeout=60.0) for worker in workers)
        print(f"\n   {total} primes below {len(workers) * 50_000}\n")

        print("2. One is killed, and is named with its rank and node:\n")
        workers[-1].send("die")
        wait([workers[-1]], timeout=10.0)
        try:
            workers[-1].recv(timeout=10.0)
        except WorkerDied as error:
            print(f"   WorkerDied: {error}\n")

    print("3. All nodes start or none does, and every fault is told:\n")
    bad = NodeConfig.local(1, host="node3", python="/no/such/python")
    try:
        Cluster([*nodes, bad], log=io.StringIO()).start(WORK)
    except ClusterError as error:
        print("   ClusterError:", str(error).replace("\n", "\n   "), "\n")

    print(
        "4. The coordinator is killed. Its end of every stdin closes with it: the lease is over.\n"
    )
    with Worker(lambda channel: coordinate(channel, hosts)) as coordinator:
        pids = coordinator.recv()
        print(f"   coordinator: process {coordinator.pid}; workers: {pids}")
        os.kill(coordinator.pid, signal.SIGKILL)
        if hosts is None:  # on other machines, have a look yourself
            print(f"   workers left: {wait_for_end(pids) or 'none'}")


if __name__ == "__main__":
    main()
