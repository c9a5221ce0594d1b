"""What reaping has to do."""

import os
import signal
from types import ModuleType

from exercises.checking import expect, note


def _child(code: int | None) -> int:
    """Fork a child that ends with a code, and wait until it has; None: one that lives."""
    pid = os.fork()
    if pid == 0:
        if code is not None:
            os._exit(code)
        while True:
            signal.pause()
    if code is not None:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid


def _end(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def check_one_that_lives(answer: ModuleType) -> None:
    """reap, while the only worker lives"""
    pid = _child(None)
    workers = {pid: "alive"}
    note("the only worker was alive")
    got = answer.reap(workers)
    expect(got == {}, expected="{}", happened=repr(got))
    expect(workers == {pid: "alive"}, expected="it is still on the list", happened="it is not")
    _end(pid)


def check_several(answer: ModuleType) -> None:
    """reap, after workers have ended with 3 and 4 and by SIGTERM, while a fourth one lives"""
    alive, killed = _child(None), _child(None)
    os.kill(killed, signal.SIGTERM)
    os.waitid(os.P_PID, killed, os.WEXITED | os.WNOWAIT)
    workers = {_child(3): "three", alive: "alive", _child(4): "four", killed: "killed"}
    note("three of four workers had ended, and one was alive")
    got = answer.reap(workers)
    expected = {"three": 3, "four": 4, "killed": -15}
    expect(got == expected, expected=repr(expected), happened=repr(got))
    left = [*workers.values()]
    expect(left == ["alive"], expected="['alive'] on the list", happened=f"{left} on the list")
    _end(alive)


def check_strangers(answer: ModuleType) -> None:
    """reap, after a worker and a child that is no worker have ended"""
    other, worker = _child(9), _child(5)
    got = answer.reap({worker: "five"})
    expect(got == {"five": 5}, expected="{'five': 5}", happened=repr(got))
    try:
        os.waitpid(other, 0)
    except ChildProcessError:
        expect(False, expected="the other child left alone", happened="its status was taken")


def check_taken(answer: ModuleType) -> None:
    """reap, after somebody else has taken the status of one of two workers"""
    first, second = _child(6), _child(7)
    os.waitpid(first, 0)
    workers = {first: "six", second: "seven"}
    got = answer.reap(workers)
    expected = {"six": 255, "seven": 7}
    expect(got == expected, expected=repr(expected), happened=repr(got))
    expect(not workers, expected="nobody on the list", happened=f"{[*workers.values()]} on it")
