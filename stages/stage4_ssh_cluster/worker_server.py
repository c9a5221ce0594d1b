"""A server that forks one worker for each client that holds the key, in one poll loop.

python -m stages.stage4_ssh_cluster.worker_server --port 10000 --work-fn my_module.work_fn
"""

import argparse
import contextlib
import importlib
import io
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import auth, process, wire
from .channel import Channel, close_inherited, detect_lost_peer, owned, run_work
from .errors import MiniRayError

STRANGER_S = 2.0
ENDED_MAX = 256
LOG_LINE_BYTES_MAX = 16 * 1024

HANG_UP = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)


@dataclass
class WorkerRecord:
    """What the server knows of one worker."""

    number: int
    process: process.Process
    sock: socket.socket  # our copy, to notice a hang-up; the worker alone reads and writes
    label: bytes
    log: io.FileIO  # the end that we read of a pipe that is the worker's stdout and stderr
    line: bytes = b""


class WorkerServer:
    """Fork a worker that runs `work_fn(channel)` for every client that holds the key.

    Listens, on return, at `self.host`, `self.port`; `port=0` takes a free one. Raises OSError if
    it cannot listen there. A client that does not introduce itself keeps the next one waiting,
    for STRANGER_S at most.
    """

    def __init__(
        self,
        work_fn: Callable[[Channel], Any],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        key: bytes | None = None,
        node: str = "",
    ) -> None:
        self._work_fn, self._node = work_fn, node
        self._key = auth.load_key() if key is None else key
        self._stopping = False
        self._workers_started = 0
        self._workers: dict[int, WorkerRecord] = {}
        self._exit_codes: dict[Any, int] = {}  # of the last ENDED_MAX workers that have ended
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[], object]] = {}  # by the descriptor that they watch
        self._wake_read, self._wake_write = socket.socketpair()
        self._listener = _listen(host, port)
        owned.update((self._listener, self._wake_read, self._wake_write))
        self.host: str = self._listener.getsockname()[0]
        self.port: int = self._listener.getsockname()[1]

    def serve_forever(self) -> None:
        """Serve until SIGTERM or SIGINT arrives; leaves no worker. For a main thread only."""
        # Python writes a byte into this socket at every signal, which wakes the poll loop.
        self._wake_write.setblocking(False)
        self._listener.setblocking(False)
        signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self._watch(self._wake_read.fileno(), select.POLLIN, self._on_wake)
        self._watch(self._listener.fileno(), select.POLLIN, self._on_connection)
        while not self._stopping:
            self._serve_once()
        self._unwatch(self._listener.fileno())
        self._listener.close()
        for record in self._workers.values():
            with contextlib.suppress(OSError):  # its client was faster
                record.sock.shutdown(socket.SHUT_RDWR)
        while self._workers:
            self._serve_once()

    def _on_signal(self, number: int, frame: object) -> None:
        self._stopping = self._stopping or number != signal.SIGCHLD

    def _serve_once(self) -> None:
        """Wait for the next event, deal with it, and reap the workers that have ended."""
        steps = [record.process.advance_stop() for record in self._workers.values()]
        seconds = min((step for step in steps if step is not None), default=None)
        for descriptor, _ in self._poll.poll(None if seconds is None else seconds * 1000 + 1):
            # A handler before this one may have closed the descriptor.
            if handler := self._handlers.get(descriptor):
                handler()
        for record in list(self._workers.values()):
            if (exit_code := record.process.poll()) is not None:
                self._retire(record, exit_code)

    def _watch(self, descriptor: int, events: int, handler: Callable[[], object]) -> None:
        self._handlers[descriptor] = handler
        self._poll.register(descriptor, events)

    def _unwatch(self, descriptor: int) -> None:
        if self._handlers.pop(descriptor, None):
            self._poll.unregister(descriptor)

    def _on_wake(self) -> None:
        self._wake_read.recv(4096)

    def _on_connection(self) -> None:
        """Have a client prove who it is, and do what it asks for; a stranger is sent away."""
        try:
            sock, address = self._listener.accept()
        except OSError:  # it has left again
            return
        client = Channel(sock, name="the client")
        client._decoder = wire.Decoder(auth_only=True)
        try:
            detect_lost_peer(sock)
            deadline = time.monotonic() + STRANGER_S
            hello = client.recv(STRANGER_S)
            challenge = auth.challenge(self._key, hello, auth.make_nonce())
            client.send(challenge)
            answer = client.recv(max(deadline - time.monotonic(), 0))
            request = auth.read_response(self._key, hello, challenge, answer)
            if request.get("type") == "worker":
                self._start_worker(sock, str(request.get("name")))
                return
            client.send({"exit_code": self._exit_codes.get(request.get("worker"))})
        except (OSError, EOFError, MiniRayError) as error:
            where = f"{address[0]}:{address[1]}"
            print(f"closed the connection from {where}: {error}", file=sys.stderr)
        sock.close()

    def _start_worker(self, sock: socket.socket, name: str) -> None:
        self._workers_started += 1
        number = self._workers_started
        log_read, log_write = os.pipe()
        os.set_blocking(log_read, False)
        log = io.FileIO(log_read)
        owned.add(log)

        def run() -> int:
            close_inherited()
            _redirect(log_write)
            channel = Channel(sock, name="coordinator")
            channel.send({"worker": number, "pid": os.getpid()})
            return run_work(self._work_fn, channel)

        owned.discard(sock)  # it is this child's to keep, and no other's
        try:
            child = process.fork(run)
        finally:
            os.close(log_write)
        owned.add(sock)
        where = f"{self._node}:{name}" if self._node else name
        record = WorkerRecord(number, child, sock, f"[{where}] ".encode(errors="replace"), log)
        self._workers[number] = record
        self._watch(log_read, select.POLLIN, lambda: self._copy_log(record))
        self._watch(sock.fileno(), HANG_UP, lambda: self._on_hang_up(record))

    def _on_hang_up(self, record: WorkerRecord) -> None:
        """Leave a worker whose client is gone some time to end by itself."""
        self._unwatch(record.sock.fileno())
        record.process.begin_stop(process.STOP_S)

    def _copy_log(self, record: WorkerRecord) -> bool:
        """Copy some of a worker's output to stderr, line by line; return whether there was any."""
        data = record.log.read(1 << 16)
        if data is None:  # for now
            return False
        *lines, record.line = (record.line + data).split(b"\n")
        if record.line and (not data or len(record.line) > LOG_LINE_BYTES_MAX):
            lines, record.line = [*lines, record.line], b""
        with contextlib.suppress(OSError):  # nobody reads it any more, or the disk is full
            sys.stderr.buffer.write(b"".join(record.label + line + b"\n" for line in lines))
            sys.stderr.buffer.flush()
        if not data:
            self._unwatch(record.log.fileno())
        return bool(data)

    def _retire(self, record: WorkerRecord, exit_code: int) -> None:
        """Put a worker that has ended on record, and only then let its client see it."""
        del self._workers[record.number]
        self._unwatch(record.sock.fileno())
        while self._copy_log(record):
            pass
        self._unwatch(record.log.fileno())
        record.log.close()
        self._exit_codes[record.number] = exit_code
        if len(self._exit_codes) > ENDED_MAX:
            del self._exit_codes[next(iter(self._exit_codes))]
        record.sock.close()


def load_work_fn(name: str) -> Callable[[Channel], Any]:
    """Import and return the function called "package.module.function"."""
    module, _, function = name.rpartition(".")
    if not module:
        raise ValueError(f"work_fn must be MODULE.FUNCTION, got {name!r}")
    work_fn: Callable[[Channel], Any] = getattr(importlib.import_module(module), function)
    if not callable(work_fn):
        raise TypeError(f"{name} is a {type(work_fn).__name__}, not a function")
    return work_fn


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        text = f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}"
        raise OSError(error.errno, f"{text}; choose another address or port") from None


def _redirect(log_write: int) -> None:
    """Give a worker an empty stdin, and the log as stdout and stderr."""
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(log_write, 1)
    os.dup2(log_write, 2)
    os.close(log_write)
    # New streams: a test runner may have put others in their place.
    sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, closefd=False) for number in (1, 2))


def keep_node() -> None:
    """Be a Cluster's node: settings are a line on stdin, which is the lease from then on.

    The server is a child of ours. So whatever keeps it busy, an import that takes long or never
    ends, somebody watches the lease, who does nothing else.
    """
    settings = json.loads(sys.stdin.buffer.readline())
    server = process.fork(lambda: serve_node(settings))
    select.select([0, os.pidfd_open(server.pid)], [], [])  # the end of the lease, or the server's
    os.kill(server.pid, signal.SIGTERM)  # it is not reaped yet, so the number is its own
    server.stop(2 * process.STOP_S)  # of which its workers may need half


def serve_node(settings: dict[str, Any]) -> int:
    """Serve as a Cluster's node until SIGTERM, and return the exit status.

    One line goes to stdout, after the coordinator's marker: where the server listens, or what is
    wrong. Everything else that would go there goes to stderr, where the logs are.
    """
    ready = os.dup(1)
    os.dup2(2, 1)
    server = None
    ssh_connection = os.environ.get("SSH_CONNECTION", "").split()
    host = ssh_connection[2] if ssh_connection else settings["host"] or "127.0.0.1"
    try:
        work_fn = load_work_fn(settings["work_fn"])
        key, node = settings["key"].encode(), settings["node"]
        server = WorkerServer(work_fn, host=host, key=key, node=node)
        report: dict[str, Any] = {"host": server.host, "port": server.port}
    except Exception as error:  # the user's module may raise anything
        report = {"error": f"{type(error).__name__}: {error}"}
    os.write(ready, f"{settings['marker']}{json.dumps(report)}\n".encode())
    os.close(ready)
    if server is None:
        return 1
    server.serve_forever()
    return 0


def main() -> None:
    """Serve from the command line."""
    if sys.argv[1:] == ["--node"]:
        return keep_node()
    parser = argparse.ArgumentParser(
        description="Fork a worker for every client that holds the key."
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 is a free one")
    parser.add_argument("--work-fn", required=True, help="MODULE.FUNCTION to run")
    arguments = parser.parse_args()
    sys.path.insert(0, os.getcwd())
    try:
        work_fn = load_work_fn(arguments.work_fn)
        server = WorkerServer(work_fn, host=arguments.host, port=arguments.port)
    except (OSError, ImportError, AttributeError, TypeError, ValueError) as error:
        parser.error(str(error))
    print(f"listening on {server.host}:{server.port}", flush=True)
    server.serve_forever()
    print("stopped")


if __name__ == "__main__":
    main()
