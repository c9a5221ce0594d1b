"""A worker on this machine: a channel to a forked child."""

import socket
from collections.abc import Callable
from typing import Any

from . import process
from .channel import Channel, close_inherited, run_work
from .errors import WorkerDied, WorkerExited

REAP_S = 1.0


class Worker(Channel):
    """Run `work_fn(channel)` in a forked child and talk to it.

    >>> def double(channel):
    ...     for message in channel:
    ...         channel.send(2 * message)
    >>> with Worker(double) as worker:
    ...     worker.send(21)
    ...     worker.recv()
    42
    """

    _goodbye = WorkerExited

    def __init__(self, work_fn: Callable[[Channel], Any], *, name: str | None = None) -> None:
        ours, theirs = socket.socketpair()

        def run() -> int:
            ours.close()
            close_inherited()
            return run_work(work_fn, Channel(theirs, name="coordinator"))

        with theirs:  # the child has its own: while we held this one, we would see no end of file
            self._process = process.fork(run)
        super().__init__(ours, name=name or f"worker {self._process.pid}")

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the child to end; return its exit code, -N if signal N killed it."""
        return self._process.wait(timeout)

    def close(self, timeout: float = process.STOP_S) -> None:
        """Hang up, and end the child: SIGTERM at half of the time, SIGKILL at the end of it."""
        super().close()
        self._process.stop(timeout)

    def _explain_silence(self, error: OSError) -> Exception:
        try:
            code = self._process.wait(REAP_S)
        except TimeoutError:
            return WorkerDied(f"{self.name} closed its end and still runs, as pid {self.pid}")
        return WorkerDied(f"{self.name} {process.describe(code)}")
