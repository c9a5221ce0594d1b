"""What one turn of a server has to do."""

import os
import select
import signal
import socket
from typing import Any

from exercises.checking import expect, note


def _child(code: int | None) -> int:
    """Fork a child that ends with a code, and wait until it has; None: one that lives."""
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if code is not None:
            os._exit(code)
        while True:
            signal.pause()
    if code is not None:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid


def _server(answer: Any, *pids: int) -> Any:
    """Return a server with these workers, numbered from 1, and an event that has come."""
    server = answer.worker_server.WorkerServer(lambda channel: None, key=b"k")
    for number, pid in enumerate(pids, 1):
        ours, _theirs = socket.socketpair()
        child = answer.process.Process(pid)
        server._workers[number] = answer.worker_server.WorkerRecord(number, child, ours)
    server._watch(server._wake_read.fileno(), select.POLLIN, server._on_wake)
    server._wake_write.send(b"x")
    return server


def _end(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def check_one_that_lives(answer: Any) -> None:
    """poll a Process that lives"""
    pid = _child(None)
    note("the process was alive")
    got = answer.process.Process(pid).poll()
    expect(got is None, expected="None", happened=repr(got))
    _end(pid)


def check_one_that_has_ended(answer: Any) -> None:
    """poll a Process that has ended with 7, twice"""
    child = answer.process.Process(_child(7))
    got = [child.poll(), child.poll()]
    expect(got == [7, 7], expected="7, and 7 again", happened=f"{got[0]}, and {got[1]}")


def check_strangers(answer: Any) -> None:
    """poll, after a Process and a child that is none of ours have ended"""
    other, pid = _child(9), _child(5)
    got = answer.process.Process(pid).poll()
    expect(got == 5, expected="5", happened=f"{got}; the other's status was taken")
    try:
        os.waitpid(other, 0)
    except ChildProcessError:
        expect(False, expected="the other child left alone", happened="its status was taken")


def check_several(answer: Any) -> None:
    """serve once, after workers 1, 3 and 4 have ended, with 3, 4 and by SIGTERM; 2 lives"""
    alive, killed = _child(None), _child(None)
    os.kill(killed, signal.SIGTERM)
    os.waitid(os.P_PID, killed, os.WEXITED | os.WNOWAIT)
    server = _server(answer, _child(3), alive, _child(4), killed)
    note("one event had come; three of four workers had ended, and one was alive")
    server._serve_once()
    got = dict(server._exit_codes)
    expected = {1: 3, 3: 4, 4: -15}
    expect(got == expected, expected=f"exit codes {expected}", happened=repr(got))
    left = [*server._workers]
    expect(left == [2], expected="number 2 left", happened=f"{left} left")
    _end(alive)


def check_status_zero(answer: Any) -> None:
    """serve once, after the only worker has ended with status 0"""
    server = _server(answer, _child(0))
    server._serve_once()
    happened = f"{dict(server._exit_codes)}, and {len(server._workers)} left"
    expect(server._exit_codes == {1: 0}, expected="{1: 0}, and 0 left", happened=happened)


class Watched:
    """A poll object that notes how long it may wait."""

    def __init__(self, poll: Any) -> None:
        self._inner = poll
        self.asked: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def poll(self, milliseconds: Any = None) -> Any:
        self.asked.append(milliseconds)
        return self._inner.poll(milliseconds)


def check_in_time(answer: Any) -> None:
    """serve once, with an event, while signals to two workers are due, in 20 s and in 5 s"""
    pids = [_child(None) for _ in range(2)]
    server = _server(answer, *pids)
    for number, stop_s in ((1, 40.0), (2, 10.0)):
        server._workers[number].process.begin_stop(stop_s)
    server._poll = Watched(server._poll)
    server._serve_once()
    asked = server._poll.asked[0] if server._poll.asked else "nothing"
    if asked is not None:  # whoever waits forever learns it from the next check
        right = isinstance(asked, int | float) and 1000 <= asked <= 5100
        happened = f"poll({asked:.0f})" if isinstance(asked, int | float) else f"poll({asked})"
        expect(right, expected="poll to wait for some 5000 milliseconds", happened=happened)
    _end(*pids)


def check_the_next_signal(answer: Any) -> None:
    """serve, while a worker that ignores its end has 0.1 s, and nothing else happens"""
    server = _server(answer, _child(None))
    server._wake_write.setblocking(False)  # as serve_forever has it: a child's end is an event
    signal.set_wakeup_fd(server._wake_write.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    server._workers[1].process.begin_stop(0.1)
    note("no event came, and a signal to the worker was due")
    while server._workers:
        server._serve_once()


def check_an_end_meanwhile(answer: Any) -> None:
    """serve once, with an event during whose handler the only worker ends, with 6"""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write)
        os._exit(6 if os.read(read, 1) == b"" else 1)
    server = _server(answer, pid)

    def handle() -> None:
        server._on_wake()
        os.close(write)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    server._handlers[server._wake_read.fileno()] = handle
    server._serve_once()
    happened = f"{dict(server._exit_codes)}, and {len(server._workers)} left"
    expect(server._exit_codes == {1: 6}, expected="{1: 6}, and 0 left", happened=happened)


def check_a_handler_that_is_gone(answer: Any) -> None:
    """serve once, with two events, of which the handler of each takes the other away"""
    server = _server(answer)
    called = []
    pipes = [os.pipe() for _ in range(2)]
    for number, (read, write) in enumerate(pipes):
        other = pipes[1 - number][0]

        def handle(number: int = number, other: int = other) -> None:
            called.append(number)
            server._unwatch(other)

        server._watch(read, select.POLLIN, handle)
        os.write(write, b"x")
    server._serve_once()
    expect(len(called) == 1, expected="one of the two called", happened=f"{len(called)} called")
