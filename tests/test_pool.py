"""Memory to receive into: used again, never while somebody holds it, and not too much of it."""

import ctypes
import gc
import mmap
import re
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniray import pool, process
from miniray.pool import POOLED_BYTES_MIN, Pool

torch = pytest.importorskip("torch")
numpy = pytest.importorskip("numpy")
T = 20.0


def test_memory_that_somebody_holds_is_never_handed_out() -> None:
    pieces = Pool()
    size = POOLED_BYTES_MIN
    held = [torch.frombuffer(pieces.allocate(size), dtype=torch.uint8) for _ in range(5)]
    addresses = {one.data_ptr() for one in held}
    assert len(addresses) == 5
    view, held = held[2][10:20], []
    gc.collect()
    again = [pieces.allocate(size) for _ in range(4)]
    fresh = pieces.allocate(size)
    taken = {torch.frombuffer(one, dtype=torch.uint8).data_ptr() for one in again}
    assert taken == addresses - {view.data_ptr() - 10}
    assert torch.frombuffer(fresh, dtype=torch.uint8).data_ptr() not in addresses


def test_the_pool_is_bounded_and_can_be_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "POOL_BYTES_MAX", 3 * POOLED_BYTES_MIN)
    pieces = Pool()
    for extra in range(6):
        pieces.allocate(POOLED_BYTES_MIN + extra)
        assert sum(map(len, pieces.pieces)) <= pool.POOL_BYTES_MAX
    assert len(pieces.pieces) == 2
    pieces.empty()
    assert pieces.pieces == []


def test_a_piece_above_the_limit_does_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "POOL_BYTES_MAX", 2 * POOLED_BYTES_MIN)
    pieces = Pool()
    kept = pieces.allocate(POOLED_BYTES_MIN)
    large = pieces.allocate(2 * POOLED_BYTES_MIN + 1)
    assert len(large) == 2 * POOLED_BYTES_MIN + 1
    assert [id(one) for one in pieces.pieces] == [id(kept)]
    pieces.allocate(2 * POOLED_BYTES_MIN)
    assert list(map(len, pieces.pieces)) == [2 * POOLED_BYTES_MIN]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), max_size=40))
def test_held_memory_keeps_what_was_written(steps: list[tuple[int, int]]) -> None:
    """Take, hold by a view, and let go, in any order: what is held keeps what was written."""
    pieces = Pool()
    held: list[tuple[Any, int]] = []
    for number, (what, index) in enumerate(steps):
        if what < 2 or not held:
            memory = pieces.allocate(POOLED_BYTES_MIN + 4096 * (index % 2))
            # Three ways to hold on to the memory, as a message's values do.
            view = (
                memoryview(memory)[100:300],
                numpy.ndarray((200,), "u1", buffer=memory, offset=100),
                torch.frombuffer(memory, dtype=torch.uint8)[100:300],
            )[index % 3]
            del memory
            view[0] = number % 256
            held.append((view, number % 256))
        else:
            held.pop(index % len(held))
            view = None
        assert [int(one[0]) for one, _ in held] == [mark for _, mark in held]
    held.clear()
    view = None
    if pooled := len(pieces.pieces):
        pieces.allocate(len(pieces.pieces[0]))
        assert len(pieces.pieces) == pooled  # free again, so nothing new was made


def test_pooled_memory_is_not_shared_with_a_forked_child() -> None:
    memory = Pool().allocate(POOLED_BYTES_MIN)
    assert isinstance(memory, mmap.mmap)
    memory[0] = 1

    def overwrite() -> int:
        memory[0] = 2
        return memory[0]

    assert process.fork(overwrite).wait(T) == 2
    assert memory[0] == 1


def test_a_child_forked_while_another_thread_has_the_pool_allocates_and_pools() -> None:
    pieces = Pool()
    pieces.allocate(POOLED_BYTES_MIN)
    taken, released = threading.Event(), threading.Event()

    class Length(int):
        """A size in whose comparison a thread stays, with the pool's lock held."""

        def __eq__(self, other: object) -> bool:
            taken.set()
            released.wait(T)
            return False

        __hash__ = int.__hash__

    thread = threading.Thread(target=pieces.allocate, args=(Length(POOLED_BYTES_MIN),))
    thread.start()
    assert taken.wait(T)

    def allocate() -> int:
        pieces.allocate(POOLED_BYTES_MIN + 1)
        return 7 if list(map(len, pieces.pieces)) == [POOLED_BYTES_MIN + 1] else 1

    def allocate_in_a_grandchild() -> int:
        pieces.allocate(POOLED_BYTES_MIN + 2)
        return process.fork(allocate).wait(T)

    try:
        for run in (allocate, allocate_in_a_grandchild):
            child = process.fork(run)
            try:
                assert child.wait(T) == 7
            finally:
                child.signal_group(signal.SIGKILL)
    finally:
        released.set()
        thread.join()


def test_an_allocation_within_another_does_not_wait_for_it() -> None:
    """As in the handler of a signal that came in the middle of one."""
    pieces = Pool()
    held = pieces.allocate(POOLED_BYTES_MIN)
    inner: list[Any] = []

    class Length(int):
        def __eq__(self, other: object) -> bool:
            pieces.empty()
            inner.append(pieces.allocate(POOLED_BYTES_MIN))
            return False

        __hash__ = int.__hash__

    outer = pieces.allocate(Length(POOLED_BYTES_MIN))
    assert len({id(held), id(outer), id(inner[0])}) == 3


def test_emptying_the_pool_spares_what_is_held() -> None:
    pieces = Pool()
    array = numpy.ndarray((1 << 20,), "u1", buffer=pieces.allocate(1 << 20))
    pieces.empty()
    array[:] = 7
    assert (array == 7).all()


def test_small_memory_is_not_pooled() -> None:
    pieces = Pool()
    assert type(pieces.allocate(POOLED_BYTES_MIN - 1)) is bytearray
    assert pieces.pieces == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_fresh_memory_asks_for_huge_pages() -> None:
    memory = pool.allocate(4 * POOLED_BYTES_MIN)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    flags, begin, end = "", 0, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if mapping := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            begin, end = (int(one, 16) for one in mapping.groups())
        elif line.startswith("VmFlags:") and begin <= address < end:
            flags = line
    assert "hg" in flags.split() or not Path("/sys/kernel/mm/transparent_hugepage").exists()
