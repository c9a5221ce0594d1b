"""Fork a child, end it step by step, reap it, and say how it died."""

import os
import select
import signal
import sys
import traceback
from collections.abc import Callable

STOP_S = 3.0


class Process:
    """A forked child."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.exit_code: int | None = None  # None until it has been reaped

    def wait(self, timeout: float | None = None) -> int:
        """Reap the process; return its exit code, -N if signal N killed it.

        Raises TimeoutError if it still runs after `timeout` seconds.
        """
        if self.exit_code is None:
            if not _wait_for_end(self.pid, timeout):
                raise TimeoutError(f"process {self.pid} still runs after {timeout}s")
            self.exit_code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.exit_code

    def stop(self, timeout: float = STOP_S) -> None:
        """End a process that was hung up on: SIGTERM at half of the time, SIGKILL at its end."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            # Once it is reaped, its number may be another's.
            if self.exit_code is None and not _wait_for_end(self.pid, timeout / 2):
                os.kill(self.pid, number)
        self.wait()


def _wait_for_end(pid: int, timeout: float | None) -> bool:
    """Wait until a child that is not reaped yet has ended, or it is late; return whether it has."""
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
    """Run a function in a forked child, which ends with the exit code that it returns."""
    sys.stdout.flush()  # else the child would write what is in the buffer a second time
    pid = os.fork()
    if pid != 0:
        return Process(pid)
    code = 1
    try:
        os.setpgid(0, 0)  # Ctrl-C in a terminal goes to the parent's group, which will tell us
        code = run() & 0xFF  # as the kernel would; os._exit raises on more than a C int
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)  # a child never returns into its parent's code
