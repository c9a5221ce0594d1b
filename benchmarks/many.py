"""One small message to each of 1 to 1000 echo workers and back, beside a bare epoll loop."""

import contextlib
import os
import select
import socket
import time
from collections.abc import Iterator, Sequence
from functools import partial

from benchmarks.measure import (
    LIMIT,
    OURS,
    Curve,
    Figure,
    allow_descriptors,
    interleave,
    other_end,
    seconds,
)
from benchmarks.small import FRAME, MESSAGE, echo
from miniray import Worker, wait

TARGET = 1.25
START_S = 3.0
DESCRIPTORS_EACH = 5  # a socket and a pidfd for ours, a copy of that, the same for the bare one


def run(quick: bool) -> Iterator[Figure | Curve]:
    """Yield two curves, and a figure of how long the most workers take to start."""
    counts, repetitions = ((1, 10, 100), 5) if quick else ((1, 3, 10, 30, 100, 300, 1000), 15)
    most = counts[-1]
    allow_descriptors(DESCRIPTORS_EACH * most + 100)
    curve = Curve("a small dict to N Workers and back, with `wait`", "workers", "s", target=TARGET)
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(echo)) for _ in range(most)]
        same = [
            stack.enter_context(socket.socket(fileno=os.dup(worker.descriptor())))
            for worker in workers
        ]
        for count in counts:
            some, bare, rounds = workers[:count], same[:count], max(1, 300 // count)
            contestants = {
                OURS: partial(seconds, partial(ask, some), rounds),
                LIMIT: partial(seconds, partial(ask_bare, bare), rounds),
            }
            curve.add(count, interleave(contestants, repetitions))
    yield curve

    curve = Curve("N Workers started, each with a word to say", "workers", "s")
    for count in counts:
        contestants = {
            OURS: partial(start, count),
            LIMIT: partial(start_bare, count),
        }
        samples = interleave(contestants, 2 if quick else 5)
        curve.add(count, samples)
    yield curve
    asked = {OURS: samples[OURS], LIMIT: [START_S] * len(samples[OURS])}
    yield Figure(f"{most} Workers started (limit: what is asked)", "s", asked, 1.0)


def ask(workers: Sequence[Worker]) -> None:
    """Send to all workers, and gather their answers as they come."""
    for worker in workers:
        worker.send(MESSAGE)
    waiting = set(workers)
    while waiting:
        for worker in wait(waiting):
            assert worker.recv() == MESSAGE
            waiting.remove(worker)


def ask_bare(sockets: Sequence[socket.socket]) -> None:
    """Do the same with the frames' bytes and one epoll object that is filled once."""
    for sock in sockets:
        sock.send(FRAME)
    waiting = {sock.fileno(): sock for sock in sockets}
    with select.epoll() as poller:
        for descriptor in waiting:
            poller.register(descriptor, select.EPOLLIN)
        while waiting:
            for descriptor, _ in poller.poll():
                sock = waiting.pop(descriptor)
                assert sock.recv(len(FRAME)) == FRAME
                poller.unregister(descriptor)


def start(count: int) -> float:
    """Return the seconds to start so many workers, and to hear from each; then end them."""
    begun = time.perf_counter()
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(Worker(lambda channel: channel.send(1))) for _ in range(count)
        ]
        for worker in workers:
            assert worker.recv() == 1
        return time.perf_counter() - begun


def start_bare(count: int) -> float:
    """Do the same with a fork and a socketpair each."""
    begun = time.perf_counter()
    with contextlib.ExitStack() as stack:
        ends = [
            stack.enter_context(other_end(socket.socketpair(), lambda end: end.send(FRAME)))
            for _ in range(count)
        ]
        for end in ends:
            assert end.recv(len(FRAME)) == FRAME
        return time.perf_counter() - begun
