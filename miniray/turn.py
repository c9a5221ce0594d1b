"""One thread at a time, with a deadline for the others."""

import math
import threading
from threading import get_ident

from miniray.waiting import time_left


class Turn:
    """Let one thread at a time do something, and refuse a signal's handler that interrupts it.

    >>> turn.refuse_handler()
    >>> try:
    ...     turn.take(deadline)
    ... finally:
    ...     turn.leave()  # also right if an exception came before or in the middle of `take`
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._lock = threading.RLock()  # it alone can say whether this thread holds it
        self._holder: int | None = None

    def is_mine(self) -> bool:
        """Return whether this thread has the turn, which in a signal's handler it may."""
        return self._holder == get_ident()

    def refuse_handler(self) -> None:
        """Raise RuntimeError if this thread has the turn already: waiting would be for ever."""
        if self._holder == get_ident():
            raise RuntimeError(f"a signal's handler cannot {self._what} in the midst of another")

    def take(self, deadline: float = math.inf) -> None:
        """Take the turn; raise TimeoutError if others have it until the deadline."""
        if not self._lock.acquire(blocking=False):
            timeout = min(time_left(deadline), threading.TIMEOUT_MAX)
            if not self._lock.acquire(timeout=timeout):
                raise TimeoutError
        self._holder = get_ident()

    def leave(self) -> None:
        """Give the turn back, if this thread has it."""
        if self._holder == get_ident():
            self._holder = None
        try:  # noqa: SIM105  # suppress() would take longer than all the rest
            self._lock.release()
        except RuntimeError:
            pass  # it is not ours: `take` did not come so far

    def is_free(self, timeout: float = 0.0) -> bool:
        """Return whether nobody has the turn, or still has it after `timeout` seconds."""
        if self.is_mine() or not self._lock.acquire(timeout=timeout):
            return False
        self._lock.release()
        return True
