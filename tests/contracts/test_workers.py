"""Contracts of a worker on this machine."""

import contextlib
import os
import signal
import socket
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contracts import Implementation, contract
from tests.contracts.work import echo, obey
from tests.support import poll, processes

T = 20.0
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text().filter(lambda key: key != "$"), inner, max_size=4)
    ),
    max_leaves=20,
)


@contract("messages")
def test_anything_that_json_can_say_comes_back(its: Implementation) -> None:
    with its.worker.Worker(echo) as worker:

        @settings(max_examples=60)
        @given(JSON)
        def check(message: Any) -> None:
            worker.send(message)
            assert worker.recv() == message

        check()


@contract("messages")
@pytest.mark.parametrize("nbytes", [0, 1, 4095, 65536, 10_000_001])
def test_a_text_of_any_size_comes_back(its: Implementation, nbytes: int) -> None:
    with its.worker.Worker(echo) as worker:
        worker.send("x" * nbytes)
        assert worker.recv() == "x" * nbytes


@contract("messages")
def test_work_may_be_a_closure_over_what_the_parent_has(its: Implementation) -> None:
    secret = {"only": "here"}
    with its.worker.Worker(lambda channel: channel.send(secret)) as worker:
        assert worker.recv() == secret


@contract("endings")
@pytest.mark.parametrize(
    ("order", "error", "words"),
    [
        ("return", "WorkerExited", "is done"),
        ("raise", "WorkerFailed", "raised LookupError: no rank 12 here: ü(.|\n)*in obey"),
        ("exit", "WorkerFailed", r"(raised SystemExit: |exited with status )3"),
        ("die", "WorkerDied", r"was killed by SIGKILL \(probably out of memory\)"),
        ("hard exit", "WorkerDied", "exited with status 7"),
    ],
)
def test_every_ending_is_told_now_and_ever_after(
    its: Implementation, order: str, error: str, words: str
) -> None:
    with its.worker.Worker(obey, name="the worker") as worker:
        worker.send(order)
        for _ in range(3):
            with pytest.raises(getattr(its.errors, error), match=f"the worker {words}"):
                worker.recv()
        with pytest.raises(its.errors.WorkerError):
            worker.send("too late")


@contract("endings")
def test_sending_to_one_that_has_ended_says_how_it_ended(its: Implementation) -> None:
    with its.worker.Worker(obey) as worker:
        os.kill(worker.pid, signal.SIGTERM)
        poll.until(lambda: _is_zombie(worker.pid), timeout_s=T)
        with pytest.raises(its.errors.WorkerDied, match="was killed by SIGTERM"):
            worker.send("anybody there?")


def _is_zombie(pid: int) -> bool:
    return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


@contract("nothing-left")
def test_many_workers_leave_nothing(its: Implementation) -> None:
    workers = [its.worker.Worker(obey) for _ in range(20)]
    for index, worker in enumerate(workers):
        worker.send(["die", "raise", "return", "pid"][index % 4])
    for worker in workers:
        worker.close()  # and the leak check looks for zombies and descriptors after each test


@contract("nothing-left")
def test_one_that_ignores_everything_is_killed(its: Implementation) -> None:
    with its.worker.Worker(obey) as worker:
        worker.send("hang")
        assert worker.recv() == "hanging"
        worker.close(timeout=0.2)
        assert not processes.is_running(worker.pid)


@contract("nothing-left")
def test_an_exception_of_the_parents_leaves_nothing_either(its: Implementation) -> None:
    with contextlib.suppress(KeyboardInterrupt), its.worker.Worker(echo) as worker:
        worker.send(1)
        raise KeyboardInterrupt
    assert not processes.is_running(worker.pid)


@contract("siblings")
def test_a_worker_holds_no_socket_of_its_siblings(its: Implementation) -> None:
    workers = [its.worker.Worker(obey) for _ in range(4)]
    counts = []
    for worker in workers:
        worker.send("sockets")
        counts.append(worker.recv())
    for worker in workers:
        worker.close()
    assert len(set(counts)) == 1, counts


@contract("siblings")
def test_a_worker_sees_its_parent_hang_up_while_siblings_live(its: Implementation) -> None:
    first, *others = [its.worker.Worker(echo) for _ in range(3)]
    descriptor = getattr(first, "descriptor", first.fileno)()  # that of the socket itself
    with socket.socket(fileno=os.dup(descriptor)) as copy:
        copy.shutdown(socket.SHUT_RDWR)  # a hang-up without a goodbye
    assert first.wait(T) == 1
    for worker in others:
        worker.send("alive")
        assert worker.recv() == "alive"
        worker.close()
    first.close()
