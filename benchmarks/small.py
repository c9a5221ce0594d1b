"""A small dict there and back, both ends on one core, beside the same bytes over a bare socket."""

import multiprocessing.connection
import socket
import time
from collections.abc import Iterator

from benchmarks.measure import (
    KEY,
    LIMIT,
    OURS,
    Figure,
    interleave,
    other_end,
    pin,
    serving,
    two_cores,
)
from miniray import Channel, RemoteWorker, Worker, wire

MESSAGE = {"cmd": "train", "step": 3, "lr": 0.001}
FRAME = wire.encode(wire.MESSAGE, MESSAGE).head
TARGET = 1.5


def run(quick: bool) -> Iterator[Figure]:
    """Yield one figure for socketpairs and one for TCP, in microseconds a round trip."""
    pin(two_cores()[0])  # on two cores the time is mostly the scheduler's
    repetitions, rounds = (9, 300) if quick else (101, 1000)
    with (
        Worker(echo) as ours,
        other_end(socket.socketpair(), echo_bytes) as limit,
        other_end(multiprocessing.Pipe(), echo_pickles) as pipe,
    ):
        contestants = {
            OURS: lambda: time_channel(ours, rounds),
            LIMIT: lambda: time_socket(limit, rounds),
            "multiprocessing.Pipe": lambda: time_pipe(pipe, rounds),
        }
        samples = interleave(contestants, repetitions)
        yield Figure("small dict there and back, Worker", "us", samples, TARGET)
    with (
        serving(echo, key=KEY) as server,
        RemoteWorker(server.host, server.port, key=KEY) as ours,
        other_end(tcp_pair(), echo_bytes) as limit,
    ):
        contestants = {
            OURS: lambda: time_channel(ours, rounds),
            LIMIT: lambda: time_socket(limit, rounds),
        }
        samples = interleave(contestants, repetitions)
        yield Figure("small dict there and back, RemoteWorker", "us", samples, TARGET)


def echo(channel: Channel) -> None:
    """Send every message back."""
    for message in channel:
        channel.send(message)


def time_channel(channel: Channel, rounds: int) -> float:
    """Return the microseconds that one round trip takes."""
    start = time.perf_counter()
    for _ in range(rounds):
        channel.send(MESSAGE)
        message = channel.recv()
    elapsed = time.perf_counter() - start
    assert message == MESSAGE
    return elapsed / rounds * 1e6


def time_socket(sock: socket.socket, rounds: int) -> float:
    """Return the microseconds that one round trip of as many bytes takes."""
    nbytes = len(FRAME)
    start = time.perf_counter()
    for _ in range(rounds):
        sock.send(FRAME)
        data = sock.recv(nbytes)
    elapsed = time.perf_counter() - start
    assert data == FRAME
    return elapsed / rounds * 1e6


def time_pipe(pipe: multiprocessing.connection.Connection, rounds: int) -> float:
    """Return the microseconds that one round trip takes through multiprocessing, with pickle."""
    start = time.perf_counter()
    for _ in range(rounds):
        pipe.send(MESSAGE)
        message = pipe.recv()
    elapsed = time.perf_counter() - start
    assert message == MESSAGE
    return elapsed / rounds * 1e6


def echo_bytes(sock: socket.socket) -> None:
    """Send back all that is received."""
    nbytes = len(FRAME)
    while data := sock.recv(nbytes):
        sock.send(data)


def echo_pickles(pipe: multiprocessing.connection.Connection) -> None:
    """Send every message back."""
    while True:
        pipe.send(pipe.recv())


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Return both ends of a TCP connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    for sock in (ours, theirs):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return ours, theirs
