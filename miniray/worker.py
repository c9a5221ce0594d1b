"""A worker on this machine: a channel to a forked child."""

import socket
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from miniray import inherited, process
from miniray.channel import Channel
from miniray.endings import run_work
from miniray.errors import WorkerDied, WorkerError, WorkerExited
from miniray.process import STOP_S
from miniray.waiting import Source, time_left

REAP_S = 1.0
EXPLAIN_S = 3.0


class AnyWorker(Channel):
    """What a local and a remote worker have in common: a process at the other end."""

    goodbye = WorkerExited
    goodbye_hint = ": its work function returned (to answer more than once it needs a loop)"
    pid: int

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the process to end; return its exit code, -N if signal N killed it.

        Raises TimeoutError after `timeout` seconds, and WorkerDied if nobody can tell any more.
        """
        raise NotImplementedError

    def is_alive(self) -> bool:
        """Return whether the process still runs."""
        return self.how_it_ended() is None

    def how_it_ended(self, timeout: float = EXPLAIN_S) -> WorkerError | None:
        """Return, as the error that `recv` raises, how the process ended; None while it runs."""
        raise NotImplementedError

    def close(self, timeout: float = STOP_S) -> None:
        """Hang up, and see to it that the process ends within `timeout` seconds."""
        super().close()

    def ending(self, exit_code: int) -> WorkerError:
        """Return the error for an exit code, or what the worker itself has said of its end."""
        if isinstance(self.ended, WorkerError):
            return self.ended
        text = f"{self.name} {process.describe(exit_code)}"
        if exit_code == 0:
            return WorkerExited(text)
        return WorkerDied(
            text,
            signal=-exit_code if exit_code < 0 else None,
            exit_code=exit_code if 0 < exit_code != process.STATUS_TAKEN else None,
        )


class Worker(AnyWorker):
    """Run `work_fn(channel)` in a forked child and talk to it.

    >>> def double(channel):
    ...     for message in channel:
    ...         channel.send(2 * message)
    >>> with Worker(double) as worker:
    ...     worker.send(21)
    ...     worker.recv(timeout=10.0)
    42
    """

    def __init__(self, work_fn: Callable[[Channel], Any], *, name: str | None = None) -> None:
        if not callable(work_fn):
            raise TypeError(f"work_fn must be a function that takes a channel, got {work_fn!r}")
        memfd = sys.platform == "linux"

        def run() -> int:
            ours.close()
            return run_work(work_fn, Channel(theirs, name="coordinator", memfd=memfd))

        with inherited.lock:  # until our end has an owner, no other thread's child may copy it
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
    def pid(self) -> int:  # type: ignore[override]  # a property is a narrower attribute
        """The child's process id."""
        return self._process.pid

    def wait(self, timeout: float | None = None) -> int:
        return self._process.wait(timeout)

    def how_it_ended(self, timeout: float = EXPLAIN_S) -> WorkerError | None:
        code = self._process.poll()
        return None if code is None else self.ending(code)

    def close(self, timeout: float = STOP_S) -> None:
        """Hang up, and end the child: it gets SIGTERM after half of `timeout`, SIGKILL at its end.

        An interrupt, Ctrl-C say, ends it at once.
        """
        try:
            super().close()
        finally:
            process.stop([self._process], timeout)

    def __del__(self) -> None:
        child = getattr(self, "_process", None)
        if child is None or child.exit_code is not None or not child.is_ours:
            return
        warnings.warn(
            f"{self!r} was dropped; close it, or use `with`", ResourceWarning, stacklevel=2
        )
        self.close()

    def omens(self) -> Iterable[Source]:
        return [self._process]

    def is_ready(self) -> bool:
        return super().is_ready() or self.is_gone()

    def is_gone(self) -> bool:
        return self._process.is_ready()

    def explain(self, error: OSError, deadline: float) -> Exception:
        try:
            code = self._process.wait(min(REAP_S, time_left(deadline)))
        except TimeoutError:
            return WorkerDied(f"{self.name} closed its end and still runs, as pid {self.pid}")
        return self.ending(code)
