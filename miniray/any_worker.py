"""What a local and a remote worker have in common: a process at the other end of a channel."""

from typing import Any

from miniray import process
from miniray.calls import expect, make_call, send_cells, take_answer
from miniray.channel import Channel
from miniray.errors import WorkerDied, WorkerError, WorkerExited
from miniray.process import STOP_S
from miniray.waiting import Late, deadline_after, time_left
from miniray.work_fn import AnyFunction

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

    def why_it_ended(self) -> Exception:
        for omen in self.omens():  # what was read of this one may be a consequence
            omen.settle()
        return super().why_it_ended()

    def call(
        self, function: str | AnyFunction, *args: Any, timeout: float | None = None, **kwargs: Any
    ) -> Any:
        """Call a function there and return its result; the worker has to be one that answers calls.

        The function goes by name. What it raises ends the worker, and is WorkerFailed here. After a
        TimeoutError it goes on: the next call waits for its end, and its result is dropped. But a
        worker that has not taken in all of the call by then is closed, as after `send`. Threads
        that call at once take turns.

        >>> with Worker() as worker:
        ...     worker.call(math.hypot, 3, 4)
        5.0
        """
        deadline, call = deadline_after(timeout), make_call(function, *args, **kwargs)
        answer = expect(call)
        self.turn_to_call.refuse_handler()
        try:
            self.turn_to_call.take(deadline)
            send_cells([self], call["call"], time_left(deadline))
            self.send(call, time_left(deadline))
            return take_answer(self, call, answer, deadline, timeout)
        except Late:
            others = f"other threads' calls of {self.name} took all of {timeout}s"
            raise TimeoutError(others) from None
        finally:
            try:  # noqa: SIM105  # a handler that raises could come in the midst of suppress()
                self.turn_to_call.leave()
            except RuntimeError:  # another thread's turn
                pass

    def close(self, timeout: float = STOP_S) -> None:
        """Hang up, and see to it that the process ends within `timeout` seconds."""
        super().close()

    def ending(self, exit_code: int, *, said_goodbye: bool = True) -> WorkerError:
        """Return the error for an exit code, or what the worker itself has said of its end."""
        if isinstance(self.ended, WorkerError):
            return self.ended
        text = f"{self.name} {process.describe(exit_code)}"
        if exit_code == 0 and said_goodbye:
            return WorkerExited(text)
        return WorkerDied(
            text if exit_code else f"{text}, and without a goodbye",
            signal=-exit_code if exit_code < 0 else None,
            exit_code=exit_code if 0 <= exit_code != process.STATUS_TAKEN else None,
        )
