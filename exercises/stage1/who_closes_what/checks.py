"""Who holds which end of which socket."""

import contextlib
import os
import select
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from exercises.checking import children, expect, note

Pair = tuple[socket.socket, socket.socket]


def _echo(channel: Any) -> None:
    for message in channel:
        channel.send(message)


def _start(answer: Any, work: Callable[[Any], Any]) -> tuple[Any, Pair]:
    """Start a worker; return it and both ends, so that only an explicit close closes one."""
    made: list[Pair] = []
    make = socket.socketpair

    def keep(*arguments: Any) -> Pair:
        made.append(make(*arguments))
        return made[-1]

    socket.socketpair = keep  # type: ignore[assignment]
    try:
        worker = answer.worker.Worker(work)
    finally:
        socket.socketpair = make
    expect(len(made) == 1, expected="one socketpair", happened=f"{len(made)} of them")
    ours = next((one for one in made[0] if one.fileno() == worker.fileno()), made[0][0])
    return worker, (ours, made[0][made[0].index(ours) - 1])


def _end(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _ends_within(pid: int, seconds: float) -> bool:
    handle = os.pidfd_open(pid)
    try:
        return bool(select.select([handle], [], [], seconds)[0])
    finally:
        os.close(handle)


def check_echo(answer: Any) -> None:
    """start a Worker that echoes, and send it "hello" """
    parent, ran_here = os.getpid(), []

    def work(channel: Any) -> None:
        if os.getpid() == parent:
            ran_here.append(True)
        _echo(channel)

    worker, _ = _start(answer, work)
    if os.getpid() != parent:
        os._exit(0)  # a later check says what is wrong with that
    happened = "it ran in the parent, before the fork"
    expect(not ran_here, expected="the work function to run in the child", happened=happened)
    expect(worker.pid in children(), expected="the pid of a child", happened=repr(worker.pid))
    note("a worker was to send back what it got")
    worker.send("hello")
    got = worker.recv()
    expect(got == "hello", expected="'hello'", happened=repr(got))
    expect(
        worker.name == f"worker {worker.pid}",
        expected=f"the name worker {worker.pid}",
        happened=f"the name {worker.name}",
    )
    os.kill(worker.pid, signal.SIGKILL)
    _end(worker.pid)


def check_the_child_ends(answer: Any) -> None:
    """fork a child whose function returns, and see how many processes go on"""
    _fork_and_look(answer, lambda: 0)


def _fork_and_look(answer: Any, run: Callable[[], int]) -> int:
    """Fork a child, which must not come back from that; return its exit status."""
    parent, child = os.getpid(), None
    read, write = os.pipe()
    try:
        child = answer.process.fork(run)
        how = "returned"
    except BaseException as error:
        how = f"went up by {type(error).__name__}"
        if os.getpid() == parent:
            raise
    finally:
        if os.getpid() != parent:
            os.write(write, how.encode())
            os._exit(0)
    os.close(write)
    status = _end(child.pid)
    came_back = os.read(read, 80).decode()
    expect(
        not came_back,
        expected="one process that goes on after fork",
        happened=f"two: the child {came_back} into the parent's code",
    )
    return status


def check_end_of_file_from_the_child(answer: Any) -> None:
    """start a Worker that is killed, and wait for the end of file"""
    worker, (ours, _) = _start(answer, lambda channel: os.kill(os.getpid(), signal.SIGKILL))
    _end(worker.pid)
    note("the worker had ended, and somebody still held its end of the socket")
    got = ours.recv(1)
    expect(got == b"", expected="b''", happened=repr(got))


def check_end_of_file_from_the_parent(answer: Any) -> None:
    """start a Worker that receives until there is no more, close our end, and wait for its end"""
    worker, (ours, _) = _start(answer, _echo)
    ours.close()
    ended = _ends_within(worker.pid, 0.5)
    os.kill(worker.pid, signal.SIGKILL)
    _end(worker.pid)
    expect(
        ended,
        expected="the worker to see that we hung up",
        happened="it still waits: it holds the parent's end itself",
    )


def check_siblings(answer: Any) -> None:
    """start two Workers, close our end of the first, and wait for the first to end"""
    first, (ours, _) = _start(answer, _echo)
    second, _ = _start(answer, _echo)
    ours.close()
    ended = _ends_within(first.pid, 0.5)
    for worker in (first, second):
        os.kill(worker.pid, signal.SIGKILL)
        _end(worker.pid)
    expect(
        ended,
        expected="the first worker to see that we hung up",
        happened="it still waits: the second worker holds our end of its socket",
    )


def check_siblings_of_a_fork(answer: Any) -> None:
    """start two Workers that echo, and send "hello" to the second, then to the first"""
    first, _ = _start(answer, _echo)
    second, _ = _start(answer, _echo)
    note("both workers were to send back what they got")
    try:
        for worker in (second, first):  # when the second answers, it has closed what it closes
            worker.send("hello")
            got = repr(worker.recv())
    except Exception as error:
        got = f"{type(error).__name__}"
    for worker in (first, second):
        with contextlib.suppress(ProcessLookupError, ChildProcessError):  # recv may have reaped it
            os.kill(worker.pid, signal.SIGKILL)
            _end(worker.pid)
    happened = f"{got}: when the second worker began, the first was hung up on"
    expect(got == "'hello'", expected="'hello'", happened=happened)


def check_failure(answer: Any) -> None:
    """fork a child whose function raises, and look at its exit status"""

    def fail() -> int:
        raise ValueError("as it should")

    status = _fork_and_look(answer, fail)
    expect(status == 1, expected="exit status 1", happened=f"exit status {status}")


def check_an_interrupt(answer: Any) -> None:
    """fork children whose functions raise KeyboardInterrupt and SystemExit"""
    for raised in (KeyboardInterrupt(), SystemExit("enough")):

        def leave(raised: BaseException = raised) -> int:
            raise raised

        status = _fork_and_look(answer, leave)
        expect(status == 1, expected="exit status 1", happened=f"exit status {status}")


def check_code(answer: Any) -> None:
    """fork a child whose function returns 3, and look at its exit status"""
    status = _fork_and_look(answer, lambda: 3)
    expect(status == 3, expected="exit status 3", happened=f"exit status {status}")


def check_output(answer: Any) -> None:
    """print "before", fork a child that prints "within", to a pipe, for which Python buffers"""
    read, write = os.pipe()
    before, terminal = sys.stdout, os.dup(1)
    os.dup2(write, 1)
    os.close(write)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    try:
        print("before")
        _end(answer.process.fork(lambda: print("within") or 0).pid)
        sys.stdout.flush()
    finally:
        sys.stdout = before
        os.dup2(terminal, 1)
    with os.fdopen(read) as shown:
        got = shown.read()
    expect(got == "before\nwithin\n", expected="both lines, once", happened=repr(got))
    expect(not children(), expected="no child left", happened=f"{len(children())} left")


def check_group(answer: Any) -> None:
    """fork a child that looks at once at the process group that it is in"""
    parent, setpgid = os.getpid(), os.setpgid

    def set_late(pid: int, group: int) -> None:
        if os.getpid() == parent:  # which may come after the child has looked, and here it does
            time.sleep(0.1)
        with contextlib.suppress(OSError):
            setpgid(pid, group)

    os.setpgid = set_late
    status = _end(answer.process.fork(lambda: 0 if os.getpgid(0) == os.getpid() else 1).pid)
    expect(status == 0, expected="a group of its own", happened="that of its parent")


def check_a_large_code(answer: Any) -> None:
    """fork a child whose function returns 2**40 + 5, of which the kernel would keep the 5"""
    status = _fork_and_look(answer, lambda: 2**40 + 5)
    expect(status == 5, expected="exit status 5", happened=f"exit status {status}")


def check_no_code(answer: Any) -> None:
    """fork a child whose function returns None"""
    status = _fork_and_look(answer, lambda: None)  # type: ignore[arg-type,return-value]
    expect(status in (0, 1), expected="an exit status", happened=f"exit status {status}")


def check_a_traceback(answer: Any) -> None:
    """fork a child whose function raises, and read what it writes to stderr"""

    def fail() -> int:
        raise ValueError("as it should")

    with tempfile.TemporaryFile() as file:
        before = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            _fork_and_look(answer, fail)
        finally:
            os.dup2(before, 2)
        file.seek(0)
        said = file.read().decode()
    told = "in fail" in said and "ValueError: as it should" in said
    expect(told, expected="a traceback", happened=f"{said[-60:]!r} on stderr")


def check_its_name(answer: Any) -> None:
    """start a Worker that sends the name of its channel"""
    worker, _ = _start(answer, lambda channel: channel.send(channel.name))
    got = worker.recv()
    expect(got == "coordinator", expected="'coordinator'", happened=repr(got))
