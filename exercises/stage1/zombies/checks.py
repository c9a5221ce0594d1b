"""What stopping a process has to do."""

import os
import signal
import time
from collections.abc import Callable
from types import ModuleType

from exercises.checking import children, expect, note


def _fork(run: Callable[[], None]) -> int:
    """Fork a child, and return once it says that it is ready."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        run()
        os.write(write, b"r")
        while True:
            signal.pause()
    os.close(write)
    os.read(read, 1)
    os.close(read)
    return pid


def _ignore() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _tidy() -> None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(5))


def check_one_that_has_ended(answer: ModuleType) -> None:
    """stop a child that has ended with status 3, with a grace of 10 seconds"""
    pid = os.fork()
    if pid == 0:
        os._exit(3)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # it has, and is not reaped
    note("the child had ended; nothing had to be waited for")
    code = answer.stop(pid, 10.0)
    expect(code == 3, expected="exit code 3", happened=repr(code))
    left = children()
    expect(not left, expected="no child in the process table", happened=f"{len(left)} zombie")


def check_one_that_tidies_up(answer: ModuleType) -> None:
    """stop a child that catches SIGTERM, tidies up, and ends with status 5"""
    pid = _fork(_tidy)
    code = answer.stop(pid, 0.1)
    expect(code == 5, expected="exit code 5", happened=repr(code))
    left = children()
    expect(not left, expected="no child in the process table", happened=f"{len(left)} zombie")


def check_one_that_ends_by_itself(answer: ModuleType) -> None:
    """stop a child that needs 0.15 of its 0.6 seconds of grace to end with status 4"""
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(9))
        while time.monotonic() < started + 0.15:
            signal.sigtimedwait([signal.SIGUSR1], 0.02)
        os._exit(4)
    code = answer.stop(pid, 0.6)
    expect(code == 4, expected="exit code 4, from its own end", happened=repr(code))


def check_one_that_ignores_sigterm(answer: ModuleType) -> None:
    """stop a child that ignores SIGTERM, with a grace of 0.1 seconds"""
    pid = _fork(_ignore)
    note("SIGTERM had been ignored, and the child went on")
    code = answer.stop(pid, 0.1)
    expect(code == -9, expected="exit code -9, which is SIGKILL", happened=repr(code))
    left = children()
    expect(not left, expected="no child in the process table", happened=f"{len(left)} zombie")


def check_descriptors(answer: ModuleType) -> None:
    """stop a child that has ended, and count open descriptors before and after"""
    before = len(os.listdir("/proc/self/fd"))
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    answer.stop(pid, 5.0)
    more = len(os.listdir("/proc/self/fd")) - before
    expect(more == 0, expected="as many as before", happened=f"{more} more: a pidfd is one, too")
