"""Signals that come at a moment that a test has chosen."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from tests.support import poll

T = 20.0


def is_waiting(thread: int | None) -> bool:
    """Return whether a thread is in the package's one wait."""
    frame = sys._current_frames().get(thread or 0)
    return frame is not None and frame.f_code.co_name == "wait_until"


@contextlib.contextmanager
def signalled_while_waiting(handle: Callable[[], object]) -> Iterator[None]:
    """Have a signal's handler do something as soon as this thread waits."""

    def send_signal() -> None:
        poll.until(lambda: is_waiting(waiting_thread), timeout_s=T)
        os.kill(os.getpid(), signal.SIGUSR1)

    waiting_thread = threading.get_ident()
    before = signal.signal(signal.SIGUSR1, lambda *_: handle())
    thread = threading.Thread(target=send_signal)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)
