"""Tensors of 64 and 512 MiB to a RemoteWorker, beside gloo's send and a bare `recv_into` loop."""

import contextlib
import functools
import socket
from collections.abc import Callable, Iterator

from benchmarks.growth import answer, give, give_bytes, read_bytes
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
from benchmarks.start import free_port
from benchmarks.tensor import GIB, TARGET
from miniray import RemoteWorker

MEBIBYTES = (64, 512)


def run(quick: bool) -> Iterator[Figure]:
    """Yield two figures for each size, in GiB a second."""
    import torch  # before the fork, once for all

    for mebibytes in (1,) if quick else MEBIBYTES:
        nbytes, repetitions = mebibytes << 20, 3 if quick else 15
        our_core, their_core = two_cores()
        pin(their_core)
        with (
            serving(answer, key=KEY, core=their_core) as server,
            RemoteWorker(server.host, server.port, key=KEY) as remote,
            other_end(tcp_pair(), read_bytes) as tcp,
            gloo_taker(tcp_pair(), nbytes) as gloo,
        ):
            pin(our_core)
            # Not before the forks: filling it starts torch's threads.
            tensor = torch.rand(nbytes // 4)
            raw = tensor.numpy().data.cast("B")
            transfers = {
                OURS: functools.partial(give, remote, tensor),
                LIMIT: functools.partial(give_bytes, tcp, raw),
                "gloo": functools.partial(give_by_gloo, gloo, tensor),
            }
            contestants = {
                who: functools.partial(speed, one, nbytes) for who, one in transfers.items()
            }
            samples = interleave(contestants, repetitions)
            name = f"{mebibytes} MiB tensor to a RemoteWorker"
            two = {who: samples[who] for who in (OURS, LIMIT)}
            yield Figure(f"{name}, beside a bare loop", "GiB/s", two, TARGET, True)
            two = {OURS: samples[OURS], LIMIT: samples["gloo"]}
            yield Figure(f"{name} (limit: gloo's send)", "GiB/s", two, 1.0, True)


def speed(transfer: Callable[[], object], nbytes: int) -> float:
    """Return GiB a second."""
    return nbytes / GIB / seconds(transfer, max(1, (256 << 20) // nbytes))


@contextlib.contextmanager
def gloo_taker(pair: tuple[socket.socket, socket.socket], nbytes: int) -> Iterator[socket.socket]:
    """Yield a socket that answers for a child whose tensor gloo fills: rank 1, and we are 0."""
    import torch.distributed as dist

    port = free_port()

    def take(theirs: socket.socket) -> None:
        import torch

        join_gloo(1, port)
        buffer = torch.zeros(nbytes // 4)
        while theirs.recv(1):
            dist.recv(buffer, 0)
            theirs.sendall(b"t")

    with other_end(pair, take) as ours:
        join_gloo(0, port)
        try:
            yield ours
        finally:
            dist.destroy_process_group()


def join_gloo(rank: int, port: int) -> None:
    """Become one of two ranks on loopback."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)


def give_by_gloo(sock: socket.socket, tensor: object) -> None:
    """Do what `give` does, with gloo's send."""
    import torch.distributed as dist

    sock.sendall(b"t")
    dist.send(tensor, 1)
    assert sock.recv(1) == b"t"
