"""One small message to each of 1000 echo workers and back, beside a bare epoll loop over them."""

import contextlib
import os
import resource
import select
import socket
import time
from collections.abc import Iterator, Sequence

from benchmarks.measure import LIMIT, OURS, Figure, interleave
from benchmarks.small import FRAME, MESSAGE, bare_echo, echo
from miniray import Worker, wait

DESCRIPTORS_EACH = 5  # a socket and a pidfd for ours, a copy of that, the same for the bare one


def run(quick: bool) -> Iterator[Figure]:
    """Yield one figure, in milliseconds for all workers."""
    count, repetitions = (100, 5) if quick else (1000, 31)
    _allow_descriptors(DESCRIPTORS_EACH * count + 100)
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(echo)) for _ in range(count)]
        sockets = [stack.enter_context(bare_echo(socket.socketpair())) for _ in range(count)]
        same = [
            stack.enter_context(socket.socket(fileno=os.dup(worker.descriptor())))
            for worker in workers
        ]
        contestants = {
            OURS: lambda: time_workers(workers),
            LIMIT: lambda: time_sockets(same),
            "children that echo bytes": lambda: time_sockets(sockets),
        }
        samples = interleave(contestants, repetitions)
        yield Figure(f"{count} Workers sent to and gathered with wait", "ms", samples)


def time_workers(workers: Sequence[Worker]) -> float:
    """Return the milliseconds to send to all workers and to gather their answers as they come."""
    start = time.perf_counter()
    for worker in workers:
        worker.send(MESSAGE)
    waiting = set(workers)
    while waiting:
        for worker in wait(waiting):
            assert worker.recv() == MESSAGE
            waiting.remove(worker)
    return (time.perf_counter() - start) * 1e3


def time_sockets(sockets: Sequence[socket.socket]) -> float:
    """Do the same with the frames' bytes and one epoll object that is filled once."""
    start = time.perf_counter()
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
    return (time.perf_counter() - start) * 1e3


def _allow_descriptors(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
