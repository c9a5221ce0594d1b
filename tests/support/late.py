"""Finds tests that trust in who is quicker: one side of every fork comes late.

LATE=child pytest -p tests.support.late ...   (or LATE=parent; LATE_S=0.3 for more than 0.08 s)
"""

import os
import time

_fork = os.fork


def _fork_and_be_late() -> int:
    pid = _fork()
    if (pid == 0) == (os.environ["LATE"] == "child"):
        time.sleep(float(os.environ.get("LATE_S", "0.08")))
    return pid


os.fork = _fork_and_be_late
