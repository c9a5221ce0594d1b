"""A forked child, whoever forked it, keeps nothing of its parent's and harms no worker."""

import multiprocessing
import os
import signal
import socket
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from miniray import Channel, Worker, inherited, pool, process
from tests import work
from tests.support import poll
from tests.support.interrupts import is_waiting

T = 20.0


def by_os_fork(run: Callable[[], int]) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of other tests
        pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = run()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def by_multiprocessing(run: Callable[[], int]) -> int:
    child = multiprocessing.get_context("fork").Process(target=lambda: os._exit(run()))
    child.start()
    child.join(T)
    code = child.exitcode
    child.close()
    assert code is not None
    return code


def by_miniray(run: Callable[[], int]) -> int:
    return process.fork(run).wait(T)


@pytest.fixture(params=[by_os_fork, by_multiprocessing, by_miniray], ids=lambda one: one.__name__)
def fork(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_a_forked_child_harms_no_worker(fork: Any) -> None:
    with Worker(work.echo) as worker:

        def meddle() -> int:
            worker.close()
            with pytest.raises(ConnectionError, match="stayed with the process"):
                worker.send(1)
            with pytest.raises(RuntimeError, match="belongs to the process that forked it"):
                worker.is_alive()
            with pytest.raises(RuntimeError, match="belongs to the process that forked it"):
                worker.wait(0)
            return 7

        assert fork(meddle) == 7
        worker.send("unharmed")
        assert worker.recv(T) == "unharmed"


def test_a_forked_child_holds_no_socket_of_its_parents(fork: Any) -> None:
    def count() -> int:
        total = 0
        for one in os.listdir("/proc/self/fd"):
            try:
                name = os.readlink(f"/proc/self/fd/{one}")
            except FileNotFoundError:
                continue
            total += name.startswith(("socket:", "anon_inode:[pidfd]"))
        return total

    before = fork(count)
    left, right = map(Channel, socket.socketpair())
    with Worker(work.echo), left, right:
        assert fork(count) == before
        assert count() > before


def test_nor_one_that_is_still_being_connected(fork: Any) -> None:
    with inherited.OwnedSocket(socket.AF_INET) as sock:
        path = f"/proc/self/fd/{sock.fileno()}"
        name = os.readlink(path)

        def is_held() -> int:
            return int(os.path.exists(path) and os.readlink(path) == name)

        assert is_held()
        assert fork(is_held) == 0


def test_a_child_can_fork_though_another_thread_held_the_lock() -> None:
    """It is held while a descriptor has no owner; the thread that would release it is not there."""
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with inherited.lock:
            held.set()
            done.wait(T)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(T)
    forker = threading.Thread(
        target=lambda: codes.append(by_os_fork(lambda: by_miniray(lambda: 5)))
    )
    codes: list[int] = []
    forker.start()
    done.set()
    for thread in (holder, forker):
        thread.join(T)
    assert codes == [5]


def test_a_child_has_a_pool_of_its_own_whoever_held_its_lock() -> None:
    pool.allocate(pool.POOLED_BYTES_MIN)

    def allocate() -> int:
        return len(pool.allocate(pool.POOLED_BYTES_MIN)) >> 20

    assert by_miniray(allocate) == 1
    pool.empty()


def test_workers_made_by_many_threads_hold_no_socket_of_each_other() -> None:
    workers: list[Worker] = []
    threads = [
        threading.Thread(target=lambda: workers.extend(Worker(work.obey) for _ in range(5)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        for worker in workers:
            worker.send("sockets")
        assert len({worker.recv(T) for worker in workers}) == 1
    finally:
        for worker in workers:
            worker.close()


def test_an_owner_that_cannot_let_go_does_not_keep_the_others_from_it(fork: Any) -> None:
    class Owner:
        def abandon(self) -> None:
            abandoned.append(self)
            raise OSError("it is closed already")

    abandoned: list[Owner] = []
    owners = [Owner() for _ in range(3)]
    for owner in owners:
        inherited.own(owner)
    assert fork(lambda: len(abandoned)) == 3


def test_a_child_is_told_that_a_channel_is_not_its_own_while_a_thread_receives(fork: Any) -> None:
    with Worker(work.echo) as worker:
        thread = threading.Thread(target=worker.recv, args=[T])
        thread.start()
        poll.until(lambda: is_waiting(thread.ident), timeout_s=T)

        def use() -> int:
            signal.alarm(int(T))
            for call in (worker.recv, lambda: worker.send(1)):
                with pytest.raises(ConnectionError, match="stayed with the process"):
                    call()
            return 7

        try:
            assert fork(use) == 7
        finally:
            worker.send("done")
            thread.join(T)
