"""What stopping a process has to do."""

import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from exercises.checking import children, expect, expect_raises, note

SLEEPS_MAX = 5  # of a process that waits for one thing; whoever asks over and over has many


def _fork(run: Callable[[], None]) -> int:
    """Fork a child, and return once it says that it is ready."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        os.setpgid(0, 0)  # as the stage's own fork does
        run()
        os.write(write, b"r")
        while True:
            signal.pause()
    os.close(write)
    os.read(read, 1)
    os.close(read)
    return pid


def _ended(code: int) -> int:
    """Return the pid of a child that has ended, and is not reaped."""
    pid = os.fork()
    if pid == 0:
        os._exit(code)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid


def _ignore() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _tidy() -> None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(5))


def _expect_end(child: Any, code: int, words: str = "") -> None:
    """Expect a child's exit code, and that nothing is left of it."""
    left = children()
    expect(not left, expected="no child in the process table", happened=f"{len(left)} zombie")
    happened = repr(child.exit_code)
    expect(child.exit_code == code, expected=f"exit code {code}{words}", happened=happened)


def check_one_that_has_ended(answer: Any) -> None:
    """stop a Process that has ended with status 3, and give it 20 seconds"""
    child = answer.process.Process(_ended(3))
    kill = os.kill

    def look(pid: int, number: int) -> None:
        if number == 0:
            note("os.kill(pid, 0) found the child, which had ended")
        kill(pid, number)

    os.kill = look
    note("the child had ended; nothing had to be waited for")
    child.stop(20.0)
    _expect_end(child, 3)


def check_twice(answer: Any) -> None:
    """wait for a Process that has ended with status 6, and wait for it again"""
    child = answer.process.Process(_ended(6))
    note("the child had ended with status 6")
    codes = [child.wait(5.0), child.wait(5.0), child.wait()]
    expect(codes == [6, 6, 6], expected="6, three times", happened=f"{codes}")
    _expect_end(child, 6)


def check_one_that_is_reaped(answer: Any) -> None:
    """wait for a Process that has ended with status 6, and then stop it"""
    child = answer.process.Process(_ended(6))
    child.wait(5.0)
    note("the child had been reaped, and child.exit_code was 6")
    child.stop()
    _expect_end(child, 6)


def check_status_zero(answer: Any) -> None:
    """wait for a Process that has ended with status 0, stop it, and wait for it again"""
    child = answer.process.Process(_ended(0))
    child.wait(5.0)
    child.stop()
    child.wait()
    _expect_end(child, 0)


def check_one_that_lives(answer: Any) -> None:
    """wait 0.25 seconds for a Process that goes on, while another child of ours ends"""
    child = answer.process.Process(_fork(_tidy))
    other = os.fork()
    if other == 0:
        time.sleep(0.08)
        os._exit(0)
    note("0.25 seconds were over, and the child lived")
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    with expect_raises(TimeoutError, when="after 0.25 seconds"):
        got = child.wait(0.25)
        expect(False, expected="TimeoutError after 0.25 seconds", happened=f"{got!r} was returned")
    seconds = time.monotonic() - started
    sleeps = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before.ru_nvcsw
    os.waitpid(other, 0)
    happened = "TimeoutError, at once" if seconds < 0.05 else "TimeoutError, when the other ended"
    expect(seconds >= 0.2, expected="TimeoutError after 0.25 seconds", happened=happened)
    happened = f"it went to sleep {sleeps} times"
    expect(sleeps <= SLEEPS_MAX, expected="that it waits, and is woken", happened=happened)
    os.kill(child.pid, signal.SIGTERM)
    child.wait(5.0)
    _expect_end(child, 5)


def check_one_that_tidies_up(answer: Any) -> None:
    """stop a Process that catches SIGTERM, tidies up, and ends with status 5"""
    child = answer.process.Process(_fork(_tidy))
    child.stop(0.6)
    _expect_end(child, 5)


def check_one_that_ends_by_itself(answer: Any) -> None:
    """stop a Process that needs 0.15 of its first 0.6 seconds to end with status 4"""
    begun, begin = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(9))
        os.read(begun, 1)
        time.sleep(0.15)
        os._exit(4)
    child = answer.process.Process(pid)
    os.write(begin, b"x")
    child.stop(1.2)
    _expect_end(child, 4, ", from its own end")


def check_one_that_ignores_sigterm(answer: Any) -> None:
    """stop a Process that ignores SIGTERM, and give it 0.2 seconds"""
    child = answer.process.Process(_fork(_ignore))
    wait, waits = answer.process._wait_for_end, []

    def watched(pid: int, timeout: float | None) -> bool:
        waits.append(timeout)
        ended: bool = wait(pid, timeout)
        return ended

    answer.process._wait_for_end = watched
    note("SIGTERM had been ignored, and the child went on")
    child.stop(0.2)
    _expect_end(child, -9, ", which is SIGKILL")
    seconds = sum(one for one in waits[:-1] if one is not None)  # the last is after SIGKILL
    happened = f"SIGKILL after {seconds:.1f} seconds"
    expect(seconds <= 0.21, expected="SIGKILL after 0.2 seconds", happened=happened)


def check_a_kernel_that_takes_its_time(answer: Any) -> None:
    """stop a Process that ignores SIGTERM, and that SIGKILL takes 0.15 seconds to end"""
    child = answer.process.Process(_fork(_ignore))
    kill = os.kill

    def slow(pid: int, number: int) -> None:
        if number == signal.SIGKILL:
            threading.Timer(0.15, kill, (pid, number)).start()
        else:
            kill(pid, number)

    os.kill = slow
    note("SIGKILL had been sent, and the kernel was taking its time")
    try:
        child.stop(0.1)
    finally:
        os.kill = kill
    _expect_end(child, -9)


def check_descriptors(answer: Any) -> None:
    """stop a Process that has ended, and count open descriptors before and after"""
    before = len(os.listdir("/proc/self/fd"))
    answer.process.Process(_ended(0)).stop(10.0)
    more = len(os.listdir("/proc/self/fd")) - before
    expect(more == 0, expected="as many as before", happened=f"{more} more: a pidfd is one, too")


def check_no_time_at_all(answer: Any) -> None:
    """wait 0 seconds for a Process that goes on"""
    child = answer.process.Process(_fork(_tidy))
    note("there was no time to wait, and the child lived")
    with expect_raises(TimeoutError, when="at once"):
        got = child.wait(0)
        expect(False, expected="TimeoutError, at once", happened=f"{got!r} was returned")
