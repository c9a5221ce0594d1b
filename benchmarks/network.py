"""What goes between machines, as far as one machine can tell: nodes, a slow link, encryption."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.growth import answer, give, give_all
from benchmarks.measure import (
    KEY,
    LIMIT,
    OURS,
    Curve,
    Figure,
    Served,
    forked,
    interleave,
    seconds,
    serving,
)
from miniray import Channel, Cluster, NodeConfig, RemoteWorker
from tests.support import ssh
from tests.support.proxy import Proxy

NBYTES = 64 * 1024 * 1024
SLOW_BYTES = 8 * 1024 * 1024
SLOWEST_TARGET = 1.1
ENCRYPTED_TARGET = 2.0
DEADLINE_S = 60.0
# A process that imports what a node imports, says so, and ends when it is told.
BARE = "import miniray.worker_server; print(); import sys; sys.stdin.read()"


def run(quick: bool) -> Iterator[Figure | Curve]:
    """Yield a curve over nodes, then figures of a slow link and of ssh."""
    yield grow_nodes(quick)
    yield broadcast_over_slow_links(quick)
    if ssh.missing() is None:  # else there is no sshd to measure
        yield from send_through_ssh(quick)


def grow_nodes(quick: bool) -> Curve:
    """Start clusters of more and more local nodes, until a worker on each has answered."""
    counts, repetitions = ((1, 2), 1) if quick else ((1, 2, 4, 8, 16), 7)
    curve = Curve("a cluster of N local nodes, until a worker on each has answered", "nodes", "s")
    for count in counts:
        contestants = {
            OURS: partial(start_cluster, count),
            LIMIT: partial(start_pythons, count),
        }
        curve.add(count, interleave(contestants, repetitions))
    return curve


def start_cluster(count: int) -> float:
    """Return the seconds from Cluster(...) until every worker has answered."""
    nodes = [NodeConfig.local(1, host=f"node{number}") for number in range(count)]
    begun = time.perf_counter()
    with Cluster(nodes) as cluster:
        workers = cluster.start("benchmarks.growth.answer")
        give_all(workers, "are you there?")
        return time.perf_counter() - begun


def start_pythons(count: int) -> float:
    """Return the seconds until as many bare Pythons have imported what a node needs."""
    begun = time.perf_counter()
    with contextlib.ExitStack() as stack:
        pythons = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", BARE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
                )
            )
            for _ in range(count)
        ]
        for python in pythons:
            assert python.stdout is not None
            python.stdout.readline()
        elapsed = time.perf_counter() - begun
        for python in pythons:
            assert python.stdin is not None
            python.stdin.close()
    return elapsed


def broadcast_over_slow_links(quick: bool) -> Figure:
    """Send to four workers, one of them behind a slower link, beside that one alone."""
    import numpy

    array = numpy.ones(SLOW_BYTES // (8 if quick else 1), "u1")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(answer, key=KEY))
        workers = []
        for delay_s in (0.004, 0.002, 0.002, 0.002):  # for each 64 KiB: 16 MB/s and 33 MB/s
            port = stack.enter_context(slow_link(server, delay_s))
            worker = RemoteWorker("127.0.0.1", port, key=KEY)
            workers.append(stack.enter_context(worker))
        contestants = {
            OURS: lambda: seconds(lambda: give_all(workers, array)),
            LIMIT: lambda: seconds(lambda: give(workers[0], array)),
            "one after the other": lambda: seconds(
                lambda: [give(worker, array) for worker in workers]
            ),
        }
        samples = interleave(contestants, 3 if quick else 9)
    name = f"{SLOW_BYTES >> 20} MiB over 4 links with broadcast (limit: the slowest alone)"
    return Figure(name, "s", samples, SLOWEST_TARGET)


@contextlib.contextmanager
def slow_link(server: Served, delay_s: float) -> Iterator[int]:
    """Yield a port that leads to a server, in a child, with a delay for each 64 KiB."""
    read_end, write_end = os.pipe()

    def run_child() -> None:
        with Proxy((server.host, server.port), delay_s=delay_s) as proxy:
            os.write(write_end, f"{proxy.port}\n".encode())
            signal.pause()

    with open(read_end) as pipe, forked(run_child):
        os.close(write_end)
        yield int(pipe.readline())


def send_through_ssh(quick: bool) -> Iterator[Figure]:
    """Send to a worker through ssh's tunnel, beside `ssh cat` for as many bytes."""
    import numpy

    array = numpy.ones(NBYTES // (16 if quick else 1), "u1")
    with (
        tempfile.TemporaryDirectory() as folder,
        ssh.loopback_nodes(Path(folder)) as nodes,
        Cluster([tunnelled(nodes)]) as cluster,
        cat_through_ssh(nodes) as cat,
    ):
        (worker,) = cluster.start("benchmarks.growth.answer")
        contestants = {
            OURS: lambda: mebibytes_a_second(worker, array),
            LIMIT: lambda: array.nbytes / seconds(lambda: give_to_cat(cat, array.data)) / 2**20,
        }
        samples = interleave(contestants, 3 if quick else 9)
        yield Figure("64 MiB through tunnel=True (limit: ssh cat)", "MiB/s", samples, None, True)
        contestants = {
            OURS: lambda: seconds(lambda: give(worker, "word"), 100) * 1e6,
            LIMIT: lambda: seconds(lambda: give_to_cat(cat, b"word" * 8), 100) * 1e6,
        }
        samples = interleave(contestants, 3 if quick else 15)
        yield Figure("a word through tunnel=True and back (limit: ssh cat)", "us", samples)
        with direct(encrypt=True) as encrypted, direct(encrypt=False) as plain:
            ways = {OURS: encrypted, LIMIT: worker, "in clear": plain}
            contestants = {
                who: partial(mebibytes_a_second, way, array) for who, way in ways.items()
            }
            samples = interleave(contestants, 3 if quick else 15)
        name = "64 MiB with encrypt=True (limit: tunnel=True)"
        yield Figure(name, "MiB/s", samples, ENCRYPTED_TARGET, True)


def mebibytes_a_second(worker: Channel, array: Any) -> float:
    """Return how fast a worker takes an array in."""
    return float(array.nbytes / seconds(lambda: give(worker, array)) / 2**20)


@contextlib.contextmanager
def direct(*, encrypt: bool) -> Iterator[RemoteWorker]:
    """Yield a worker over TCP."""
    with Cluster([NodeConfig.local(encrypt=encrypt)]) as cluster:
        (worker,) = cluster.start("benchmarks.growth.answer")
        yield worker


def tunnelled(nodes: ssh.LoopbackNodes) -> NodeConfig:
    """Return the first node, to be reached through its ssh session alone."""
    return NodeConfig(
        nodes.hosts[0], 1, python=sys.executable, ssh_options=nodes.ssh_options, tunnel=True
    )


@contextlib.contextmanager
def cat_through_ssh(nodes: ssh.LoopbackNodes) -> Iterator["subprocess.Popen[bytes]"]:
    """Yield a session that answers with the last byte of what it is told to expect."""
    # As bare as a count allows: the shell says how much, head takes it, and printf answers.
    script = "while read n; do head -c $n >/dev/null; printf t; done"
    command = ["ssh", *nodes.ssh_options, nodes.hosts[0], script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as session:
        yield session
        assert session.stdin is not None
        session.stdin.close()


def give_to_cat(session: "subprocess.Popen[bytes]", raw: bytes | memoryview) -> None:
    """Do what `give` does through plain ssh."""
    assert session.stdin is not None
    assert session.stdout is not None
    session.stdin.write(f"{len(raw)}\n".encode())
    session.stdin.flush()
    session.stdin.write(raw)
    session.stdin.flush()
    assert session.stdout.read(1) == b"t"
