"""A process group: who died first is named on every rank, whoever notices, in the time asked."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from miniray import (
    Channel,
    RemoteWorker,
    WorkerDied,
    WorkerError,
    WorkerExited,
    WorkerFailed,
    wait,
)
from miniray.group import SETTLE_S, Group
from miniray.waiting import deadline_after
from tests.support import poll
from tests.support.servers import Server, serving

T = 20.0


def rank(channel: Channel) -> None:
    """Do as told; "collective" fails as a rank does whose peer has gone."""
    for order, *rest in channel:
        if order == "raise":
            raise ValueError(f"no such batch: {rest[0]}")
        if order == "collective":
            error = RuntimeError("Connection closed by peer")
            error.in_collective = True  # type: ignore[attr-defined]
            raise error
        if order == "exit":
            raise SystemExit(rest[0])
        if order == "die":
            os.kill(os.getpid(), rest[0])
        if order == "hang up and stay":
            with socket.socket(fileno=os.dup(channel.descriptor())) as copy:
                copy.shutdown(socket.SHUT_RDWR)
            signal.pause()
        if order == "return":
            return
        if order == "stream":
            with contextlib.suppress(ConnectionError):
                while True:
                    channel.send("x" * 1000)
        if order == "say":
            channel.send(rest[0])


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(rank) as server:
        yield server


@pytest.fixture
def ranks(server: Server) -> Iterator[list[RemoteWorker]]:
    workers = [server.worker(name=f"rank{number}") for number in range(4)]
    for number, worker in enumerate(workers):
        worker.name = f"rank {number}"
    Group(workers)
    yield workers
    for worker in workers:
        worker.close()


def assert_all_end_with(ranks: list[RemoteWorker], kind: type[Exception], words: str) -> None:
    for worker in ranks:
        with pytest.raises(kind, match=words):
            worker.recv(T)
        with pytest.raises(kind, match=words):
            worker.send(["say", 1], T)
        assert worker in wait(ranks, 0)


def send_for_ever(worker: RemoteWorker, timeout: float = T) -> None:
    while True:
        worker.send(["say", "x" * 100_000], timeout)


@pytest.mark.parametrize(
    ("order", "kind", "words"),
    [
        (["die", int(signal.SIGKILL)], WorkerDied, "rank 2 was killed by SIGKILL"),
        (["raise", 7], WorkerFailed, "rank 2 raised ValueError: no such batch: 7"),
        (["exit", 2], WorkerFailed, "rank 2 exited with status 2"),
        (["exit", "fatal: no data"], WorkerFailed, "rank 2 exited with status 1: fatal: no data"),
    ],
)
@pytest.mark.parametrize("noticed_by", ["recv", "send", "wait", "check", "its own recv"])
def test_every_rank_ends_with_the_culprits_error_whoever_notices(
    ranks: list[RemoteWorker], order: Any, kind: type[Exception], words: str, noticed_by: str
) -> None:
    ranks[2].send(order)
    group = ranks[0].group
    assert group is not None
    if noticed_by == "recv":
        with pytest.raises(kind, match=words):
            ranks[0].recv(T)
    elif noticed_by == "its own recv":
        with pytest.raises(kind, match=words):
            ranks[2].recv(T)
    elif noticed_by == "wait":
        assert wait([ranks[0]], T) == [ranks[0]]
    elif noticed_by == "check":
        poll.until(lambda: group.check() or group.culprit, timeout_s=T)
    else:
        with pytest.raises(kind, match=words):
            send_for_ever(ranks[2])
    assert_all_end_with(ranks, kind, words)


def test_a_cause_comes_before_its_consequences_whichever_is_heard_first(
    ranks: list[RemoteWorker],
) -> None:
    for number in (0, 1, 3):
        ranks[number].send(["collective"])
        poll.until(lambda number=number: not ranks[number].is_alive(), timeout_s=T)
    ranks[2].send(["raise", 7])
    with pytest.raises(WorkerFailed, match="rank 2 raised ValueError"):
        ranks[0].recv(T)
    assert_all_end_with(ranks, WorkerFailed, "rank 2 raised ValueError")


def test_a_cause_is_heard_though_somebody_waits_for_that_very_rank(
    ranks: list[RemoteWorker],
) -> None:
    """The word of its own failure comes last, though it has made the other fail."""
    group = ranks[0].group
    assert group is not None

    def fail() -> None:
        poll.until(lambda: not ranks[2].turn_to_receive.is_free(), timeout_s=T)
        ranks[1].send(["collective"])
        poll.until(lambda: group._settler is not None, timeout_s=T)
        with contextlib.suppress(WorkerFailed):  # its failure may be heard before send returns
            ranks[2].send(["raise", 7])

    thread = threading.Thread(target=fail)
    thread.start()
    with pytest.raises(WorkerFailed, match="rank 2 raised ValueError"):
        ranks[2].recv(T)
    thread.join(T)
    assert_all_end_with(ranks, WorkerFailed, "rank 2 raised ValueError")


def test_who_asks_while_the_culprit_is_looked_for_hears_of_him_and_of_nobody_else(
    ranks: list[RemoteWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread finds out, and has read already what is only a consequence."""
    find, errors = Group._find_culprit, []

    def find_slowly(group: Group, deadline: float) -> WorkerError:
        ranks[3].read_to_the_end(deadline_after(T), keep=False)
        second.start()
        second.join(0.2)  # it has the time to hear what is wrong
        ranks[2].send(["raise", 7])
        return find(group, deadline)

    def ask(rank: RemoteWorker) -> None:
        with pytest.raises(WorkerError) as caught:
            rank.recv(T)
        errors.append(str(caught.value).partition("\n")[0])

    monkeypatch.setattr(Group, "_find_culprit", find_slowly)
    for number in (1, 3):
        ranks[number].send(["collective"])
        poll.until(lambda number=number: not ranks[number].is_alive(), timeout_s=T)
    first, second = (threading.Thread(target=ask, args=[ranks[number]]) for number in (1, 3))
    first.start()
    first.join(T)
    second.join(T)
    assert errors == ["rank 2 raised ValueError: no such batch: 7"] * 2


def test_the_earliest_of_two_failures_is_the_culprit(ranks: list[RemoteWorker]) -> None:
    ranks[3].send(["raise", 3])
    poll.until(lambda: not ranks[3].is_alive(), timeout_s=T)
    ranks[1].send(["raise", 1])
    poll.until(lambda: not ranks[1].is_alive(), timeout_s=T)
    with pytest.raises(WorkerFailed, match="rank 3 raised ValueError: no such batch: 3"):
        ranks[0].recv(T)


@pytest.mark.parametrize("heard_first", [0, 3])
def test_a_rank_that_left_early_is_named_when_others_fail_in_a_collective(
    ranks: list[RemoteWorker], heard_first: int
) -> None:
    ranks[3].send(["return"])
    poll.until(lambda: not ranks[3].is_alive(), timeout_s=T)
    if heard_first == 3:
        with pytest.raises(WorkerExited):
            ranks[3].recv(T)
    for number in (0, 1, 2):
        ranks[number].send(["collective"])
    with pytest.raises(WorkerDied, match=r"rank 3 left early(.|\n)*Connection closed by peer"):
        ranks[0].recv(T)
    assert_all_end_with(ranks, WorkerDied, "rank 3 left early")


def test_a_rank_that_does_not_fail_with_the_others_in_a_collective_is_named(
    ranks: list[RemoteWorker],
) -> None:
    for number in (0, 1, 3):  # rank 2 has answered its call, say, and waits for the next
        ranks[number].send(["collective"])
    with pytest.raises(WorkerFailed, match="Connection closed by peer") as raised:
        ranks[0].recv(T)
    assert raised.value.__notes__ == ["rank 2 did not fail, and may have left early"]


def test_ranks_may_return_one_by_one(ranks: list[RemoteWorker]) -> None:
    for number in (3, 1, 0):
        ranks[number].send(["say", f"result {number}"])
        ranks[number].send(["return"])
        poll.until(lambda number=number: not ranks[number].is_alive(), timeout_s=T)
    ranks[2].send(["say", "result 2"])
    assert [worker.recv(T) for worker in ranks] == [f"result {number}" for number in range(4)]
    with pytest.raises(WorkerExited):
        ranks[0].recv(T)
    ranks[2].send(["say", "still here"])
    assert ranks[2].recv(T) == "still here"


@pytest.mark.thorough
def test_a_failure_is_named_though_another_rank_streams_for_ever(
    ranks: list[RemoteWorker],
) -> None:
    ranks[0].send(["stream"])
    assert ranks[0].recv(T) == "x" * 1000
    ranks[1].send(["collective"])
    began = time.monotonic()
    with pytest.raises(WorkerFailed, match="rank 1 raised RuntimeError: Connection closed by peer"):
        ranks[1].recv(T)
    assert time.monotonic() - began < T / 2  # it has SETTLE_S, and not as long as rank 0 talks


def test_a_timeout_is_not_doubled(ranks: list[RemoteWorker]) -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"rank 1 sent nothing for 0\.5s"):
        ranks[1].recv(timeout=0.5)
    assert 0.5 <= time.monotonic() - began < 0.9


@pytest.mark.thorough
@pytest.mark.parametrize("timeout", [0.5, 5.0])
def test_an_explanation_takes_no_longer_than_the_timeout(
    server: Server, ranks: list[RemoteWorker], timeout: float
) -> None:
    """The server, which knows how a rank ended, is stopped."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        os.kill(ranks[2].pid, signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises((WorkerDied, TimeoutError)):
            ranks[2].recv(timeout=timeout)
        assert time.monotonic() - began < timeout + 0.6
    finally:
        os.kill(server.pid, signal.SIGCONT)


@pytest.mark.parametrize("receiver", [1, 2])
def test_a_culprit_is_not_looked_for_beyond_the_timeout(
    ranks: list[RemoteWorker], receiver: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("miniray.group.SETTLE_S", 60.0)
    ranks[1].send(["collective"])
    poll.until(lambda: not ranks[1].is_alive(), timeout_s=T)
    began = time.monotonic()
    with pytest.raises(WorkerFailed, match="rank 1 raised RuntimeError: Connection closed by peer"):
        ranks[receiver].recv(timeout=3.0)
    assert time.monotonic() - began < 30.0


@pytest.mark.parametrize("attempt", range(5))
def test_threads_that_wait_for_different_ranks_get_the_same_error(
    ranks: list[RemoteWorker], attempt: int
) -> None:
    errors: dict[int, BaseException] = {}

    def receive(number: int) -> None:
        try:
            ranks[number].recv(T)
        except Exception as error:
            errors[number] = error

    threads = [threading.Thread(target=receive, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for number, order in ((2, ["raise", 7]), *((number, ["collective"]) for number in (0, 1, 3))):
        with contextlib.suppress(WorkerFailed):  # another thread may have heard of it already
            ranks[number].send(order)
    for thread in threads:
        thread.join(T)
    assert {str(error).partition("\n")[0] for error in errors.values()} == {
        "rank 2 raised ValueError: no such batch: 7"
    }
    assert len(errors) == 4


def test_a_failure_is_found_behind_a_rank_that_streams_for_ever(ranks: list[RemoteWorker]) -> None:
    ranks[0].send(["stream"])
    assert ranks[0].recv(T) == "x" * 1000
    for number, order in ((2, ["die", int(signal.SIGKILL)]), (1, ["collective"])):
        ranks[number].send(order)
        poll.until(lambda number=number: not ranks[number].is_alive(), timeout_s=T)
    with pytest.raises(WorkerDied, match="rank 2 was killed by SIGKILL"):
        ranks[1].recv(T)


@pytest.mark.thorough
def test_a_rank_that_did_not_take_a_message_in_time_has_not_left_early(
    ranks: list[RemoteWorker],
) -> None:
    os.kill(ranks[0].pid, signal.SIGSTOP)
    with pytest.raises(TimeoutError, match="rank 0 took nothing in"):
        send_for_ever(ranks[0], timeout=0.1)
    for number in (1, 2):
        ranks[number].send(["collective"])
    with pytest.raises(WorkerFailed, match=r"rank \d raised RuntimeError: Connection closed"):
        ranks[1].recv(T)


@pytest.mark.thorough
def test_what_a_session_prints_is_nobodys_end(ranks: list[RemoteWorker]) -> None:
    read_end, write_end = os.pipe()

    class Session:
        def fileno(self) -> int:
            return read_end

        def how_it_ended(self, timeout: float = 0.0) -> str | None:
            return None

    os.write(write_end, b"a launcher's word")
    ranks[1].session = Session()
    began = time.process_time()
    with pytest.raises(TimeoutError):
        ranks[0].recv(SETTLE_S + 0.5)
    assert time.process_time() - began < 1.0
    ranks[1].send(["say", "well"])
    assert ranks[1].recv(T) == "well"
    os.close(read_end)
    os.close(write_end)


def test_whoever_only_looks_is_told_that_a_rank_runs(
    ranks: list[RemoteWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("miniray.remote_worker.ANSWER_S", T)  # the server may be busy
    with pytest.raises(TimeoutError, match="rank 0 still runs"):
        ranks[0].wait(timeout=0)


def test_a_check_that_has_no_time_for_every_rank_ends_none(ranks: list[RemoteWorker]) -> None:
    group = ranks[0].group
    assert group is not None
    group.check(timeout=0.0)
    for worker in ranks:
        worker.send(["say", "well"])
        assert worker.recv(T) == "well"


def test_a_rank_whose_server_says_no_more_is_lost(
    server: Server, ranks: list[RemoteWorker]
) -> None:
    os.kill(server.pid, signal.SIGSTOP)
    try:
        ranks[2].send(["hang up and stay"])
        assert_all_end_with(ranks, WorkerDied, "rank 2 is lost: its server does not answer")
    finally:
        os.kill(server.pid, signal.SIGCONT)


def test_a_search_for_the_culprit_that_was_interrupted_is_begun_anew(
    ranks: list[RemoteWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(group: Group, deadline: float) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(Group, "_find_culprit", interrupt)
    ranks[2].send(["die", int(signal.SIGKILL)])
    with pytest.raises(KeyboardInterrupt):
        ranks[2].recv(T)
    assert_all_end_with(ranks, WorkerDied, "rank 2 was killed by SIGKILL")


def test_what_others_suffer_from_a_lost_node_is_put_down_to_it(server: Server) -> None:
    with serving(rank) as lost, server.worker() as well, lost.worker(name="far") as gone:
        gone.name = "rank 1"
        Group([well, gone])
        os.kill(lost.pid, signal.SIGSTOP)
        try:
            well.send(["collective"])
            assert_all_end_with([well, gone], WorkerDied, "rank 1 is lost: its server does not")
        finally:
            os.kill(lost.pid, signal.SIGCONT)
