"""One worker as its server sees it: a process, a connection and output."""

import contextlib
import importlib
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from miniray import inherited, process
from miniray.worker_log import WorkerOutput

TCP_INFO_BYTES = 104


@dataclass(eq=False)
class WorkerRecord:
    """What the server knows of a worker that it has forked, and knows on when that has ended."""

    number: int
    name: str
    process: process.Process
    sock: socket.socket  # the worker talks; the server only hangs up, and notices that
    output: WorkerOutput
    started: float = field(default_factory=time.monotonic)
    ended: float | None = None
    is_stopping: bool = False  # its client has left, or the server ends it

    def __post_init__(self) -> None:
        inherited.own(self)

    def describe(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the worker's row in the reply to a status request, which may ask to look at it."""
        now, code = time.monotonic(), self.process.exit_code
        row = {
            "id": self.number,
            "name": self.name,
            "pid": self.process.pid,
            "state": "running" if self.ended is None else "ended",
            "age_s": round(now - self.started, 3),
            "silent_s": _silent_s(self.sock) if self.ended is None else None,
            "exit_code": code,
            "ended": None if code is None else process.describe(code),
            "ended_s_ago": None if self.ended is None else round(now - self.ended, 3),
        }
        if "look" in request and self.ended is None:
            # Imported by name: only who looks needs what is in there.
            row["look"] = importlib.import_module("miniray.looking.process").look(self, request)
        return row

    def hang_up(self) -> None:
        """End the connection for everybody who holds it, the worker's own children included."""
        with contextlib.suppress(OSError):  # the other side was faster
            self.sock.shutdown(socket.SHUT_RDWR)

    def abandon(self) -> None:
        """Close, in a forked child, the server's copy of the connection."""
        self.sock.close()


def _silent_s(sock: socket.socket) -> float | None:
    """Return how long ago anything was sent on a TCP connection, if the system tells."""
    if sock.family == socket.AF_UNIX or sys.platform != "linux":
        return None
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
    # struct tcp_info: eight single bytes, then 32-bit numbers; tcpi_last_data_sent is the tenth.
    return int.from_bytes(info[44:48], sys.byteorder) / 1000
