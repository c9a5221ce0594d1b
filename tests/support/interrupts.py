"""Signals, and Ctrl-C, that come at a moment that a test has chosen."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Container, Iterator
from types import FrameType
from typing import Any

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


class Interrupter:
    """Raise KeyboardInterrupt before the line number `at` of `files`, in this thread."""

    def __init__(self, at: int, files: Container[str | None]) -> None:
        self.at, self.lines, self._files = at, 0, files
        self.where, self.time = "", 0.0

    def begin(self) -> None:
        """Count from now on, in what is called from now on."""
        sys.settrace(self._enter)

    def __enter__(self) -> "Interrupter":
        self.begin()
        return self

    def __exit__(self, *exc_info: object) -> None:
        sys.settrace(None)

    def _enter(self, frame: FrameType, event: str, argument: object) -> Any:
        return self._line if frame.f_code.co_filename in self._files else None

    def _line(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "line":
            self.lines += 1
            if self.lines == self.at:
                self.where = f"{frame.f_code.co_qualname}:{frame.f_lineno}"
                self.time = time.monotonic()
                raise KeyboardInterrupt
        return self._line
