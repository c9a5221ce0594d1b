"""Memory that large messages travel in: used again, and never while somebody has it."""

import contextlib
import gc
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from miniray import Channel, Worker, loans, process, wait

torch = pytest.importorskip("torch")
T = 20.0
LARGE = 1 << 18  # as many floats as are lent


@pytest.fixture(autouse=True)
def no_pieces_of_others() -> Iterator[None]:
    loans.empty()
    yield
    loans.empty()


@contextlib.contextmanager
def channels() -> Iterator[tuple[Channel, Channel]]:
    left, right = socket.socketpair()
    with Channel(left, memfd=True) as ours, Channel(right, memfd=True) as theirs:
        yield ours, theirs


def full(value: float, count: int = LARGE) -> Any:
    return torch.full((count,), float(value))


def test_the_same_memory_serves_one_message_after_another() -> None:
    with channels() as (ours, theirs):
        places = set()
        for value in range(5):
            ours.send({"x": full(value)})
            arrived = theirs.recv(T)["x"]
            assert bool((arrived == value).all())
            places.add(arrived.data_ptr())
            del arrived
        assert len(places) == 1
        assert len(loans.lender.pieces) == 1
        assert loans.lender.pieces[0].is_free()


def test_what_somebody_still_has_is_not_written_over() -> None:
    with channels() as (ours, theirs):
        kept = []
        for value in range(4):
            ours.send({"x": full(value), "y": full(value + 10, 7)})
            kept.append(theirs.recv(T)["y" if value % 2 else "x"][1:])  # a part keeps all of it
        for value, one in enumerate(kept):
            assert bool((one == (value + 10 if value % 2 else value)).all())
        assert not any(piece.is_free() for piece in loans.lender.pieces)
        kept.clear()
        del one
        assert all(piece.is_free() for piece in loans.lender.pieces)


def test_bytes_are_the_receivers_own_at_once() -> None:
    with channels() as (ours, theirs):
        ours.send([bytes(1 << 20), bytearray(b"x" * (1 << 20))])
        first, second = theirs.recv(T)
        (piece,) = loans.lender.pieces
        assert piece.is_free()
        ours.send([b"y" * (1 << 20)] * 2)
        assert (first, second) == (bytes(1 << 20), b"x" * (1 << 20))


def test_a_forked_child_and_its_parent_keep_what_they_had() -> None:
    """Neither sees the other's writes, nor what is sent later, however long it looks."""
    with channels() as (ours, theirs):
        ours.send(full(1))
        held = [theirs.recv(T)]
        held[0][0] = 5
        go, told = os.pipe()

        def look() -> int:
            held[0][1] = 6
            assert os.read(go, 1) == b"g"
            return int(held[0][:3].sum())

        child = process.fork(look)
        assert held[0][:3].tolist() == [5, 1, 1]
        held[0][2] = 7
        assert held.pop()[:3].tolist() == [5, 1, 7]
        for value in range(20, 24):
            ours.send(full(value))
            assert int(theirs.recv(T)[2]) == value
        os.write(told, b"g")
        assert child.wait(T) == 5 + 6 + 1
        os.close(go)
        os.close(told)


def test_few_pieces_are_kept_and_not_too_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    with channels() as (ours, theirs):
        kept = []
        for value in range(loans.PIECES_MAX + 4):
            ours.send(full(value))
            kept.append(theirs.recv(T))
        assert len(loans.lender.pieces) == loans.PIECES_MAX
        assert [int(one[-1]) for one in kept] == list(range(loans.PIECES_MAX + 4))
        kept.clear()
        monkeypatch.setattr(loans, "LENT_BYTES_MAX", 4 << 20)
        ours.send(full(9, 3 * LARGE))
        assert int(theirs.recv(T)[-1]) == 9
        assert sum(piece.nbytes for piece in loans.lender.pieces) <= 4 << 20


def test_what_is_too_large_to_keep_is_lent_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loans, "LENT_BYTES_MAX", 2 << 20)
    with channels() as (ours, theirs):
        gc.collect()
        before = shared_bytes()
        kept = []
        for value in range(3):
            ours.send(full(value, 4 * LARGE))
            kept.append(theirs.recv(T))
        assert [int(one[-1]) for one in kept] == [0, 1, 2]
        assert loans.lender.pieces == []
        kept.clear()
        gc.collect()
        assert shared_bytes() == before


def shared_bytes() -> int:
    """Return how much memory of ours is mapped here, on either side."""
    with open("/proc/self/maps") as maps:
        ranges = [line.split()[0].split("-") for line in maps if "memfd:miniray" in line]
    return sum(int(end, 16) - int(begin, 16) for begin, end in ranges)


def test_pieces_that_are_put_away_take_no_memory_though_the_other_side_knows_them() -> None:
    with channels() as (ours, theirs):
        ours.send(full(1))
        assert int(theirs.recv(T)[0]) == 1
        (piece,) = loans.lender.pieces
        descriptor = os.dup(piece.memory.descriptor)
        loans.empty()
        assert os.fstat(descriptor).st_size == loans.FLAGS_BYTES
        os.close(descriptor)
        ours.send(full(2))
        assert int(theirs.recv(T)[0]) == 2


def test_a_piece_that_is_put_away_while_somebody_has_it_is_freed_by_the_last() -> None:
    with channels() as (ours, theirs):
        ours.send(full(1))
        held = [theirs.recv(T)]
        descriptor = os.dup(loans.lender.pieces[0].memory.descriptor)
        loans.empty()
        assert os.fstat(descriptor).st_size > 1 << 20
        assert int(held[0].sum()) == LARGE
        held.clear()
        assert os.fstat(descriptor).st_size == loans.FLAGS_BYTES
        os.close(descriptor)


def test_a_channel_that_is_closed_gives_back_what_nobody_has_received() -> None:
    left, right = socket.socketpair()
    with Channel(left, memfd=True) as ours:
        theirs = Channel(right, memfd=True)
        ours.send(full(1))
        assert wait([theirs], T) == [theirs]
        piece = loans.lender.pieces[0]
        assert not piece.is_free()
        theirs.close()
        assert piece.is_free()


def test_two_threads_never_fill_one_piece() -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    mixed: list[list[float]] = []

    def exchange(index: int) -> None:
        left, right = pairs[index]
        with Channel(left, memfd=True) as ours, Channel(right, memfd=True) as theirs:
            for value in range(index, 60, 2):
                ours.send(full(value))
                arrived = theirs.recv(T)
                if not bool((arrived == value).all()):
                    mixed.append(arrived.unique().tolist())

    threads = [threading.Thread(target=exchange, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert mixed == []


def keep_and_echo(channel: Channel) -> None:
    kept = []
    for message in channel:
        kept.append(message)
        channel.send(message * 2)


def test_a_worker_that_dies_with_what_it_had_does_no_harm() -> None:
    for _ in range(3):
        with Worker(keep_and_echo) as worker:
            for value in range(4):
                worker.send(full(value), T)
                assert int(worker.recv(T)[-1]) == 2 * value
            process.stop([worker._process], 0.0)
    with channels() as (ours, theirs):
        ours.send(full(3))
        assert bool((theirs.recv(T) == 3).all())


def test_a_message_that_is_never_sent_keeps_no_piece() -> None:
    left, right = socket.socketpair()
    right.close()
    with Channel(left, memfd=True) as ours, pytest.raises(ConnectionError):
        ours.send(full(1))
    with channels() as (ours, theirs):
        ours.send(full(2))
        assert int(theirs.recv(T)[0]) == 2


def test_a_forked_child_lends_memory_of_its_own() -> None:
    with channels() as (ours, theirs):
        ours.send(full(1))
        theirs.recv(T)

        def lend() -> int:
            with channels() as (here, there):
                here.send(full(2))
                return int(there.recv(T)[0]) + len(loans.lender.pieces)

        assert process.fork(lend).wait(T) == 3
        ours.send(full(4))
        assert int(theirs.recv(T)[0]) == 4
