"""A worker on this machine: a channel to a forked child."""

import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

from miniray import process
from miniray.channel import Channel, close_inherited, run_work
from miniray.errors import WorkerDied, WorkerExited

REAP_S = 1.0

# A fork by another thread between a socketpair and its place in the registry of channels would copy
# its ends unseen, and nobody would close them. Its own holder, which a child is, may take it again.
_forking = threading.RLock()


class Worker(Channel):
    """Run `work_fn(channel)` in a forked child and talk to it.

    >>> def double(channel):
    ...     for message in channel:
    ...         channel.send(2 * message)
    >>> with Worker(double) as worker:
    ...     worker.send(21)
    ...     worker.recv(timeout=10.0)
    42
    """

    _goodbye = WorkerExited

    def __init__(self, work_fn: Callable[[Channel], Any], *, name: str | None = None) -> None:
        if not callable(work_fn):
            raise TypeError(f"work_fn must be a function that takes a channel, got {work_fn!r}")
        memfd = sys.platform == "linux"

        def run() -> int:
            ours.close()
            channel = Channel(theirs, name="coordinator", memfd=memfd)
            close_inherited(channel)
            return run_work(work_fn, channel)

        with _forking:
            ours, theirs = socket.socketpair()
            try:
                self._process = process.fork(run)
            except BaseException:
                ours.close()
                raise
            finally:
                theirs.close()
            super().__init__(ours, name=name or f"worker {self._process.pid}", memfd=memfd)

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def is_alive(self) -> bool:
        """Return whether the child still runs."""
        return self._process.poll() is None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the child to end; return its exit code, -N if signal N killed it.

        Raises TimeoutError after `timeout` seconds.
        """
        return self._process.wait(timeout)

    def close(self, grace: float = process.GRACE_S) -> None:
        """Hang up, and end the child: it has `grace` seconds, then SIGTERM, then SIGKILL."""
        super().close()
        process.stop([self._process], grace)

    def _explain_silence(self, error: OSError) -> Exception:
        try:
            code = self._process.wait(REAP_S)
        except TimeoutError:
            return WorkerDied(f"{self.name} closed its end and still runs, as pid {self.pid}")
        return WorkerDied(
            f"{self.name} {process.describe(code)}",
            signal=-code if code < 0 else None,
            exit_code=code if code >= 0 else None,
        )
