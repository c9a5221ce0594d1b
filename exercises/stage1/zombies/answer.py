"""End a process step by step, and leave no zombie."""

import os
import select
import signal


def stop(pid: int, grace_s: float) -> int:
    """End a child that was hung up on; return its exit code, -N if signal N killed it.

    It has `grace_s` seconds to end by itself, then it gets SIGTERM and as long again, then
    SIGKILL. It is reaped in the end, and not a moment is waited for one that has ended.
    """
    # begin yours
    # end yours
