"""Run a work function, and have every ending told."""

import traceback
from collections.abc import Callable
from typing import Any

# What a worker says last, besides its messages: {"kind": ..., and what goes with it}
Say = Callable[[dict[str, Any]], None]


def run_work(work: Callable[[], None], say: Say) -> int:
    """Run `work()`, say once how it ended, and return the exit status of the process.

    It returned: {"kind": "exit", "code": 0}. It called sys.exit: the same with its code, where
    None is 0 and a text is 1. It raised anything else: {"kind": "error", "type": the name of the
    exception's class, "message": its text, "traceback": as Python prints it}, and status 1.
    """
    # begin yours
    # end yours
