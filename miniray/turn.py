"""One thread at a time, with a deadline for the others."""

import math
import threading
from collections.abc import Callable
from typing import TypeVar

from miniray.waiting import Late, time_left

Result = TypeVar("Result")


class Turn:
    """Let one thread at a time do something, and refuse a signal's handler that interrupts it.

    >>> try:
    ...     turn.take(deadline)
    ... finally:
    ...     try:
    ...         turn.leave()
    ...     except RuntimeError:
    ...         pass  # `take` did not come so far
    """

    def __init__(self, what: str) -> None:
        self._what = what
        lock = self._lock = threading.RLock()
        # All three are C: a handler that raises comes before or after them, and not in between. So
        # a `finally` that begins with `leave` never fails to give the turn back.
        self.try_take: Callable[[bool], bool] = lock.acquire  # with False: at once or not at all
        self.leave: Callable[[], None] = lock.release  # raises RuntimeError if it is not ours
        # Whether this thread has the turn, which in a signal's handler it may.
        self.is_mine: Callable[[], bool] = lock._is_owned  # type: ignore[attr-defined]
        self._is_resting = False

    def rest(self, wait: Callable[[], Result]) -> Result:
        """Wait for something, in this thread's turn; what it does meanwhile may take the turn."""
        before = self._is_resting
        try:
            self._is_resting = True
            return wait()
        finally:
            self._is_resting = before

    def is_at_work(self) -> bool:
        """Return whether this thread has the turn, and does not only wait in it."""
        return self.is_mine() and not self._is_resting

    def refuse_handler(self) -> None:
        """Raise RuntimeError if this thread has the turn already: waiting would be for ever."""
        if self.is_mine():
            raise RuntimeError(f"a signal's handler cannot {self._what} in the midst of another")

    def take(self, deadline: float = math.inf) -> None:
        """Take the turn; raise Late if others have it until the deadline."""
        if not self._lock.acquire(blocking=False):
            timeout = -1 if deadline == math.inf else time_left(deadline)
            if not self._lock.acquire(timeout=timeout):
                raise Late

    def is_free(self, timeout: float = 0.0) -> bool:
        """Return whether nobody has the turn, or still has it after `timeout` seconds."""
        if self.is_mine() or not self._lock.acquire(timeout=timeout):
            return False
        self._lock.release()
        return True
