"""Who holds which end of which socket."""

import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from types import ModuleType

from exercises.checking import children, expect, note


def _echo(sock: socket.socket) -> None:
    while data := sock.recv(100):
        sock.sendall(data)


def _start(
    answer: ModuleType, work: Callable[[socket.socket], None], *siblings: socket.socket
) -> tuple[int, socket.socket, socket.socket]:
    """Start a worker; return its pid and both ends, so that only an explicit close closes one."""
    ours, theirs = socket.socketpair()
    return answer.start_worker(work, ours, theirs, list(siblings)), ours, theirs


def _end(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _ends_within(pid: int, seconds: float) -> bool:
    handle = os.pidfd_open(pid)
    try:
        return bool(select.select([handle], [], [], seconds)[0])
    finally:
        os.close(handle)


def check_echo(answer: ModuleType) -> None:
    """start a worker that echoes, and send it b"hello" """
    parent = os.getpid()
    pid, sock, _ = _start(answer, _echo)
    if os.getpid() != parent:
        os._exit(0)  # a later check says what is wrong with that
    expect(pid > 0, expected="the pid of a child", happened=repr(pid))
    sock.settimeout(1.0)
    sock.sendall(b"hello")
    try:
        got = sock.recv(100)
    except TimeoutError:
        got = b"nothing within a second"
    expect(got == b"hello", expected="b'hello'", happened=repr(got))
    os.kill(pid, signal.SIGKILL)
    _end(pid)


def check_the_child_ends(answer: ModuleType) -> None:
    """start a worker whose function returns, and see how many processes go on"""
    parent = os.getpid()
    read, write = os.pipe()
    pid, *_ = _start(answer, lambda theirs: None)
    if os.getpid() != parent:
        os.write(write, b"x")
        os._exit(0)
    os.close(write)
    _end(pid)
    came_back = os.read(read, 1)
    expect(
        not came_back,
        expected="one process that goes on after start_worker",
        happened="two: the child returned into the parent's code",
    )


def check_end_of_file_from_the_child(answer: ModuleType) -> None:
    """start a worker whose function returns, and wait for the end of file"""
    pid, sock, _ = _start(answer, lambda theirs: None)
    _end(pid)
    note("the worker had ended, and somebody still held its end of the socket")
    got = sock.recv(1)
    expect(got == b"", expected="b''", happened=repr(got))


def check_end_of_file_from_the_parent(answer: ModuleType) -> None:
    """start a worker that reads until the end of file, close our end, and wait for its end"""
    pid, sock, _ = _start(answer, _echo)
    sock.close()
    ended = _ends_within(pid, 0.5)
    os.kill(pid, signal.SIGKILL)
    status = _end(pid)
    expect(
        ended,
        expected="the worker to see that we hung up",
        happened="it still waits: it holds the parent's end itself",
    )
    expect(status == 0, expected="exit status 0", happened=f"exit status {status}")


def check_siblings(answer: ModuleType) -> None:
    """start two workers, close our end of the first, and wait for the first to end"""
    first, sock, _ = _start(answer, _echo)
    second, *_ = _start(answer, _echo, sock)
    sock.close()
    ended = _ends_within(first, 0.5)
    for pid in (first, second):
        os.kill(pid, signal.SIGKILL)
        _end(pid)
    expect(
        ended,
        expected="the first worker to see that we hung up",
        happened="it still waits: the second worker holds our end of its socket",
    )


def check_failure(answer: ModuleType) -> None:
    """start a worker whose function raises, and look at its exit status"""

    def fail(theirs: socket.socket) -> None:
        raise ValueError("as it should")

    pid, *_ = _start(answer, fail)
    status = _end(pid)
    expect(status == 1, expected="exit status 1", happened=f"exit status {status}")


def check_output(answer: ModuleType) -> None:
    """start a worker that prints to a pipe, which Python buffers"""
    read, write = os.pipe()
    before, terminal = sys.stdout, os.dup(1)
    os.dup2(write, 1)
    os.close(write)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    try:
        pid, *_ = _start(answer, lambda theirs: print("printed by the worker"))
        _end(pid)
    finally:
        sys.stdout = before
        os.dup2(terminal, 1)
    with os.fdopen(read) as shown:
        got = shown.read()
    expect(got == "printed by the worker\n", expected="its line", happened=repr(got))
    expect(not children(), expected="no child left", happened=f"{len(children())} left")
