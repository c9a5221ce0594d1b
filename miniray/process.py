"""Fork a child, end it step by step, reap it, and say how it died."""

import contextlib
import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable

from miniray import child, inherited, torch_fork
from miniray.waiting import READABLE, Source, deadline_after, time_left, wait_until

STOP_S = 3.0
UNKILLABLE_S = 5.0
STATUS_TAKEN = 256  # no process can exit with it
PIDFD_SIGNAL_PROCESS_GROUP = 4
HAS_PIDFD = hasattr(os, "pidfd_open")


class Process(Source):
    """A forked child, the leader of its own session, which this object alone reaps."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        # How it ended: a status, -N for signal N, or STATUS_TAKEN; None while it runs.
        self.exit_code: int | None = None
        self.is_ours = True
        self._due: list[tuple[float, int]] = []
        self._reaping = threading.RLock()
        # Unlike its number, a pidfd can never come to mean another process.
        self._pidfd = os.pidfd_open(pid) if HAS_PIDFD else -1
        inherited.own(self)

    def descriptor(self) -> int:
        """Return a descriptor that is readable once the process has ended; -1 if there is none."""
        return self._pidfd

    def is_ready(self, events: int = 0) -> bool:
        """Return whether the end is known, or where there is no pidfd, whether it has come."""
        return self.exit_code is not None or (self._pidfd < 0 and self.poll() is not None)

    def watched(self) -> Iterable[tuple[int, int]]:
        return [(self._pidfd, READABLE)] if self._pidfd >= 0 else []

    def heed(self, descriptor: int, deadline: float) -> None:
        self.poll()

    def poll(self) -> int | None:
        """Reap the process if it has ended; return its exit code, -N for signal N, else None.

        What it left running in its process group is killed first. Raises RuntimeError in a forked
        child of the process that it belongs to.
        """
        if not self.is_ours:
            raise RuntimeError(f"process {self.pid} belongs to the process that forked it")
        with self._reaping:
            if self.exit_code is None and self._look(os.WNOWAIT) is not None:
                self.signal_group(signal.SIGKILL)
                self.exit_code = self._look(0)
                if self._pidfd >= 0:
                    os.close(self._pidfd)
                    self._pidfd = -1
        return self.exit_code

    def _look(self, options: int) -> int | None:
        by_pidfd = (os.P_PIDFD, self._pidfd) if HAS_PIDFD else (os.P_PID, self.pid)
        try:
            ended = os.waitid(*by_pidfd, os.WEXITED | os.WNOHANG | options)
        except ChildProcessError:  # os.wait, or SIGCHLD ignored
            return STATUS_TAKEN
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; return the exit code, raise TimeoutError after `timeout` seconds."""
        deadline = deadline_after(timeout)
        while (code := self.poll()) is None:
            if not wait_until({self: READABLE}, deadline):
                raise TimeoutError(f"process {self.pid} still runs after {timeout}s")
        return code

    def signal_group(self, number: int) -> None:
        """Send a signal to the process and its group, never to one that has the number now."""
        if not self.is_ours:
            return
        gone = ProcessLookupError, PermissionError  # or a zombie
        with self._reaping, contextlib.suppress(*gone):
            if self.exit_code is not None:
                return
            try:
                signal.pidfd_send_signal(self._pidfd, number, None, PIDFD_SIGNAL_PROCESS_GROUP)
            except ProcessLookupError:  # it has only just been forked, and has no group yet
                signal.pidfd_send_signal(self._pidfd, number)
            except (AttributeError, OSError) as error:
                if isinstance(error, OSError) and error.errno != errno.EINVAL:
                    raise
                # No pidfd here, or a Linux before 6.9: the number is right until we reap.
                if self._look(os.WNOWAIT) != STATUS_TAKEN:
                    _kill_group(self.pid, number)

    def begin_stop(self, timeout: float) -> None:
        """Start the ladder for a process that was hung up on; call it again to hurry."""
        now = time.monotonic()
        self._due = [(now + timeout / 2, signal.SIGTERM), (now + timeout, signal.SIGKILL)]

    def advance_stop(self) -> float | None:
        """Send the signals that are due; return the seconds until the next, None if no more."""
        with self._reaping:
            while self._due:
                seconds = self._due[0][0] - time.monotonic()
                if seconds > 0:
                    return seconds
                self.signal_group(self._due.pop(0)[1])
        return None

    def abandon(self) -> None:
        """Know, in a forked child, that this is not a child of its own."""
        self.is_ours = False
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


def _kill_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:  # as above
        os.kill(pid, number)


def stop(processes: Iterable[Process], timeout: float = STOP_S) -> None:
    """End processes that were hung up on: SIGTERM to their groups after half of `timeout` seconds,
    SIGKILL at its end, or at once if this is interrupted.
    """
    children = [process for process in processes if process.is_ours]
    try:
        _stop(children, timeout)
    except BaseException:  # Ctrl-C
        _stop(children, 0.0)
        raise


def _stop(alive: list[Process], timeout: float) -> None:
    for process in alive:
        process.begin_stop(timeout)
    deadline = deadline_after(timeout + UNKILLABLE_S)
    while (alive := [one for one in alive if one.poll() is None]) and time_left(deadline):
        steps = [process.advance_stop() for process in alive]
        step = min((one for one in steps if one is not None), default=UNKILLABLE_S)
        wait_until(dict.fromkeys(alive, READABLE), min(deadline, deadline_after(step)))


def describe(exit_code: int) -> str:
    """Say how a process ended, in words that continue its name."""
    if exit_code == STATUS_TAKEN:
        return "ended, and another wait in its parent took its status"
    if exit_code >= 0:
        return f"exited with status {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:  # a real-time signal has no name
        name = f"signal {-exit_code}"
    return f"was killed by {name}" + (" (probably out of memory)" if name == "SIGKILL" else "")


def fork(run: Callable[[], int], *, death_signal: int = signal.SIGKILL) -> Process:
    """Run a function in a forked child, which ends with the exit code that it returns.

    The child gets `death_signal` when this process dies (Linux; not if forked by a thread other
    than the main one, whose end the kernel would take for ours). It has nothing of what
    `inherited` knows of. Raises RuntimeError after CUDA was initialised.
    """
    torch_state = torch_fork.check_before_fork()
    child.flush()  # else the child would write what is in the buffers a second time
    parent = os.getpid()
    dies_with_us = threading.current_thread() is threading.main_thread()
    spare = os.open(os.devnull, os.O_RDONLY)  # room for a pidfd: a child would not wait for it
    try:
        pid = os.fork()
        if pid == 0:
            child.run_child(run, parent, death_signal if dies_with_us else 0, torch_state)
    finally:
        if os.getpid() != parent:  # a Ctrl-C was faster, and the caller's lines are not ours
            os._exit(1)
        os.close(spare)
    try:
        return Process(pid)
    except BaseException:  # another thread was faster, and no descriptor is left
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
