"""How costs grow: with a message's size, with the number of its buffers, and with the workers."""

import contextlib
import multiprocessing.connection
import socket
import struct
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from benchmarks.measure import (
    KEY,
    LIMIT,
    OURS,
    Curve,
    Figure,
    interleave,
    other_end,
    pinned,
    seconds,
    serving,
    two_cores,
)
from benchmarks.small import tcp_pair
from benchmarks.tensor import fill, pour
from miniray import Channel, RemoteWorker, Worker, broadcast

BUFFER_BYTES = 64
BROADCAST_BYTES = 4 * 1024 * 1024
BYTES_MAX = 1 << 30
LINEAR = 1.25
LENGTH = struct.Struct("!Q")


def run(quick: bool) -> Iterator[Figure | Curve]:
    """Yield curves, and a figure for each that is to be a straight line."""
    yield from grow_message(quick)
    yield from grow_buffers(quick)
    yield from grow_broadcast(quick)


def grow_message(quick: bool) -> Iterator[Curve]:
    """Send an array of more and more bytes, and wait for a short answer."""
    import numpy

    powers, repetitions = ((6, 16), 3) if quick else (range(6, 31, 2), 7)
    local_curve = Curve("an array to a Worker and a short answer", "bytes", "s")
    tcp_curve = Curve("an array to a RemoteWorker and a short answer", "bytes", "s")
    raw = numpy.ones(1 << powers[-1], "u1")
    with (
        pinned(two_cores()[1]),
        serving(answer, key=KEY) as server,
        RemoteWorker(server.host, server.port, key=KEY) as remote,
        Worker(answer) as local,
        other_end(socket.socketpair(), read_bytes) as unix,
        other_end(tcp_pair(), read_bytes) as tcp,
        pinned(two_cores()[0]),
    ):
        for power in powers:
            part, rounds = raw[: 1 << power], max(1, min(300, (1 << 26) >> power))
            for curve, ours, bare in ((local_curve, local, unix), (tcp_curve, remote, tcp)):
                contestants = {
                    OURS: partial(seconds, partial(give, ours, part), rounds),
                    LIMIT: partial(seconds, partial(give_bytes, bare, part.data), rounds),
                }
                curve.add(1 << power, interleave(contestants, repetitions))
    yield local_curve
    yield tcp_curve


def grow_buffers(quick: bool) -> Iterator[Figure | Curve]:
    """Send a list of more and more small `bytes`, and wait for a short answer."""
    powers, repetitions = ((1, 2), 3) if quick else ((1, 2, 3, 4, 5), 7)
    curve = Curve(f"a list of `bytes` of {BUFFER_BYTES} each, to a Worker", "buffers", "s")
    with Worker(answer) as worker, other_end(multiprocessing.Pipe(), answer_pickles) as pipe:
        for power in powers:
            message, rounds = [bytes(BUFFER_BYTES)] * 10**power, max(1, 10_000 // 10**power)
            contestants = {
                OURS: partial(seconds, partial(give, worker, message), rounds),
                "multiprocessing.Pipe": partial(seconds, partial(give, pipe, message), rounds),
            }
            curve.add(10**power, interleave(contestants, repetitions))
        yield curve
        many, few = ([bytes(BUFFER_BYTES)] * 10**power for power in (powers[-1], powers[-3:][0]))
        contestants = {
            OURS: lambda: seconds(lambda: give(worker, many)) / len(many) * 1e6,
            LIMIT: lambda: seconds(lambda: give(worker, few), 100) / len(few) * 1e6,
        }
        name = f"each of {len(many):,} small buffers (limit: each of {len(few):,})"
        yield Figure(name, "us", interleave(contestants, repetitions), LINEAR)


def grow_broadcast(quick: bool) -> Iterator[Curve]:
    """Send an array to more and more workers at once, beside one after the other."""
    import numpy

    counts, repetitions = ((1, 4), 3) if quick else ((1, 2, 4, 8, 16, 32, 64), 9)
    array = numpy.ones(BROADCAST_BYTES, "u1")
    for kind in ("Workers", "RemoteWorkers"):
        curve = Curve(f"{BROADCAST_BYTES >> 20} MiB to each of N {kind}", "workers", "s")
        with contextlib.ExitStack() as stack:
            workers: list[Channel] = []
            if kind == "Workers":
                workers += [stack.enter_context(Worker(answer)) for _ in range(counts[-1])]
            else:
                server = stack.enter_context(serving(answer, key=KEY))
                for _ in range(counts[-1]):
                    remote = RemoteWorker(server.host, server.port, key=KEY)
                    workers.append(stack.enter_context(remote))
            for count in counts:
                some = workers[:count]
                contestants = {
                    OURS: partial(seconds, partial(give_all, some, array)),
                    "one after the other": partial(seconds, partial(give_each, some, array)),
                }
                curve.add(count, interleave(contestants, repetitions))
        yield curve


def answer(channel: Channel) -> None:
    """Say of each message that it is here."""
    for _ in channel:
        channel.send("taken")


def give(channel: Any, message: Any) -> None:
    """Send a message, and wait until the other side has all of it."""
    channel.send(message)
    assert channel.recv() == "taken"


def give_all(channels: Sequence[Channel], message: Any) -> None:
    """Send one message to all, and wait until each has all of it."""
    broadcast(channels, message)
    for channel in channels:
        assert channel.recv() == "taken"


def give_each(channels: Sequence[Channel], message: Any) -> None:
    """Do the same with one `send` after the other."""
    for channel in channels:
        channel.send(message)
    for channel in channels:
        assert channel.recv() == "taken"


def give_bytes(sock: socket.socket, raw: memoryview) -> None:
    """Do what `give` does, without messages."""
    sock.sendall(LENGTH.pack(len(raw)))
    pour(sock, raw)
    assert sock.recv(1) == b"t"


def read_bytes(sock: socket.socket) -> None:
    """Read what is announced into one buffer, and say that it is here."""
    buffer = memoryview(bytearray(BYTES_MAX))  # costs nothing until bytes arrive in it
    while length := sock.recv(LENGTH.size, socket.MSG_WAITALL):
        fill(sock, buffer[: LENGTH.unpack(length)[0]])
        sock.sendall(b"t")


def answer_pickles(pipe: multiprocessing.connection.Connection) -> None:
    """Do what `answer` does through multiprocessing."""
    while True:
        pipe.recv()
        pipe.send("taken")
