"""Finds tests that trust in who is quicker: one side comes late, always.

LATE=child pytest -p tests.support.late ...   (LATE_S=0.3 for more than 0.08 s)

child, parent    of every fork
thread, starter  of every thread
sender           after a message's last byte is out, and before `send` returns
"""

import os
import threading
import time
from collections.abc import Generator
from typing import Any

from miniray.channel import Channel

LATE = os.environ["LATE"]
_fork = os.fork
_start = threading.Thread.start
_run = threading.Thread.run
_sending = Channel.sending


def _be_late() -> None:
    time.sleep(float(os.environ.get("LATE_S", "0.08")))


def _fork_and_be_late() -> int:
    pid = _fork()
    if (pid == 0) == (LATE == "child"):
        _be_late()
    return pid


def _start_and_be_late(thread: threading.Thread) -> None:
    _start(thread)
    _be_late()


def _be_late_and_run(thread: threading.Thread) -> None:
    _be_late()
    _run(thread)


def _send_and_be_late(channel: Channel, *args: Any) -> Generator[int, None, None]:
    yield from _sending(channel, *args)
    _be_late()


if LATE in ("child", "parent"):
    os.fork = _fork_and_be_late
elif LATE == "starter":
    threading.Thread.start = _start_and_be_late  # type: ignore[method-assign, assignment]
elif LATE == "thread":
    threading.Thread.run = _be_late_and_run  # type: ignore[method-assign, assignment]
elif LATE == "sender":
    Channel.sending = _send_and_be_late  # type: ignore[method-assign, assignment]
else:
    raise SystemExit(f"LATE={LATE}: child, parent, thread, starter or sender")
