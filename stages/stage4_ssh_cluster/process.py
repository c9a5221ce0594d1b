"""Fork a child, end it step by step, reap it, and say how it died."""

import contextlib
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable

STOP_S = 3.0
PR_SET_PDEATHSIG = 1


class Process:
    """A forked child, the leader of its own process group."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.exit_code: int | None = None  # None until it has been reaped
        self._due: list[tuple[float, int]] = []

    def wait(self, timeout: float | None = None) -> int:
        """Reap the process; return its exit code, -N if signal N killed it.

        Raises TimeoutError if it still runs after `timeout` seconds.
        """
        if self.exit_code is None:
            if not _wait_for_end(self.pid, timeout):
                raise TimeoutError(f"process {self.pid} still runs after {timeout}s")
            _signal_group(self.pid, signal.SIGKILL)  # whatever it has left running
            self.exit_code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.exit_code

    def poll(self) -> int | None:
        """Reap the process if it has ended; return its exit code, or None while it runs."""
        if self.exit_code is None and _wait_for_end(self.pid, 0):
            self.wait(0)
        return self.exit_code

    def stop(self, timeout: float = STOP_S) -> None:
        """End a process that was hung up on: SIGTERM at half of the time, SIGKILL at its end."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            # Once it is reaped, its number may be another's.
            if self.exit_code is None and not _wait_for_end(self.pid, timeout / 2):
                _signal_group(self.pid, number)
        self.wait()

    def begin_stop(self, timeout: float) -> None:
        """Start the same ladder without waiting; `advance_stop` climbs it."""
        now = time.monotonic()
        self._due = [(now + timeout / 2, signal.SIGTERM), (now + timeout, signal.SIGKILL)]

    def advance_stop(self) -> float | None:
        """Send the signals that are due; return the seconds until the next, None if no more."""
        while self._due:
            seconds = self._due[0][0] - time.monotonic()
            if seconds > 0:
                return seconds
            _signal_group(self.pid, self._due.pop(0)[1])
        return None


def _wait_for_end(pid: int, timeout: float | None) -> bool:
    """Wait until a child that is not reaped yet has ended, or it is late; return whether it has."""
    if timeout == 0:  # it takes no descriptor to look, and a busy server may have none left
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    pidfd = os.pidfd_open(pid)
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        return bool(poller.poll(None if timeout is None else max(timeout, 0) * 1000))
    finally:
        os.close(pidfd)


def describe(exit_code: int) -> str:
    """Say how a process ended, in words that continue its name."""
    if exit_code >= 0:
        return f"exited with status {exit_code}"
    names = {int(number): number.name for number in signal.Signals}
    name = names.get(-exit_code, f"signal {-exit_code}")  # real-time signals have none
    return f"was killed by {name}" + (" (probably out of memory)" if name == "SIGKILL" else "")


def fork(run: Callable[[], int]) -> Process:
    """Run a function in a forked child, which ends with the exit code that it returns.

    The child is killed when this process dies, or the thread of it that forked (on Linux).
    """
    parent = os.getpid()
    sys.stdout.flush()  # else the child would write what is in the buffer a second time
    pid = os.fork()
    if pid != 0:
        with contextlib.suppress(OSError):  # the child was faster
            os.setpgid(pid, pid)
        return Process(pid)
    code = 1
    try:
        os.setpgid(0, 0)  # Ctrl-C in a terminal goes to the parent's group, which will tell us
        _die_with(parent)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = run() & 0xFF  # as the kernel would; os._exit raises on more than a C int
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)  # a child never returns into its parent's code


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the kernel knew whom to watch
            os._exit(1)


def _signal_group(pid: int, number: int) -> None:
    """Signal a child that is not reaped yet, and what it has started itself."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # gone, or a zombie
        os.killpg(pid, number)
