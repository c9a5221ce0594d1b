"""A 64 MiB tensor from one process to another, beside a bare `recv_into` loop of as many bytes."""

import contextlib
import functools
import select
import socket
from collections.abc import Callable, Iterator, Sequence

from benchmarks.measure import (
    KEY,
    LIMIT,
    OURS,
    Figure,
    interleave,
    other_end,
    pin,
    seconds,
    serving,
    two_cores,
)
from benchmarks.small import tcp_pair
from miniray import Channel, RemoteWorker, SharedTensor, Worker, broadcast

NBYTES = 64 * 1024 * 1024
TARGET = 0.95
LOCAL_TARGET = 0.7
SHARED_US = 100.0
MANY = 400
GIB = 1024**3


def run(quick: bool) -> Iterator[Figure]:
    """Yield figures for both directions over TCP and for a Worker's ways, in GiB a second."""
    repetitions, rounds = (3, 1) if quick else (21, 4)
    import torch  # before the fork, once for all

    # Sender and receiver each have a core, as two machines would; all contestants alike.
    our_core, their_core = two_cores()
    pin(their_core)
    with (
        serving(take_and_give, key=KEY, core=their_core) as server,
        RemoteWorker(server.host, server.port, key=KEY) as remote,
        # One connection a contestant: what one does shapes TCP's windows for all that follows.
        other_end(tcp_pair(), take_and_give_bytes) as tcp,
        other_end(tcp_pair(), take_and_give_bytes) as tcp_of_sendall,
        Worker(take_and_give) as local,
        other_end(socket.socketpair(), take_and_give_bytes) as unix,
    ):
        pin(our_core)
        # Not before the forks: filling it starts torch's threads.
        tensor = torch.rand(NBYTES // 4)
        raw, buffer = tensor.numpy().data.cast("B"), memoryview(bytearray(NBYTES))

        def compare(
            name: str,
            ours: Callable[[], object],
            limit: Callable[[], object],
            target: float | None = None,
            **peers: Callable[[], object],
        ) -> Figure:
            transfers = {OURS: ours, LIMIT: limit, **peers}
            contestants = {
                who: functools.partial(throughput, transfer, rounds)
                for who, transfer in transfers.items()
            }
            samples = interleave(contestants, repetitions)
            return Figure(name, "GiB/s", samples, target, higher_is_better=True)

        yield compare(
            "64 MiB tensor to a RemoteWorker",
            lambda: give(remote, tensor),
            lambda: give_bytes(tcp, raw),
            TARGET,
            sendall=lambda: give_bytes(tcp_of_sendall, raw, socket.socket.sendall),
        )
        yield compare(
            "64 MiB tensor from a RemoteWorker",
            lambda: take(remote),
            lambda: take_bytes(tcp, buffer),
            TARGET,
            sendall=lambda: take_bytes(tcp_of_sendall, buffer, b"G"),
        )
        yield compare(
            "64 MiB tensor to a Worker, again and again (limit: memcpy)",
            lambda: give(local, tensor),
            lambda: copy(raw, buffer),
            LOCAL_TARGET,
            socketpair=lambda: give_bytes(unix, raw),
        )
        many = {f"layer{number}": part for number, part in enumerate(tensor.chunk(MANY))}
        yield compare(
            f"{MANY} tensors of 64 MiB in all to a Worker (limit: one tensor)",
            lambda: give(local, many),
            lambda: give(local, tensor),
            LOCAL_TARGET,
        )
        with contextlib.ExitStack() as stack:
            workers = [stack.enter_context(Worker(take_and_give)) for _ in range(8)]
            yield compare(
                "64 MiB tensor to 8 Workers with broadcast (limit: to one)",
                lambda: give_all(workers, tensor),
                lambda: give(local, tensor),
            )
        pin(their_core)  # as for all latencies: on two cores it is how long one takes to wake up
        for mebibytes in (1, 1024):
            shared = SharedTensor((mebibytes * 2**18,))
            contestants = {
                OURS: functools.partial(
                    microseconds, functools.partial(give, local, shared), rounds * 50
                ),
                LIMIT: lambda: SHARED_US,  # not a limit, but what is asked
            }
            name = f"{mebibytes} MiB SharedTensor to a Worker and an answer"
            yield Figure(name, "us", interleave(contestants, repetitions), 1.0)


def throughput(transfer: Callable[[], object], rounds: int) -> float:
    """Return GiB a second."""
    return NBYTES / GIB / seconds(transfer, rounds)


def microseconds(transfer: Callable[[], object], rounds: int) -> float:
    """Return the microseconds that one transfer takes."""
    return seconds(transfer, rounds) * 1e6


def copy(raw: memoryview, buffer: memoryview) -> None:
    """Copy as many bytes within this process, into memory that is used again."""
    buffer[:] = raw


def give_all(channels: Sequence[Channel], tensor: object) -> None:
    """Send a tensor to all, and wait until each has all of it."""
    broadcast(channels, {"batch": tensor})
    for channel in channels:
        assert channel.recv() == "taken"


def give(channel: Channel, tensor: object) -> None:
    """Send a tensor, and wait until the other side has all of it."""
    channel.send({"batch": tensor})
    assert channel.recv() == "taken"


def take(channel: Channel) -> None:
    """Ask for a tensor, and receive all of it."""
    channel.send("give")
    assert channel.recv()["batch"].nbytes == NBYTES


def take_and_give(channel: Channel) -> None:
    """Take tensors, and give one when asked."""
    import torch

    tensor = torch.rand(NBYTES // 4)
    for message in channel:
        channel.send({"batch": tensor} if message == "give" else "taken")


def pour(sock: socket.socket, raw: memoryview) -> None:
    """Send it all without ever blocking in `send`.

    That is faster than `sendall`, which keeps the socket locked in the kernel while it copies, so
    it is the limit; `sendall` stands beside it.
    """
    poller = select.poll()
    poller.register(sock, select.POLLOUT)
    while raw:
        try:
            raw = raw[sock.send(raw, socket.MSG_DONTWAIT) :]
        except BlockingIOError:
            poller.poll()


def give_bytes(
    sock: socket.socket,
    raw: memoryview,
    send: Callable[[socket.socket, memoryview], object] = pour,
) -> None:
    """Do what `give` does, without messages."""
    sock.sendall(b"t")
    send(sock, raw)
    assert sock.recv(1) == b"t"


def take_bytes(sock: socket.socket, buffer: memoryview, command: bytes = b"g") -> None:
    """Do what `take` does, without messages; with b"G" the other side uses `sendall`."""
    sock.sendall(command)
    fill(sock, buffer)


def fill(sock: socket.socket, buffer: memoryview) -> None:
    """Receive into a buffer that is reused until it is full: the limit that ours is held to."""
    filled = 0
    while filled < len(buffer):
        filled += sock.recv_into(buffer[filled:])


def take_and_give_bytes(sock: socket.socket) -> None:
    """Do what `take_and_give` does, without messages."""
    import torch

    raw = torch.rand(NBYTES // 4).numpy().data.cast("B")
    buffer = memoryview(bytearray(NBYTES))
    while command := sock.recv(1):
        if command == b"g":
            pour(sock, raw)
        elif command == b"G":
            sock.sendall(raw)
        else:
            fill(sock, buffer)
            sock.sendall(b"t")
