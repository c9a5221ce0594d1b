"""What every worker does, whatever carries its messages: a socketpair, TCP, ssh, a cluster."""

import collections
import contextlib
import gc
import itertools
import os
import random
import select
import signal
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from miniray import (
    Channel,
    Cluster,
    NodeConfig,
    ProtocolError,
    RemoteWorker,
    Worker,
    WorkerDied,
    WorkerError,
    WorkerExited,
    WorkerFailed,
    endpoint,
    wait,
    waiting,
    wire,
)
from miniray.decoding import Decoder
from miniray.group import Group
from tests import work
from tests.support import poll, processes
from tests.support.interrupts import is_waiting, signalled_while_waiting
from tests.support.servers import Server, serving

Start = Callable[..., list[Any]]
T = 20.0  # seconds that no healthy exchange comes near

# What `make test-ray` runs on Ray, unless SLOW=1: how workers come, talk and end. That large or odd
# messages stay whole is the same there as over TCP.
ON_RAY = {
    "test_a_closed_sibling_sees_end_of_file",
    "test_a_death_is_noticed_though_another_program_holds_the_connection",
    "test_a_hard_exit_tells_its_status",
    "test_a_worker_killed_by_a_signal_died_of_it",
    "test_a_worker_that_returned_has_exited_now_and_ever_after",
    "test_after_close_every_call_says_so",
    "test_an_exception_arrives_with_its_traceback",
    "test_an_interrupted_recv_leaves_the_channel_usable",
    "test_fileno_stays_readable_after_the_end",
    "test_how_it_ended_is_what_recv_raises",
    "test_iteration_ends_when_the_worker_is_done",
    "test_messages_come_back_in_order",
    "test_recv_timeout_leaves_the_channel_usable",
    "test_repr_states_the_status",
    "test_tensors_and_arrays_come_back",
    "test_to_a_worker_the_other_side_is_the_coordinator",
    "test_wait_returns_those_with_something_to_say",
    "test_what_was_sent_before_the_end_is_received_before_the_error",
}


@pytest.fixture(
    params=[
        "local",
        "tcp",
        "encrypted",
        pytest.param("cluster", marks=pytest.mark.thorough),
        pytest.param("tunnel", marks=[pytest.mark.ssh, pytest.mark.slow]),
        pytest.param("ray", marks=pytest.mark.ray),
    ]
)
def start(request: pytest.FixtureRequest) -> Iterator[Start]:
    """Return a function that starts workers of one kind and closes them after the test."""
    with contextlib.ExitStack() as stack:

        def start(name: str = "obey", count: int = 1) -> list[Any]:
            work_fn = getattr(work, name)
            if request.param == "local":
                return [stack.enter_context(Worker(work_fn)) for _ in range(count)]
            if request.param in ("tcp", "encrypted"):
                how: Any = {"encrypt": request.param == "encrypted"}
                server = stack.enter_context(serving(work_fn, **how))
                make = lambda: RemoteWorker(server.host, server.port, **how)  # noqa: E731
                return [stack.enter_context(make()) for _ in range(count)]
            node = NodeConfig.local(count)
            if request.param == "ray":
                from miniray.extras.ray_cluster import RayCluster

                ranks = stack.enter_context(RayCluster([node], start_timeout=240.0))
                return ranks.start(f"tests.work.{name}")
            if request.param == "tunnel":
                sshd = request.getfixturevalue("loopback_sshd")
                node = NodeConfig(
                    sshd.hosts[0],
                    count,
                    python=sys.executable,
                    ssh_options=sshd.ssh_options,
                    tunnel=True,
                )
            log = stack.enter_context(open(os.devnull, "w"))
            cluster = stack.enter_context(Cluster([node], log=log))
            return cluster.start(f"tests.work.{name}")

        yield start


def test_messages_come_back_in_order(start: Start) -> None:
    (worker,) = start("echo")
    messages = [None, 1, "two", [3, (4, {"five": b"6"})], {"$": 1}]
    for message in messages:
        worker.send(message, timeout=T)
    assert [worker.recv(T) for _ in messages] == messages


def test_tensors_and_arrays_come_back(start: Start) -> None:
    torch, numpy = pytest.importorskip("torch"), pytest.importorskip("numpy")
    (worker,) = start("echo")
    big = torch.arange(1 << 20, dtype=torch.float32)
    worker.send({"big": big, "small": numpy.eye(3), "empty": torch.zeros(0, 2)}, timeout=T)
    arrived = worker.recv(T)
    assert torch.equal(arrived["big"], big)
    assert (arrived["small"] == numpy.eye(3)).all()
    assert arrived["empty"].shape == (0, 2)
    arrived["big"] += 1


@pytest.mark.thorough
def test_64_mib_come_back_equal_and_writable(start: Start) -> None:
    torch = pytest.importorskip("torch")
    (worker,) = start("echo")
    raw = torch.randint(0, 2, (64 << 20,), dtype=torch.uint8)
    worker.send({"x": raw.view(torch.bfloat16).reshape(64, -1)}, timeout=60)
    arrived = worker.recv(60)["x"]
    assert arrived.shape[0] == 64
    assert torch.equal(arrived.reshape(-1).view(torch.uint8), raw)
    arrived.zero_()


def test_iteration_ends_when_the_worker_is_done(start: Start) -> None:
    (worker,) = start()
    worker.send("a")
    worker.send("return")
    assert list(worker) == ["a"]


def test_a_worker_that_returned_has_exited_now_and_ever_after(start: Start) -> None:
    (worker,) = start()
    worker.send("return")
    for _ in range(2):
        with pytest.raises(WorkerExited, match=r"is done.*it needs a loop"):
            worker.recv(T)
    with pytest.raises(WorkerExited):
        worker.send(1)


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (3, 3, "exited with status 3$"),
        ("out of data", 1, "exited with status 1: out of data$"),
        (2**40 + 5, 5, "exited with status 5$"),
        (-1, 255, "exited with status 255$"),
    ],
)
def test_sys_exit_with_a_status_or_a_text_is_a_failure(
    start: Start, status: Any, code: int, words: str
) -> None:
    worker, other = start(count=2)
    worker.send(("exit", status))
    for _ in range(2):
        with pytest.raises(WorkerFailed, match=f"(?m){words}") as caught:
            for _ in worker:
                pass
        assert (caught.value.exit_code, caught.value.remote_type) == (code, "SystemExit")
        assert "in obey" in caught.value.remote_traceback
    assert worker.wait(T) == code
    other.send("unharmed")
    assert other.recv(T) == "unharmed"


@pytest.mark.parametrize("status", [None, 0, False])
def test_sys_exit_without_a_failure_is_a_return(start: Start, status: Any) -> None:
    (worker,) = start()
    worker.send(("exit", status))
    with pytest.raises(WorkerExited, match="is done"):
        worker.recv(T)
    assert worker.wait(T) == 0


def test_how_it_ended_is_what_recv_raises(start: Start) -> None:
    returned, failed, killed, alive = start(count=4)
    assert (killed.is_alive(), killed.how_it_ended()) == (True, None)
    returned.send("return")
    failed.send(("exit", 4))
    killed.send("die")
    assert [one.wait(T) for one in (returned, failed, killed)] == [0, 4, -signal.SIGKILL]
    assert isinstance(returned.how_it_ended(), WorkerExited)
    assert "status 4" in str(failed.how_it_ended())
    ending = killed.how_it_ended()
    assert isinstance(ending, WorkerDied)
    assert ending.signal == signal.SIGKILL
    assert [one.is_alive() for one in (returned, failed, killed, alive)] == [False] * 3 + [True]
    with pytest.raises(TimeoutError, match=r"still runs after 0\.1s"):
        alive.wait(0.1)


def test_an_exception_whose_text_no_terminal_can_show_arrives(start: Start) -> None:
    (worker,) = start()
    worker.send("raise odd")
    with pytest.raises(WorkerFailed, match="no such file: caf\udce9") as caught:
        worker.recv(T)
    assert caught.value.remote_type == "FileNotFoundError"


def test_an_exception_arrives_with_its_traceback(start: Start) -> None:
    (worker, other) = start(count=2)
    worker.send("raise")
    for _ in range(2):
        with pytest.raises(WorkerFailed, match="raised ValueError: no such batch: 7") as caught:
            worker.recv(T)
        assert caught.value.remote_type == "ValueError"
        assert "in obey" in caught.value.remote_traceback
    other.send("unharmed")
    assert other.recv(T) == "unharmed"


def test_an_exception_is_printed_where_it_was_raised(capfd: pytest.CaptureFixture[str]) -> None:
    with Worker(work.obey) as worker:
        worker.send("raise")
        with pytest.raises(WorkerFailed):
            worker.recv(T)
    printed = capfd.readouterr().err
    assert printed.startswith("Traceback")
    assert "ValueError: no such batch: 7" in printed


class OddAttributes(Exception):
    def __getattr__(self, name: str) -> Any:
        raise ZeroDivisionError(name)


class OddNotes(Exception):
    failed_at = ("yesterday",)
    in_collective = "yes"


class OddText(Exception):
    def __str__(self) -> str:
        raise KeyError("text")


@pytest.mark.parametrize("odd", [OddAttributes, OddNotes, OddText])
def test_an_exception_with_odd_attributes_hides_no_failure(odd: type[Exception]) -> None:
    def fail(channel: Channel) -> None:
        raise odd("as told")

    with Worker(fail) as worker:
        with pytest.raises(WorkerFailed, match=f"raised {odd.__name__}: ") as caught:
            worker.recv(T)
    assert "in fail" in caught.value.remote_traceback
    assert (caught.value.exit_code, caught.value.in_collective) == (1, False)
    assert caught.value.failed_at > 0


def test_a_failure_keeps_the_time_that_was_noted_before_it_was_reported() -> None:
    def fail(channel: Channel) -> None:
        error = ValueError("first")
        error.failed_at = 12.5  # type: ignore[attr-defined]
        raise error

    with Worker(fail) as worker:
        with pytest.raises(WorkerFailed) as caught:
            worker.recv(T)
    assert caught.value.failed_at == 12.5


@pytest.mark.parametrize(
    ("order", "number", "text"),
    [
        ("die", signal.SIGKILL, r"was killed by SIGKILL \(probably out of memory\)"),
        ("segfault", signal.SIGSEGV, "was killed by SIGSEGV"),
        ("null pointer", signal.SIGSEGV, "was killed by SIGSEGV"),
        ("real-time signal", 40, "was killed by signal 40"),
    ],
)
def test_a_worker_killed_by_a_signal_died_of_it(
    start: Start, order: str, number: int, text: str
) -> None:
    (worker, other) = start(count=2)
    worker.send(order)
    for _ in range(2):
        with pytest.raises(WorkerDied, match=text) as caught:
            worker.recv(T)
        assert caught.value.signal == number
        assert caught.value.exit_code is None
    other.send("unharmed")
    assert other.recv(T) == "unharmed"


def send_for_ever(worker: Any) -> None:
    while True:
        worker.send(bytes(1 << 20), T)


@pytest.mark.parametrize("way", ["recv", "send", "wait"])
def test_a_death_is_noticed_though_another_program_holds_the_connection(
    start: Start, way: str
) -> None:
    (worker,) = start()
    worker.send("leave a holder")
    holder = worker.recv(T)
    try:
        worker.send("die")
        begun = time.monotonic()
        if way == "wait":
            assert wait([worker], T) == [worker]
        use = (lambda: send_for_ever(worker)) if way == "send" else (lambda: worker.recv(T))
        with pytest.raises(WorkerDied, match="was killed by SIGKILL"):
            use()
        assert time.monotonic() - begun < 10  # the promise is 1, on a machine that is not busy
        assert processes.is_running(holder)
    finally:
        os.kill(holder, signal.SIGKILL)


def test_a_local_worker_that_hangs_up_and_stays_is_said_to_run() -> None:
    with Worker(work.obey) as worker:
        worker.send("hang up and stay")
        with pytest.raises(WorkerDied, match=f"closed its end and still runs, as pid {worker.pid}"):
            worker.recv(T)


def test_a_link_that_is_lost_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(work.echo) as server, server.worker() as worker:
        monkeypatch.setattr(endpoint, "link_is_lost", lambda sock: True)
        with pytest.raises(WorkerDied, match="its machine or the link to it is lost"):
            worker.recv(T)


@pytest.mark.parametrize("status", [7, 0])
def test_a_hard_exit_tells_its_status(start: Start, status: int) -> None:
    (worker,) = start()
    worker.send(("hard exit", status))
    with pytest.raises(WorkerDied, match=f"exited with status {status}") as caught:
        for _ in worker:
            pass
    assert (caught.value.signal, caught.value.exit_code) == (None, status)


@pytest.mark.parametrize("order", ["send and die", "send and raise"])
def test_what_was_sent_before_the_end_is_received_before_the_error(
    start: Start, order: str
) -> None:
    (worker,) = start()
    worker.send(order)
    poll.until(lambda: select.select([worker], [], [], 0)[0], what="an answer")
    with contextlib.suppress(WorkerError):  # it is gone or not, as it happens
        worker.send("too late")
    assert worker.recv(T) == "last words"
    with pytest.raises((WorkerDied, WorkerFailed)):
        worker.recv(T)


def test_everything_sent_before_the_end_is_received_however_much(start: Start) -> None:
    (worker,) = start()
    worker.send(("send many", 2000))
    assert [index for index, _ in worker] == list(range(2000))
    with pytest.raises(WorkerExited):
        worker.recv(T)


def test_recv_timeout_leaves_the_channel_usable(start: Start) -> None:
    (worker,) = start("echo")
    with pytest.raises(TimeoutError, match=r"sent nothing for 0\.05s"):
        worker.recv(timeout=0.05)
    worker.send("still here")
    assert worker.recv(T) == "still here"


def test_send_timeout_ends_the_channel(start: Start) -> None:
    (worker,) = start()
    worker.send("do not read")
    assert worker.recv(T) == "not reading"
    # Larger than what the kernel takes in on the way.
    with pytest.raises(TimeoutError, match=r"took nothing in for 0\.3s"):
        worker.send(
            bytes(256 << 20) if not isinstance(worker, Worker) else "x" * (48 << 20),
            timeout=0.3,
        )
    with pytest.raises(TimeoutError):
        worker.send(1)


def test_what_cannot_be_sent_leaves_the_channel_usable(start: Start) -> None:
    (worker,) = start()
    with pytest.raises(TypeError, match=r'message\["batch"\]: object'):
        worker.send({"batch": object()})
    worker.send("object")
    assert 'message["batch"]: object' in worker.recv(T)
    worker.send("usable")
    assert worker.recv(T) == "usable"


def test_a_message_over_the_limit_leaves_the_channel_usable(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    (worker,) = start("echo")
    with monkeypatch.context() as patched:
        patched.setattr(wire, "MESSAGE_BYTES_MAX", 1 << 20)
        with pytest.raises(ValueError, match="send it in parts"):
            worker.send({"x": bytes(2 << 20)})
    worker.send("usable")
    assert worker.recv(T) == "usable"


def test_both_sides_may_send_64_mib_at_once(start: Start) -> None:
    (worker,) = start()
    worker.send("send 64 MiB")
    worker.send(bytearray(64 << 20), timeout=60)
    assert len(worker.recv(60)) == 64 << 20
    assert len(worker.recv(60)) == 64 << 20


@pytest.mark.thorough
@pytest.mark.parametrize("sizes", [[1 << 20, *[1000] * 300], [1 << 20] * 280], ids=len)
def test_both_sides_may_send_many_arrays_at_once(start: Start, sizes: list[int]) -> None:
    (worker,) = start()
    worker.send(("send arrays", sizes))
    worker.send([bytes(size) for size in sizes], timeout=60)
    assert [len(one) for one in worker.recv(60)] == sizes
    assert [len(one) for one in worker.recv(60)] == sizes


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.thorough
def test_an_interrupted_send_ends_the_channel(start: Start) -> None:
    """Ctrl-C may come when half a frame is out, and what is sent next would continue that."""
    (worker,) = start()
    worker.send("do not read")
    assert worker.recv(T) == "not reading"
    with signalled_while_waiting(interrupt), pytest.raises(KeyboardInterrupt):
        worker.send("x" * (32 << 20))  # more than the kernels take in
    with pytest.raises(ConnectionError, match="was interrupted; half a message may be out"):
        worker.send(1)


def late() -> None:
    raise TimeoutError("the handler's")


def test_a_handlers_timeout_error_is_an_interrupt_like_any_other(start: Start) -> None:
    """That is how a program limits what it does by SIGALRM."""
    (worker,) = start("echo")
    with signalled_while_waiting(late), pytest.raises(TimeoutError, match="the handler's"):
        worker.recv()
    worker.send("usable")
    assert worker.recv(T) == "usable"


@pytest.mark.thorough
def test_a_handlers_timeout_error_in_a_send_ends_the_channel(start: Start) -> None:
    (worker,) = start()
    worker.send("do not read")
    assert worker.recv(T) == "not reading"
    with signalled_while_waiting(late), pytest.raises(TimeoutError, match="the handler's") as kept:
        worker.send("x" * (32 << 20))
    with pytest.raises(ConnectionError, match="was interrupted; half a message may be out"):
        worker.send(1)
    del kept


def test_a_timeout_holds_though_bytes_trickle_in() -> None:
    left, right = socket.socketpair()
    stop = threading.Event()

    def trickle() -> None:
        frame = wire.encode(wire.MESSAGE, "x" * 10_000).head
        for at in range(len(frame)):
            if stop.wait(0.05):
                return
            right.send(frame[at : at + 1])

    with Channel(left) as channel, right:
        thread = threading.Thread(target=trickle)
        thread.start()
        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            channel.recv(0.3)
        elapsed = time.monotonic() - begun
        stop.set()
        thread.join()
        assert 0.25 < elapsed < 3


def test_a_timeout_holds_though_signals_come_all_the_time() -> None:
    left, right = socket.socketpair()
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    with Channel(left) as channel, right:
        signal.setitimer(signal.ITIMER_REAL, 0.03, 0.03)
        try:
            begun = time.monotonic()
            with pytest.raises(TimeoutError):
                channel.recv(0.5)
            assert time.monotonic() - begun < 5
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def test_a_message_before_a_broken_one_is_received_by_whoever_uses_fileno() -> None:
    left, right = socket.socketpair()
    with Channel(left) as channel, right:
        right.sendall(wire.encode(wire.MESSAGE, "good").head + b"not a frame at all")
        assert select.select([channel], [], [], T)[0] == [channel]
        assert channel.recv(T) == "good"
        for _ in range(2):
            assert select.select([channel], [], [], T)[0] == [channel]
            with pytest.raises(ProtocolError):
                channel.recv(T)


def test_fileno_tells_of_messages_that_have_left_the_socket() -> None:
    left, right = map(Channel, socket.socketpair())
    with left, right:
        for number in range(3):
            right.send(number)
        for number in range(3):
            assert select.select([left], [], [], T)[0] == [left]
            assert left.recv(T) == number
        assert select.select([left], [], [], 0)[0] == []
        right.send("one more")
        assert select.select([left], [], [], T)[0] == [left]


def test_an_interrupted_recv_leaves_the_channel_usable(start: Start) -> None:
    (worker,) = start("echo")
    with signalled_while_waiting(interrupt), pytest.raises(KeyboardInterrupt):
        worker.recv()
    worker.send("usable")
    assert worker.recv(T) == "usable"


@pytest.mark.thorough
def test_a_remote_worker_that_does_not_read_for_long_is_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its kernel answers each probe of the closed window, and a dead machine's does not."""
    monkeypatch.setattr(waiting, "LOST_PEER_S", 1)
    monkeypatch.setattr(waiting, "LOOK_S", 0.2)

    def sleep_and_count(channel: Channel) -> None:
        signal.sigtimedwait([signal.SIGUSR1], channel.recv())  # as one does who computes
        channel.send([len(channel.recv()) for _ in range(2)])

    with serving(sleep_and_count) as server, RemoteWorker(server.host, server.port) as worker:
        worker.send(4.0)
        for _ in range(2):
            worker.send(bytes(24 << 20))  # more than the kernels take in
        assert worker.recv(60) == [24 << 20, 24 << 20]


@pytest.mark.slow  # as long as it has to end by itself
def test_close_ends_a_worker_that_ignores_sigterm(start: Start) -> None:
    (worker,) = start()
    worker.send("hang")
    assert worker.recv(T) == "hanging"
    worker.close()
    processes.wait_until_gone([worker.pid], timeout_s=T)
    worker.close()


def test_after_close_every_call_says_so(start: Start) -> None:
    (worker,) = start("echo")
    worker.close()
    for call in (worker.recv, lambda: worker.send(1)):
        with pytest.raises(ConnectionError, match="this side has closed"):
            call()


def test_repr_states_the_status(start: Start) -> None:
    (worker,) = start()
    assert "open" in repr(worker)
    worker.send("return")
    with pytest.raises(WorkerExited):
        worker.recv(T)
    assert "is done" in repr(worker)


def test_to_a_worker_the_other_side_is_the_coordinator(start: Start) -> None:
    (worker,) = start()
    worker.send("repr")
    assert worker.recv(T) == "<Channel coordinator: open>"


def test_wait_returns_those_with_something_to_say(start: Start) -> None:
    workers = start(count=3)
    assert wait(workers, timeout=0.05) == []
    workers[1].send("answer")
    assert wait(workers, T) == [workers[1]]
    assert workers[1].recv(T) == "answer"
    workers[2].send("die")
    assert wait(workers, T) == [workers[2]]
    with pytest.raises(WorkerDied):
        workers[2].recv(T)
    assert wait(workers, 0.05) == [workers[2]]


def test_wait_takes_one_channel_twice_and_one_that_is_closed(start: Start) -> None:
    first, second = start("echo", count=2)
    second.close()
    assert wait([first, second, first], 0.0) == [second]
    first.send(1)
    poll.until(lambda: first in wait([first], 0.0), timeout_s=T)
    assert wait([first, first], T) == [first, first]


def test_fileno_stays_readable_after_the_end(start: Start) -> None:
    (worker,) = start()
    worker.send("return")
    for _ in range(3):
        assert select.select([worker], [], [], T)[0] == [worker]
        with pytest.raises(WorkerExited):
            worker.recv(T)


def test_fileno_is_readable_exactly_when_recv_has_something_to_say(start: Start) -> None:
    (worker,) = start("echo")
    assert select.select([worker], [], [], 0)[0] == []
    for _ in range(3):
        worker.send({"a": [1, 2]})
    for _ in range(3):
        assert select.select([worker], [], [], T)[0] == [worker]
        worker.recv(T)
    assert select.select([worker], [], [], 0.02)[0] == []


def test_one_thread_sends_while_another_receives(start: Start) -> None:
    (worker,) = start("echo")
    received: list[Any] = []
    reader = threading.Thread(target=lambda: received.extend(worker.recv(T) for _ in range(300)))
    reader.start()
    for number in range(300):
        worker.send([number, b"x" * 5000], timeout=T)
    reader.join()
    assert [number for number, _ in received] == list(range(300))


def test_a_closed_sibling_sees_end_of_file(start: Start) -> None:
    first, second = start(count=2)
    first.send("pid")
    pid = first.recv(T)
    first.close()
    processes.wait_until_gone([pid], timeout_s=T)
    second.send("alive")
    assert second.recv(T) == "alive"


def test_a_worker_may_print_much_more_than_a_pipe_holds(start: Start) -> None:
    (worker,) = start()
    worker.send(("print", 5000))
    assert worker.recv(60) == "printed"


# Below: what needs no worker of each kind.


def test_a_remote_worker_may_print_what_the_locale_cannot_say() -> None:
    with serving(work.obey) as server, RemoteWorker(server.host, server.port) as worker:
        worker.send("print odd")
        assert worker.recv(T) == "printed"


def test_a_server_that_is_none_cannot_fill_a_clients_memory() -> None:
    head = wire.encode(wire.MESSAGE, "x" * 100_000).head
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            stranger, _ = listener.accept()
            with stranger, contextlib.suppress(OSError):  # it hangs up on us, as it should
                stranger.sendall(head)
                stranger.recv(1 << 16)

        impostor = threading.Thread(target=answer)
        impostor.start()
        with pytest.raises(ProtocolError, match="kind 1 is not expected here"):
            RemoteWorker("127.0.0.1", listener.getsockname()[1])
        impostor.join(T)


def test_threads_that_send_at_once_take_turns(start: Start) -> None:
    (worker,) = start("echo")
    messages = [[thread, "x" * 100_000] for thread in range(4) for _ in range(10)]

    def send(number: int) -> None:
        for message in messages:
            if message[0] == number:
                worker.send(message, timeout=60)

    threads = [threading.Thread(target=send, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    assert sorted(worker.recv(60) for _ in messages) == sorted(messages)
    for thread in threads:
        thread.join()


@pytest.mark.thorough
def test_a_send_waits_for_another_threads_turn_no_longer_than_its_timeout(start: Start) -> None:
    (worker,) = start()
    worker.send("do not read")
    assert worker.recv(T) == "not reading"

    def send_much() -> None:
        with contextlib.suppress(ConnectionError):
            worker.send("x" * (32 << 20))

    stuck = threading.Thread(target=send_much)
    stuck.start()
    poll.until(lambda: is_waiting(stuck.ident), timeout_s=T)
    with pytest.raises(TimeoutError, match=r"other threads' messages to .* took all of 0\.05s"):
        worker.send("me, too", timeout=0.05)
    worker.close()  # which wakes the one that waits
    stuck.join()


def test_close_wakes_a_thread_that_waits_in_recv(start: Start) -> None:
    (worker,) = start()
    endings: list[str] = []

    def receive() -> None:
        try:
            worker.recv()
        except ConnectionError as error:
            endings.append(str(error))

    woken = threading.Thread(target=receive)
    woken.start()
    poll.until(lambda: is_waiting(woken.ident), timeout_s=T)
    worker.close()
    woken.join(T)
    assert "this side has closed" in endings[0]


@pytest.mark.thorough
def test_a_handler_cannot_send_in_the_midst_of_the_send_that_it_interrupts(start: Start) -> None:
    (worker,) = start()
    worker.send("do not read")
    assert worker.recv(T) == "not reading"
    with signalled_while_waiting(lambda: worker.send("from the handler")):
        with pytest.raises(RuntimeError, match="handler cannot send in the midst of another"):
            worker.send("x" * (32 << 20))


class Rung(Exception):
    """What a signal's handler raises."""


@pytest.mark.thorough
def test_a_handler_that_raises_anywhere_in_recv_loses_nothing_in_silence() -> None:
    """It ends the channel, with that reason, or leaves it as it was."""

    def ring(*_: object) -> None:
        raise Rung

    def count(channel: Channel) -> None:
        with contextlib.suppress(ConnectionError):
            for number in itertools.count():
                channel.send((number, b"x" * (number % 3) * 500))

    before = signal.signal(signal.SIGALRM, ring)
    delays_s = random.Random(1)
    try:
        for _ in range(100):
            with Worker(count) as worker:
                assert receive_while_it_rings(worker, delays_s) in ("", "was interrupted")
    finally:
        signal.signal(signal.SIGALRM, before)


def receive_while_it_rings(worker: Worker, delays_s: random.Random) -> str:
    """Receive numbers while a handler raises again and again; return what that leads to."""
    expected = 0
    for _ in range(100):
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, delays_s.uniform(1e-5, 4e-4))
                while True:
                    number, _ = worker.recv(T)
                    assert number == expected
                    expected += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except Rung:
            pass
        except ConnectionError as error:
            return str(error)[-len("was interrupted") :]
    return ""


def test_a_handler_that_raises_while_nothing_has_come_leaves_the_channel_usable() -> None:
    class Ringing:
        def poll(self, timeout_ms: float) -> None:
            raise Rung

    left, right = map(Channel, socket.socketpair())
    with left, right:
        poller, left.frames.poller = left.frames.poller, Ringing()
        with pytest.raises(Rung):
            left.recv(T)
        left.frames.poller = poller
        right.send(1)
        assert left.recv(T) == 1


def test_a_handler_that_raises_just_before_a_message_is_taken_does_not_double_it() -> None:
    class Ringing(collections.deque[Any]):
        def __delitem__(self, index: Any) -> None:
            raise Rung

    left, right = map(Channel, socket.socketpair())
    with left, right:
        right.send(1)
        left.inbox = Ringing()
        with pytest.raises(Rung):
            left.recv(T)
        left.inbox = collections.deque(left.inbox)
        assert left.recv(T) == 1
        assert wait([left], 0) == []


def test_a_handler_that_raises_while_recv_looks_ahead_ends_the_channel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    next_frame = Decoder.next_frame
    calls = itertools.count(1)

    def ring_after_the_second(decoder: Decoder) -> Any:
        frame = next_frame(decoder)
        if next(calls) == 2:
            raise Rung
        return frame

    left, right = map(Channel, socket.socketpair())
    with left, right:
        left.fileno()  # so `recv` finds out whether there is more
        right.send(1)
        right.send(2)
        monkeypatch.setattr(Decoder, "next_frame", ring_after_the_second)
        with pytest.raises(Rung):
            left.recv(T)
        assert left.recv(T) == 1
        with pytest.raises(ConnectionError, match="was interrupted"):
            left.recv(T)


class Big:
    """Something that a caller has in a variable."""


def receive_in_vain(worker: Any) -> "weakref.ref[Big]":
    big = Big()
    try:
        raise LookupError("what the user is just handling")
    except LookupError:
        with pytest.raises(WorkerError):
            worker.recv(T)
    return weakref.ref(big)


@pytest.mark.thorough
@pytest.mark.parametrize("order", ["return", "raise", "die", ("exit", 2)])
def test_an_ending_that_is_raised_often_keeps_nobodys_variables(start: Start, order: Any) -> None:
    (worker,) = start()
    worker.send(order)
    references = [receive_in_vain(worker) for _ in range(3)]
    gc.collect()
    assert [reference() for reference in references] == [None] * 3


@pytest.mark.parametrize("ranks", [1, 3])
def test_nor_does_one_that_nobody_can_explain(ranks: int) -> None:
    server = Server(work.obey)
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(server.worker()) for _ in range(ranks)]
        if ranks > 1:
            Group(workers)
        os.kill(server.pid, signal.SIGKILL)
        server.child.wait(T)
        references = [receive_in_vain(worker) for worker in workers]
        gc.collect()
        assert [reference() for reference in references] == [None] * ranks
        assert "Connection refused" in repr(workers[0].ended)


def test_half_a_message_is_not_one_for_wait() -> None:
    left, right = socket.socketpair()
    with Channel(left) as channel, right:
        frame = wire.encode(wire.MESSAGE, {"x": b"0123456789"})
        data = b"".join(map(bytes, [frame.head, *frame.parts]))
        for cut in range(1, len(data)):
            right.sendall(data[:cut])
            assert wait([channel], 0.001) == []
            right.sendall(data[cut:])
            assert wait([channel], T) == [channel]
            assert select.select([channel], [], [], 0)[0] == [channel]
            assert channel.recv(T) == {"x": b"0123456789"}


def test_no_time_is_left_once_a_deadline_has_passed() -> None:
    assert waiting.time_left(waiting.deadline_after(0.0)) == 0.0
    assert waiting.time_left(waiting.deadline_after(-5.0)) == 0.0


@pytest.mark.parametrize("timeout", [float("inf"), 3e6, None])
def test_any_timeout_will_do(timeout: float | None) -> None:
    left, right = map(Channel, socket.socketpair())
    with left, right:
        right.send(1)
        assert wait([left], timeout) == [left]
        assert left.recv(timeout) == 1


@pytest.mark.thorough
@pytest.mark.parametrize("timeout", [float("inf"), 3e6])
@pytest.mark.parametrize("kind", ["local", "tcp", "cluster"])
def test_any_timeout_will_do_for_a_worker_and_its_end(kind: str, timeout: float) -> None:
    with contextlib.ExitStack() as stack:
        cluster = None
        if kind == "local":
            worker: Any = stack.enter_context(Worker(work.echo))
        elif kind == "tcp":
            server = stack.enter_context(serving(work.echo))
            worker = RemoteWorker(server.host, server.port, timeout=timeout)
        else:
            cluster = stack.enter_context(Cluster([NodeConfig.local()], start_timeout=timeout))
            (worker,) = cluster.start("tests.work.echo")
        worker.send(1, timeout)
        assert worker.recv(timeout) == 1
        assert worker.how_it_ended(timeout) is None
        worker.close(timeout)
        if cluster is not None:
            cluster.stop(timeout)


def test_iteration_over_a_plain_channel_ends_at_the_goodbye() -> None:
    left, right = map(Channel, socket.socketpair())
    with left:
        right.send(1)
        right.close()
        assert list(left) == [1]
        with pytest.raises(EOFError):
            left.recv()


def test_wait_works_beyond_1024_descriptors() -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 8192), hard), hard))
    with contextlib.ExitStack() as stack:
        pairs = [tuple(map(Channel, socket.socketpair())) for _ in range(600)]
        for pair in pairs:
            for channel in pair:
                stack.enter_context(channel)
        ours = [left for left, _ in pairs]
        assert max(channel.descriptor() for channel in ours) > 1024
        for number in (3, 599):
            pairs[number][1].send(number)
        ready = wait(ours, T)
        assert [channel.recv(T) for channel in ready] == [3, 599]


def test_a_message_is_resumed_after_a_timeout_in_its_middle() -> None:
    left, right = socket.socketpair()
    with Channel(left, name="slow peer") as channel, right:
        frame = wire.encode(wire.MESSAGE, {"x": b"0123456789"})
        data = b"".join(map(bytes, [frame.head, *frame.parts]))
        for cut in range(1, len(data), 7):
            right.sendall(data[:cut])
            with pytest.raises(TimeoutError):
                channel.recv(timeout=0.01)
            right.sendall(data[cut:])
            assert channel.recv(T) == {"x": b"0123456789"}


def test_a_frame_that_will_never_be_whole_is_an_end_for_wait() -> None:
    left, right = socket.socketpair()
    with Channel(left) as channel:
        right.send(wire.encode(wire.MESSAGE, 1).head[:-1])
        right.close()
        assert wait([channel], T) == [channel]
        with pytest.raises(ConnectionError, match="hung up without a goodbye"):
            channel.recv(T)


def test_every_thread_that_receives_hears_the_goodbye() -> None:
    left, right = socket.socketpair()
    errors: list[Exception] = []

    class Goodbye(EOFError):
        def __init__(self, text: str) -> None:
            super().__init__(text)
            if thread.ident is None:  # the goodbye is here, and the channel has not ended yet
                thread.start()
                thread.join(0.2)

    def receive() -> None:
        try:
            channel.recv(T)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=receive)
    with Channel(left) as channel:
        channel.goodbye = Goodbye
        Channel(right).close()
        receive()
        thread.join(T)
    assert [type(error) for error in errors] == [Goodbye, Goodbye]


def test_a_close_says_no_goodbye_in_the_middle_of_a_message() -> None:
    left, right = socket.socketpair()
    received = []

    def make_room_and_close() -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                received.append(right.recv(1 << 16, socket.MSG_DONTWAIT))
        channel.close()
        received.append(right.recv(1 << 16))

    with Channel(left) as channel, right, signalled_while_waiting(make_room_and_close):
        with pytest.raises(ConnectionError, match="this side has closed"):
            channel.send(b"x" * 10_000_000)
    assert received[-1] == b""
