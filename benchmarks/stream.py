"""A hundred thousand small messages one way, beside `multiprocessing.Pipe`; 64 workers at once."""

import contextlib
import multiprocessing.connection
import time
from collections.abc import Callable, Iterator

from benchmarks.measure import KEY, LIMIT, OURS, Figure, interleave, other_end, serving
from benchmarks.small import MESSAGE
from miniray import Channel, RemoteWorker, Worker, wait

TARGET = 1.3
KIBIBYTE = b"x" * 1024
MIB_TARGET = 100.0


def run(quick: bool) -> Iterator[Figure]:
    """Yield figures in messages a second, and one in MiB a second."""
    count, repetitions = (2_000, 3) if quick else (100_000, 7)
    with (
        Worker(pour_when_told) as local,
        serving(pour_when_told, key=KEY) as server,
        RemoteWorker(server.host, server.port, key=KEY) as remote,
        other_end(multiprocessing.Pipe(), pour_pickles) as pipe,
    ):

        def compare(name: str, ours: Callable[[], float]) -> Figure:
            contestants = {OURS: ours, LIMIT: lambda: receive_from_pipe(pipe, count)}
            samples = interleave(contestants, repetitions)
            return Figure(name, "/s", samples, TARGET, higher_is_better=True)

        yield compare("small dicts from a Worker", lambda: receive(local, count, "small"))
        yield compare("small dicts from a RemoteWorker", lambda: receive(remote, count, "small"))
        many = 4 if quick else 64
        with contextlib.ExitStack() as stack:
            workers = [stack.enter_context(Worker(pour_when_told)) for _ in range(many)]
            each = count // many
            yield compare(
                f"small dicts from {many} Workers, one `wait` loop",
                lambda: receive_from_all(workers, each),
            )
        contestants = {
            OURS: lambda: receive(local, count, "1 KiB") / 1024,
            LIMIT: lambda: MIB_TARGET,  # not a limit, but what is asked
        }
        samples = interleave(contestants, repetitions)
        yield Figure("1 KiB bytes from a Worker", "MiB/s", samples, 1.0, higher_is_better=True)


def pour_when_told(channel: Channel) -> None:
    """Send so many messages, as often as told."""
    for count, what in channel:
        message = MESSAGE if what == "small" else KIBIBYTE
        for _ in range(count):
            channel.send(message)


def receive(channel: Channel, count: int, what: str) -> float:
    """Return how many messages a second come in."""
    start = time.perf_counter()
    channel.send((count, what))
    for _ in range(count):
        channel.recv()
    return count / (time.perf_counter() - start)


def receive_from_all(workers: list[Worker], each: int) -> float:
    """Return how many messages a second come in from all together."""
    start = time.perf_counter()
    left = {}
    for worker in workers:
        worker.send((each, "small"))
        left[worker] = each
    while left:
        for worker in wait(left):
            worker.recv()
            left[worker] -= 1
            if not left[worker]:
                del left[worker]
    return each * len(workers) / (time.perf_counter() - start)


def receive_from_pipe(pipe: multiprocessing.connection.Connection, count: int) -> float:
    """Return how many messages a second come in through multiprocessing, with pickle."""
    start = time.perf_counter()
    pipe.send(count)
    for _ in range(count):
        pipe.recv()
    return count / (time.perf_counter() - start)


def pour_pickles(pipe: multiprocessing.connection.Connection) -> None:
    """Do what `pour_when_told` does through multiprocessing."""
    while True:
        for _ in range(pipe.recv()):
            pipe.send(MESSAGE)
