"""End the work on a node when the coordinator is gone."""

import contextlib
import os
import select
import signal


def hold(lease: int, worker: int, grace_s: float) -> int:
    """Wait until a worker ends, or its lease does; return the worker's exit code, -N for signal N.

    `lease` is a descriptor on which the coordinator sends a byte now and then, and which reaches
    its end when the coordinator is gone, however it went. `worker` is a child that leads a process
    group. When the lease ends, the group gets SIGTERM, and the worker `grace_s` seconds. Whatever
    the group has left in the end is killed, and the worker is reaped.
    """
    # begin yours
    # end yours
