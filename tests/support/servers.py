"""A worker server in a process of its own."""

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from miniray import WorkerServer, process

T = 20.0


@dataclass
class Served:
    """Where a server listens, and its process."""

    host: str
    port: int
    pid: int


@contextlib.contextmanager
def serving(work_fn: Any, **options: Any) -> Iterator[Served]:
    """Run a WorkerServer in a forked process, which makes it: a server stays where it was made."""
    read_end, write_end = os.pipe()

    def serve() -> int:
        os.close(read_end)
        with WorkerServer(work_fn, **options) as server:
            os.write(write_end, json.dumps([server.host, server.port]).encode() + b"\n")
            os.close(write_end)
            server.serve_forever()
        return 0

    child = process.fork(serve)
    os.close(write_end)
    with open(read_end) as ready:
        host, port = json.loads(ready.readline())
    try:
        yield Served(host, port, child.pid)
    finally:
        if child.poll() is None:
            os.kill(child.pid, signal.SIGTERM)
        assert child.wait(T) == 0
