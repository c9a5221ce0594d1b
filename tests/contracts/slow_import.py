"""A module whose import never ends, as that of a large framework on a slow disk seems to."""

import os
import signal
from pathlib import Path
from typing import Any

VARIABLE = "MINIRAY_TEST_IMPORTING"  # names the folder in which each process says that it imports


def work(channel: Any) -> None:
    """Never run."""


if VARIABLE in os.environ:
    Path(os.environ[VARIABLE], str(os.getpid())).touch()
    while True:
        signal.pause()
