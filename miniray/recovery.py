"""Go on after a death: attempt, restart, attempt again, as often as may be."""

import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from miniray.errors import ClusterError, WorkerError
from miniray.waiting import time_left

PAUSE_S = 15.0  # after a restart that has failed: with 45 s after the next, a reboot is over
PAUSE_MAX_S = 60.0

T = TypeVar("T")


class Restartable(Protocol):
    """What can begin anew: a Cluster."""

    def restart(self, *, without_lost: bool = False, timeout: float | None = None) -> object:
        """End all ranks, and start new ones."""


def attempt_again(
    cluster: Restartable,
    attempt: Callable[[int], T],
    *,
    restarts: int,
    tell: Callable[[Exception, str], None],
    deadline: float,
    without_lost: bool = False,
) -> T:
    """Return what `attempt(0)` returns; if a rank has died or failed, restart, and `attempt(1)`.

    A restart that fails counts as one of `restarts`, and the next one waits 15 s, 45 s, then 60 s:
    nodes come back. What is no death ends it at once: any other exception of the attempt, and the
    deadline, as TimeoutError. `tell` hears of each failure, and which restart comes next, and when.
    """
    if restarts < 0:
        raise ValueError(f"restarts is a number from 0 up, not {restarts}")
    restarted, pause_s, is_up = 0, 0.0, True
    while True:
        try:
            if not is_up:
                time.sleep(min(pause_s, time_left(deadline)))
                cluster.restart(without_lost=without_lost, timeout=time_left(deadline))
            is_up = True
            return attempt(restarted)
        except (WorkerError, ClusterError) as failure:
            if not is_up and not time_left(deadline):
                raise TimeoutError(f"restart {restarted}: {failure}") from failure
            if restarted == restarts:
                raise
            restarted += 1
            pause_s = 0.0 if is_up else min(pause_s * 2 + PAUSE_S, PAUSE_MAX_S)
            is_up, when = False, f", in {pause_s:.0f} s" if pause_s else ""
            tell(failure, f"restart {restarted} of {restarts}{when}")
