"""What is to be said of each ending."""

import os
import signal
from types import ModuleType

from exercises.checking import expect


def _status_of(end: int) -> int:
    """Return the status of a real process that ends with this, or by signal -N."""
    pid = os.fork()
    if pid == 0:
        if end >= 0:
            os._exit(end)
        os.kill(os.getpid(), -end)
        signal.pause()
    return os.waitpid(pid, 0)[1]


def _expect(answer: ModuleType, status: int, words: str) -> None:
    got = answer.describe(status)
    expect(got == words, expected=repr(words), happened=repr(got))


def check_exits(answer: ModuleType) -> None:
    """describe processes that exit with 0, 3 and 200"""
    for code in (0, 3, 200):
        _expect(answer, _status_of(code), f"exited with status {code}")


def check_signals(answer: ModuleType) -> None:
    """describe a process that gets SIGTERM"""
    _expect(answer, _status_of(-signal.SIGTERM), "was killed by SIGTERM")


def check_memory(answer: ModuleType) -> None:
    """describe a process that gets SIGKILL, as the kernel sends it when memory is short"""
    _expect(answer, _status_of(-signal.SIGKILL), "was killed by SIGKILL (probably out of memory)")


def check_core_dump(answer: ModuleType) -> None:
    """describe the status 139: signal 11, and 128 for a core dump"""
    _expect(answer, 139, "was killed by SIGSEGV")


def check_real_time_signal(answer: ModuleType) -> None:
    """describe a process that gets signal 40, which has no name"""
    _expect(answer, _status_of(-40), "was killed by signal 40")
