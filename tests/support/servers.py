"""WorkerServers in processes of their own, and what a test wants to know of them."""

import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from miniray import Channel, RemoteWorker, WorkerServer, auth, process
from miniray.connection import server_status

STOPPED_WITHIN_S = 30.0
ADDRESS_BYTES_MAX = 4096
IP_BIND_ADDRESS_NO_PORT = 24  # Linux's; Python has no name for it


class Server:
    """A WorkerServer in a forked child, which makes it, because it belongs to who does.

    `log` is a file or a descriptor for its stderr; `prepare` runs in the child before all else.
    """

    def __init__(
        self,
        work_fn: str | Callable[[Channel], Any],
        *,
        log: Path | int | None = None,
        prepare: Callable[[], object] = lambda: None,
        **options: Any,
    ) -> None:
        self.key: bytes = options.setdefault("key", auth.load_key())
        self.log = log
        read_end, write_end = os.pipe()

        def serve() -> int:
            os.close(read_end)
            if isinstance(log, Path):
                os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
            elif log is not None:
                os.dup2(log, 2)
            prepare()
            with WorkerServer(work_fn, **options) as server:
                os.write(write_end, json.dumps([server.host, server.port]).encode())
                os.close(write_end)
                server.serve_forever()
            return 0

        self.child = process.fork(serve)
        os.close(write_end)
        with open(read_end) as pipe:
            said = pipe.read(ADDRESS_BYTES_MAX)
        assert said, f"the server ended with {self.child.wait(STOPPED_WITHIN_S)}"
        self.host, self.port = json.loads(said)

    @property
    def pid(self) -> int:
        return self.child.pid

    def worker(self, **options: Any) -> RemoteWorker:
        """Return a new worker."""
        return RemoteWorker(self.host, self.port, key=self.key, **options)

    def connect(self, source: str = "") -> socket.socket:
        """Return a stranger's connection, from another address of this machine if one is given."""
        sock = socket.socket()
        if source:
            # The port is chosen on connecting, which is much faster when many are taken.
            sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((source, 0))
        sock.connect((self.host, self.port))
        return sock

    def status(self, **request: int) -> dict[str, Any]:
        return server_status(self.host, self.port, key=self.key, **request)

    def text(self) -> str:
        """Return what is in the log file by now."""
        assert isinstance(self.log, Path)
        return self.log.read_text(errors="surrogateescape")

    def stop(self) -> int:
        """End the server in good order; return its exit status."""
        if self.child.poll() is None:
            os.kill(self.pid, signal.SIGTERM)
        return self.child.wait(STOPPED_WITHIN_S)

    def cpu_s(self) -> float:
        """Return the seconds of processor time that it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def serving(work_fn: str | Callable[[Channel], Any], **options: Any) -> Iterator[Server]:
    """Run a WorkerServer in a process of its own for the length of a `with` block."""
    server = Server(work_fn, **options)
    try:
        yield server
    finally:
        assert server.stop() == 0
