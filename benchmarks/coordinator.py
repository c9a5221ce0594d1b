"""What each rank and each node cost their coordinator, and whether that grows as a model says."""

import contextlib
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.growth import answer, give_each
from benchmarks.measure import KEY, OURS, Curve, allow_descriptors, interleave, seconds, serving
from miniray import Channel, Cluster, NodeConfig, RemoteWorker, wait

SMALL = "are you there?"


def run(quick: bool) -> Iterator[Curve]:
    """Yield curves over the ranks of one coordinator, then over its nodes."""
    yield from grow_ranks(quick)
    yield from grow_nodes(quick)


def grow_ranks(quick: bool) -> Iterator[Curve]:
    """Connect to more and more ranks: descriptors, memory, a word to all, and an idle wait."""
    counts, repetitions = ((1, 10), 3) if quick else ((10, 30, 100, 300, 1000), 9)
    curves = [
        Curve("descriptors for N ranks", "ranks", ""),
        Curve("memory for N ranks", "ranks", "KiB"),
        Curve("connecting to the last of N ranks", "ranks", "s"),
        Curve("a word to each of N ranks and back", "ranks", "s"),
        Curve("one of N ranks speaks: wait and recv", "ranks", "s"),
    ]
    allow_descriptors(2 * counts[-1] + 100)
    with (
        contextlib.ExitStack() as stack,
        serving(answer, key=KEY, max_workers=counts[-1]) as server,
    ):
        ranks: list[Channel] = []

        def connect() -> None:
            ranks.append(stack.enter_context(RemoteWorker(server.host, server.port, key=KEY)))

        connect()
        give_each(ranks, SMALL)  # what comes into being with the first, it does for all
        before = count_descriptors() - 1, read_memory_kib()
        for count in counts:
            connecting = [seconds(connect) for _ in range(count - len(ranks))] or [0.0]
            contestants = {
                "all": partial(seconds, partial(give_each, ranks, SMALL)),
                "one": partial(seconds, partial(hear_from_one, ranks), 30),
            }
            samples = interleave(contestants, repetitions)
            measured = (
                [count_descriptors() - before[0]],
                [read_memory_kib() - before[1]],
                connecting[-30:],
                samples["all"],
                samples["one"],
            )
            for curve, values in zip(curves, measured, strict=True):
                curve.add(count, {OURS: [float(value) for value in values]})
    yield from curves


def grow_nodes(quick: bool) -> Iterator[Curve]:
    """Start more and more local nodes, and count our descriptors."""
    counts = (1, 2) if quick else (1, 2, 4, 8, 16)
    descriptors = Curve("descriptors for N nodes with a rank each", "nodes", "")
    for count in counts:
        before = count_descriptors()
        nodes = [NodeConfig.local(1, host=f"node{number}") for number in range(count)]
        with Cluster(nodes) as cluster:
            give_each(cluster.start("benchmarks.growth.answer"), SMALL)
            descriptors.add(count, {OURS: [float(count_descriptors() - before)]})
    yield descriptors


def hear_from_one(ranks: list[Channel]) -> None:
    """Have one rank answer, and find it among all."""
    ranks[-1].send(SMALL)
    (ready,) = wait(ranks)
    assert ready.recv() == "taken"


def count_descriptors() -> int:
    """Return how many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


def read_memory_kib() -> int:
    """Return what this process alone has in memory."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
