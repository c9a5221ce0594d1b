"""What is to be said of each ending."""

import os
import signal
from typing import Any

from exercises.checking import expect


def _code_of(end: int) -> int:
    """Return the exit code of a real process that ends with this, or by signal -N."""
    pid = os.fork()
    if pid == 0:
        if end >= 0:
            os._exit(end)
        os.kill(os.getpid(), -end)
        signal.pause()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _expect(answer: Any, code: int, words: str) -> None:
    got = answer.process.describe(code)
    expect(got == words, expected=repr(words), happened=repr(got))


def check_exits(answer: Any) -> None:
    """describe processes that exit with 3, 200 and 0"""
    for code in (3, 200, 0):
        _expect(answer, _code_of(code), f"exited with status {code}")


def check_signals(answer: Any) -> None:
    """describe a process that gets SIGTERM"""
    _expect(answer, _code_of(-signal.SIGTERM), "was killed by SIGTERM")


def check_memory(answer: Any) -> None:
    """describe a process that gets SIGKILL, as the kernel sends it when memory is short"""
    _expect(answer, _code_of(-signal.SIGKILL), "was killed by SIGKILL (probably out of memory)")


def check_others(answer: Any) -> None:
    """describe the exit codes of SIGSEGV and SIGHUP"""
    _expect(answer, -signal.SIGSEGV, "was killed by SIGSEGV")
    _expect(answer, -signal.SIGHUP, "was killed by SIGHUP")


def check_a_signal_without_a_name(answer: Any) -> None:
    """describe the exit code of a process that signal 35 killed, a real-time one"""
    _expect(answer, -35, "was killed by signal 35")
