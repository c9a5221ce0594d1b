"""One message to many: each has it, whoever is slow, dead or of another kind."""

import contextlib
import os
import signal
import socket
import threading
import time
from typing import Any

import pytest

from miniray import (
    Channel,
    Cluster,
    NodeConfig,
    RemoteWorker,
    Worker,
    WorkerDied,
    broadcast,
    loans,
    process,
)
from tests import work
from tests.support.servers import serving

T = 20.0


def test_local_and_remote_workers_have_it() -> None:
    torch = pytest.importorskip("torch")
    message = {"step": 1, "x": torch.arange(1 << 18), "y": (1, b"raw")}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(work.echo))
        workers: list[Any] = [stack.enter_context(Worker(work.echo)) for _ in range(3)]
        workers += [stack.enter_context(RemoteWorker(server.host, server.port)) for _ in range(3)]
        for _ in range(2):
            broadcast(workers, message, T)
            for worker in workers:
                arrived = worker.recv(T)
                assert torch.equal(arrived["x"], message["x"])
                assert (arrived["step"], arrived["y"]) == (1, (1, b"raw"))


def test_all_ranks_of_a_cluster_have_it() -> None:
    nodes = [NodeConfig.local(2, host="node1"), NodeConfig.local(1, host="node2")]
    with Cluster(nodes) as cluster:
        ranks = cluster.start("tests.work.echo")
        cluster.broadcast({"step": 1}, T)
        assert [rank.recv(T) for rank in ranks] == [{"step": 1}] * 3


def test_local_workers_share_one_copy() -> None:
    torch = pytest.importorskip("torch")
    loans.empty()
    pairs = [socket.socketpair() for _ in range(5)]
    with contextlib.ExitStack() as stack:
        ours = [stack.enter_context(Channel(left, memfd=True)) for left, _ in pairs]
        theirs = [stack.enter_context(Channel(right, memfd=True)) for _, right in pairs]
        broadcast(ours, torch.ones(1 << 18), T)
        held = [one.recv(T) for one in theirs]
        (piece,) = loans.lender.pieces
        while held:
            assert not piece.is_free()
            assert int(held.pop().sum()) == 1 << 18
        assert piece.is_free()


def test_nobody_sees_what_another_writes_into_the_copy() -> None:
    torch = pytest.importorskip("torch")
    pairs = [socket.socketpair() for _ in range(2)]
    with contextlib.ExitStack() as stack:
        ours = [stack.enter_context(Channel(left, memfd=True)) for left, _ in pairs]
        theirs = [stack.enter_context(Channel(right, memfd=True)) for _, right in pairs]
        for _ in range(3):
            broadcast(ours, torch.zeros(1 << 18), T)
            first = theirs[0].recv(T)
            first += 1
            second = theirs[1].recv(T)
            assert not second.any()
            second += 2
            assert bool((first == 1).all())
        child = process.fork(lambda: int(first[0] + second[0]))
        assert child.wait(T) == 3
        assert [int(first[5]), int(second[5])] == [1, 2]


@pytest.mark.thorough
def test_a_slow_one_holds_nobody_up() -> None:
    pairs = [socket.socketpair() for _ in range(4)]
    with contextlib.ExitStack() as stack:
        ours = [
            stack.enter_context(Channel(left, name=f"n{i}")) for i, (left, _) in enumerate(pairs)
        ]
        theirs = [stack.enter_context(Channel(right)) for _, right in pairs]
        arrived: list[int] = []

        def receive(index: int) -> None:
            assert len(theirs[index].recv(T)) == 1 << 20
            arrived.append(index)

        threads = [threading.Thread(target=receive, args=(index,)) for index in (1, 2, 3)]
        for thread in threads:
            thread.start()
        begun = time.monotonic()
        with pytest.raises(TimeoutError, match=r"n0 took nothing in for 4\.0s"):
            broadcast(ours, bytes(1 << 20), 4.0)
        assert time.monotonic() - begun < 10
        for thread in threads:
            thread.join()
        assert sorted(arrived) == [1, 2, 3]
        assert [one.ended is None for one in ours] == [False, True, True, True]


def test_a_dead_one_is_named_after_the_others_have_it() -> None:
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(work.echo, name=f"w{i}")) for i in range(3)]
        os.kill(workers[1].pid, signal.SIGKILL)
        workers[1].wait(T)
        with pytest.raises(WorkerDied, match="w1 was killed by SIGKILL"):
            broadcast(workers, "hello", T)
        assert [workers[0].recv(T), workers[2].recv(T)] == ["hello"] * 2


def test_both_sides_may_send_a_large_message_at_once() -> None:
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(send_and_receive)) for _ in range(3)]
        broadcast(workers, "x" * (4 << 20), T)
        for worker in workers:
            assert len(worker.recv(T)) == 4 << 20
            assert worker.recv(T) == 4 << 20


def send_and_receive(channel: Channel) -> None:
    channel.send("y" * (4 << 20))
    channel.send(len(channel.recv()))


def test_what_cannot_be_sent_is_sent_to_nobody() -> None:
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(work.echo)) for _ in range(2)]
        with pytest.raises(TypeError, match="object"):
            broadcast(workers, {"x": object()})
        broadcast(workers, "usable", T)
        assert [worker.recv(T) for worker in workers] == ["usable"] * 2


def test_to_nobody_and_to_one_twice() -> None:
    broadcast([], "hello")
    with Worker(work.echo) as worker:
        broadcast([worker, worker], 1, T)
        worker.send(2)
        assert [worker.recv(T), worker.recv(T)] == [1, 2]


def test_two_threads_do_not_wait_for_each_other() -> None:
    pairs = [socket.socketpair() for _ in range(6)]
    with contextlib.ExitStack() as stack:
        ours = [stack.enter_context(Channel(left)) for left, _ in pairs]
        theirs = [stack.enter_context(Channel(right)) for _, right in pairs]

        def send(channels: list[Channel]) -> None:
            for number in range(50):
                broadcast(channels, number, T)

        threads = [threading.Thread(target=send, args=(order,)) for order in (ours, ours[::-1])]
        for thread in threads:
            thread.start()
        for one in theirs:
            assert sorted(one.recv(T) for _ in range(100)) == sorted([*range(50)] * 2)
        for thread in threads:
            thread.join()
