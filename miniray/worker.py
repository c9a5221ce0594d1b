"""A worker on this machine: a channel to a forked child."""

import socket
import sys
import warnings
from collections.abc import Iterable

from miniray import inherited, process
from miniray.any_worker import EXPLAIN_S, AnyWorker
from miniray.calls import answer_calls
from miniray.channel import Channel
from miniray.endings import run_work
from miniray.errors import WorkerDied, WorkerError
from miniray.process import STOP_S
from miniray.waiting import Source, time_left
from miniray.work_fn import AnyFunction

REAP_S = 1.0


class Worker(AnyWorker):
    """Run `work_fn(channel)` in a forked child and talk to it; without one, it answers `call`.

    >>> def double(channel):
    ...     for message in channel:
    ...         channel.send(2 * message)
    >>> with Worker(double) as worker:
    ...     worker.send(21)
    ...     worker.recv(timeout=10.0)
    42
    """

    def __init__(self, work_fn: AnyFunction = answer_calls, *, name: str | None = None) -> None:
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
            self.pid = self._process.pid
            super().__init__(ours, name=name or f"worker {self.pid}", memfd=memfd)

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

    def is_gone(self) -> bool:
        return self._process.is_ready()

    def explain(self, error: OSError, deadline: float) -> Exception:
        try:
            code = self._process.wait(min(REAP_S, time_left(deadline)))
        except TimeoutError:
            return WorkerDied(f"{self.name} closed its end and still runs, as pid {self.pid}")
        return self.ending(code, said_goodbye=False)
