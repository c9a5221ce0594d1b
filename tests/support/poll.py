"""Wait for a condition, with a deadline, instead of sleeping for a guessed time."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T], *, timeout_s: float = 30.0, what: str = "") -> T:
    """Call `condition` until it is true, and return its value; or raise TimeoutError."""
    deadline = time.monotonic() + timeout_s
    pause_s = 0.002
    while not (value := condition()):
        if time.monotonic() >= deadline:
            raise TimeoutError(f"{what or condition!r} did not come true within {timeout_s}s")
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 0.05)
    return value
