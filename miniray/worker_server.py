"""A server that forks one worker for each authenticated connection, in one poll loop.

python -m miniray.worker_server --port 10000 --work-fn my_module.work_fn
"""

import collections
import contextlib
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from miniray import __version__, auth, process, wire
from miniray.channel import Channel, close_inherited, detect_lost_peer, run_work
from miniray.errors import ProtocolError

STRANGERS_MAX = 64
STRANGER_S = 5.0
ENDED_RECORDS_MAX = 256
LOG_BYTES_MAX = 1024 * 1024
LOG_LINE_BYTES_MAX = 16 * 1024
PIPE_BUF = 4096  # what a pipe that is ready for writing takes without blocking
TICK_S = 0.5
STATUS_BYTES_MAX = 1024 * 1024

HAS_PIDFD = hasattr(os, "pidfd_open")
# What a welcome is made of: the key, and the three messages before it.
Proofs = tuple[bytes, auth.Message, auth.Message, auth.Message]
HANG_UP = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)


@dataclass
class Stranger:
    """A connection that has not proven anything yet."""

    sock: socket.socket
    address: str
    deadline: float
    decoder: wire.Decoder = field(default_factory=lambda: wire.Decoder(auth_only=True))
    opening: tuple[auth.Message, auth.Message] | None = None  # its hello and our challenge


@dataclass
class WorkerRecord:
    """What the server knows of one worker: its process, its connection, its output."""

    number: int
    name: str
    process: process.Process
    sock: socket.socket  # our copy, to notice a hang-up; the worker alone reads and writes
    log: int
    started: float
    line: bytearray = field(default_factory=bytearray)
    ended: float | None = None

    def describe(self, now: float) -> dict[str, Any]:
        """Return the worker's row in a status reply."""
        code = self.process.exit_code
        return {
            "id": self.number,
            "name": self.name,
            "pid": self.process.pid,
            "state": "running" if code is None else "ended",
            "age_s": round(now - self.started, 3),
            "silent_s": None if code is not None else _silent_s(self.sock),
            "exit_code": code,
            "ended": None if code is None else process.describe(code),
            "ended_s_ago": None if self.ended is None else round(now - self.ended, 3),
        }


class WorkerServer:
    """Fork a worker that runs `work_fn(channel)` for every client that holds the key.

    `work_fn` is a function or its name, "package.module.function", whose module is imported once,
    here. Listens, on return, at `self.host`, `self.port`; `port=0` takes a free one. A host that
    is a path makes it a Unix socket. Raises OSError if it cannot listen there.

    >>> server = WorkerServer("my_module.work_fn", port=10000)
    >>> server.serve_forever()
    """

    def __init__(
        self,
        work_fn: str | Callable[[Channel], Any],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        key: bytes | None = None,
        max_workers: int = 64,
        node: str = "",
    ) -> None:
        if max_workers < 1:
            raise ValueError(f"max_workers must be at least 1, got {max_workers}")
        self._work_fn = load_work_fn(work_fn) if isinstance(work_fn, str) else work_fn
        self._key = auth.load_key() if key is None else key
        self._max_workers, self._node = max_workers, node
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._strangers: dict[int, Stranger] = {}
        self._leases: list[socket.socket] = []
        self._workers: dict[int, WorkerRecord] = {}
        self._ended: collections.deque[WorkerRecord] = collections.deque(maxlen=ENDED_RECORDS_MAX)
        self._workers_started = 0
        self._started = time.monotonic()
        self._log = bytearray()
        self._log_bytes_dropped = 0
        self._grace_s: float | None = None  # None, or stopping with this grace
        self._silence_max_s: float | None = None
        self._stdin_heard = 0.0
        self._listener = _listen(host, port)
        name = self._listener.getsockname()
        self.host: str = name if isinstance(name, str) else name[0]
        self.port: int = 0 if isinstance(name, str) else name[1]
        self._wake_read, self._wake_write = os.pipe()
        for descriptor in (self._wake_read, self._wake_write):
            os.set_blocking(descriptor, False)

    def serve_forever(self) -> None:
        """Serve until `stop` is called or SIGTERM, SIGINT or SIGHUP arrives; leaves no worker."""
        self._watch(self._listener.fileno(), select.POLLIN, self._on_connection)
        self._watch(self._wake_read, select.POLLIN, self._on_wake)
        old_handlers = {}
        with contextlib.suppress(ValueError):  # not the main thread: signals are not ours
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                old_handlers[number] = signal.signal(number, lambda *_: self.stop())
        try:
            while self._grace_s is None or self._workers:
                self._serve_once()
        finally:
            for number, handler in old_handlers.items():
                signal.signal(number, handler)
            self._close()

    def stop(self, grace: float = process.GRACE_S) -> None:
        """Have `serve_forever` end all workers and return; any thread may call it, or a signal.

        Workers are hung up on, get SIGTERM after `grace` seconds and SIGKILL after twice that. A
        second call ends them at once.
        """
        self._grace_s = grace if self._grace_s is None else 0.0
        with contextlib.suppress(BlockingIOError, OSError):  # it is awake already, or closed
            os.write(self._wake_write, b"w")

    def _serve_once(self) -> None:
        for descriptor, events in self._poll.poll(self._next_deadline_s() * 1000):
            # A handler before this one may have closed the descriptor.
            if handler := self._handlers.get(descriptor):
                handler(events)
        for record in list(self._workers.values()):
            record.process.advance_stop()
        if not HAS_PIDFD:
            self._reap()
        for stranger in list(self._strangers.values()):
            if time.monotonic() > stranger.deadline:
                self._dismiss(stranger, f"not introduced after {STRANGER_S:.0f}s")
        if self._silence_max_s and time.monotonic() - self._stdin_heard > self._silence_max_s:
            self._on_lease_lost(0)

    def _next_deadline_s(self) -> float:
        now = time.monotonic()
        deadlines = [stranger.deadline - now for stranger in self._strangers.values()]
        steps = [record.process.advance_stop() for record in self._workers.values()]
        deadlines += [step for step in steps if step is not None]
        if self._workers and not HAS_PIDFD:
            deadlines.append(0.05)  # nothing wakes us here when a worker ends
        return max(min(deadlines, default=TICK_S), 0)

    def _reap(self) -> None:
        for record in list(self._workers.values()):
            self._reap_if_ended(record)

    def _reap_if_ended(self, record: WorkerRecord) -> None:
        pidfd = record.process.fileno()
        if record.process.poll() is not None:
            self._retire(record, pidfd)

    def _watch(self, descriptor: int, events: int, handler: Callable[[int], None]) -> None:
        self._handlers[descriptor] = handler
        self._poll.register(descriptor, events)

    def _unwatch(self, descriptor: int) -> None:
        if self._handlers.pop(descriptor, None):
            self._poll.unregister(descriptor)

    def _on_wake(self, events: int) -> None:
        os.read(self._wake_read, 4096)
        for record in self._workers.values():
            self._hang_up(record, self._grace_s or 0.0)

    def _on_connection(self, events: int) -> None:
        try:
            sock, address = self._listener.accept()
        except OSError as error:
            self.log(f"cannot accept a connection: {error.strerror}")
            return
        if len(self._strangers) >= STRANGERS_MAX:
            self._dismiss(next(iter(self._strangers.values())), "too many at once")
        sock.setblocking(False)
        where = f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "the tunnel"
        stranger = Stranger(sock, where, time.monotonic() + STRANGER_S)
        self._strangers[sock.fileno()] = stranger
        self._watch(sock.fileno(), select.POLLIN, lambda events: self._on_stranger(stranger))

    def _on_stranger(self, stranger: Stranger) -> None:
        try:
            nbytes = stranger.sock.recv_into(stranger.decoder.want)
            if nbytes == 0:
                self._dismiss(stranger, "left before the end of the handshake")
                return
            frame = stranger.decoder.advance(nbytes)
            if frame is not None:
                self._shake_hands(stranger, frame.body)
        except (OSError, ProtocolError) as error:
            if not isinstance(error, BlockingIOError):
                self._dismiss(stranger, str(error))

    def _shake_hands(self, stranger: Stranger, body: Any) -> None:
        if type(body) is not dict:
            raise ProtocolError("an AUTH frame without a message")
        if stranger.opening is None:
            stranger.opening = body, auth.challenge(self._key, body, auth.make_nonce())
            self._send(stranger, wire.AUTH, stranger.opening[1])
            return
        proofs = self._key, *stranger.opening, body
        request = auth.read_response(*proofs)
        self._forget(stranger)
        with stranger.sock:
            kind = request.get("type")
            if kind == "worker":
                if problem := self._fork_worker(stranger, str(request.get("name", "")), proofs):
                    self._send(stranger, wire.AUTH, auth.welcome(*proofs, {"error": problem}))
                return
            self._send(stranger, wire.AUTH, auth.welcome(*proofs, {}))
            if kind == "status":
                self._send(stranger, wire.MESSAGE, self._status(request))
            elif kind == "lease":
                self._hold_lease(stranger.sock.dup())

    def _send(self, stranger: Stranger, kind: int, body: Any) -> None:
        """Send a small frame, which a new connection takes at once or not at all."""
        frame = wire.encode(kind, body).head
        if stranger.sock.send(frame) != len(frame):
            raise ConnectionError("reads too slowly")

    def _forget(self, stranger: Stranger) -> None:
        del self._strangers[stranger.sock.fileno()]
        self._unwatch(stranger.sock.fileno())

    def _dismiss(self, stranger: Stranger, reason: str) -> None:
        if stranger.sock.fileno() in self._strangers:
            self._forget(stranger)
        stranger.sock.close()
        self.log(f"closed the connection from {stranger.address}: {reason}")

    def _hold_lease(self, sock: socket.socket) -> None:
        """Stop when the holder of this connection hangs up, or its machine is lost."""
        detect_lost_peer(sock, reads_at_once=True)
        self._leases.append(sock)
        self._watch(sock.fileno(), HANG_UP, lambda events: self._on_lease_lost(sock.fileno()))

    def hold_stdin_lease(self, silence_max_s: float | None) -> None:
        """Stop at stdin's end of file, or once nothing has come from it for so long.

        A line with a number stops too, with that grace; an empty line is a sign of life.
        """
        self._silence_max_s, self._stdin_heard = silence_max_s, time.monotonic()
        self._watch(0, select.POLLIN, self._on_stdin)

    def _on_stdin(self, events: int) -> None:
        data = os.read(0, PIPE_BUF)
        self._stdin_heard = time.monotonic()
        if not data:
            self._on_lease_lost(0)
        elif data.strip():
            self._grace_s = None  # whatever else may have begun to stop us: this grace counts
            self.stop(float(data.split()[0]))

    def _on_lease_lost(self, descriptor: int) -> None:
        self._unwatch(descriptor)
        if self._grace_s is None or self._grace_s > process.GRACE_S:
            self._grace_s = None  # nobody is left who would wait longer
            self.stop()

    def _status(self, request: auth.Message) -> dict[str, Any]:
        self._reap()
        records = [*self._ended, *self._workers.values()]
        if "worker" in request:
            records = [record for record in records if record.number == request["worker"]]
        now = time.monotonic()
        server = {
            "pid": os.getpid(),
            "node": self._node,
            "version": __version__,
            "age_s": round(now - self._started, 3),
            "workers_running": len(self._workers),
            "workers_max": self._max_workers,
            "workers_started": self._workers_started,
        }
        if "free_port" in request:
            with socket.create_server(("", 0)) as probe:
                server["free_port"] = probe.getsockname()[1]
        return {"server": server, "workers": [record.describe(now) for record in records]}

    def _fork_worker(self, stranger: Stranger, name: str, proofs: Proofs) -> str | None:
        """Fork a worker for an authenticated client; return what prevents it, if anything does.

        The worker itself sends the welcome, so that nothing it sends can come before that.
        """
        if self._grace_s is not None:
            return "this server is stopping"
        if len(self._workers) >= self._max_workers:
            return f"all {self._max_workers} workers are taken"
        number = self._workers_started + 1
        log_read, log_write = os.pipe()
        sock = stranger.sock.dup()  # before the fork: it sets the file's mode, which both share
        detect_lost_peer(sock)

        def run() -> int:
            sock.close()
            self._close_in_child(stranger.sock)
            _redirect(log_write)
            channel = Channel(stranger.sock, name="coordinator")
            close_inherited(channel)
            welcome = auth.welcome(*proofs, {"worker": number, "pid": os.getpid()})
            channel._send_frame(wire.AUTH, welcome, STRANGER_S)
            return run_work(self._work_fn, channel)

        try:
            child = process.fork(run)
        except (OSError, RuntimeError) as error:
            os.close(log_read)
            sock.close()
            return f"cannot fork: {error}"
        finally:
            os.close(log_write)
        os.set_blocking(log_read, False)
        record = WorkerRecord(
            number, name or f"worker {number}", child, sock, log_read, time.monotonic()
        )
        self._workers_started = number
        self._workers[number] = record
        self._watch(log_read, select.POLLIN, lambda events: self._on_log(record))
        self._watch(sock.fileno(), HANG_UP, lambda events: self._on_hang_up(record))
        if child.fileno() >= 0:
            self._watch(child.fileno(), select.POLLIN, lambda events: self._reap_if_ended(record))
        return None

    def _close_in_child(self, kept: socket.socket) -> None:
        """Close everything of the server's but the child's own connection."""
        sockets = [self._listener, *self._leases]
        sockets += [stranger.sock for stranger in self._strangers.values()]
        sockets += [record.sock for record in self._workers.values()]
        for sock in sockets:
            if sock is not kept:
                sock.close()
        descriptors = [self._wake_read, self._wake_write]
        for record in self._workers.values():
            descriptors += [record.log, record.process.fileno()]
        for descriptor in descriptors:
            with contextlib.suppress(OSError):  # no pidfd here, or just closed
                os.close(descriptor)

    def _on_hang_up(self, record: WorkerRecord) -> None:
        self._unwatch(record.sock.fileno())
        record.process.begin_stop(process.GRACE_S if self._grace_s is None else self._grace_s)

    def _hang_up(self, record: WorkerRecord, grace_s: float) -> None:
        self._unwatch(record.sock.fileno())
        with contextlib.suppress(OSError):  # the other side was faster
            record.sock.shutdown(socket.SHUT_RDWR)
        record.process.begin_stop(grace_s)

    def _retire(self, record: WorkerRecord, pidfd: int) -> None:
        """Put a worker that has ended on record, and only then let its client see it."""
        del self._workers[record.number]
        self._unwatch(pidfd)
        while self._read_log(record):
            pass
        self._print_log(record, record.line)
        self._unwatch(record.log)
        os.close(record.log)
        if code := record.process.exit_code:
            self.log(f"{record.name} {process.describe(code)}")
        record.ended = time.monotonic()
        self._ended.append(record)
        self._unwatch(record.sock.fileno())
        record.sock.close()

    def _on_log(self, record: WorkerRecord) -> None:
        self._read_log(record)

    def _read_log(self, record: WorkerRecord) -> bool:
        """Take in some of a worker's output; return whether there may be more."""
        try:
            data = os.read(record.log, 1 << 16)
        except BlockingIOError:
            return False
        if not data:
            self._unwatch(record.log)
            return False
        *lines, rest = (record.line + data).split(b"\n")
        for line in lines:
            self._print_log(record, line)
        if len(rest) > LOG_LINE_BYTES_MAX:
            self._print_log(record, rest)
            rest = bytearray()
        record.line = rest
        return True

    def _print_log(self, record: WorkerRecord, line: bytearray) -> None:
        if line:
            label = f"{self._node}:{record.name}" if self._node else record.name
            self._queue_log(f"[{label}] ".encode() + line)

    def log(self, text: str) -> None:
        """Print one line of the server's own."""
        self._queue_log(f"[{self._node or 'server'}] {text}".encode())

    def _queue_log(self, line: bytes) -> None:
        """Queue a line for stderr, which may be slow or full; what does not fit is counted."""
        if len(self._log) + len(line) > LOG_BYTES_MAX:
            self._log_bytes_dropped += len(line) + 1
            return
        if not self._log:
            self._watch(2, select.POLLOUT, self._on_stderr)
        self._log += line + b"\n"

    def _on_stderr(self, events: int) -> None:
        """Write what stderr takes without blocking; at the end say what was dropped."""
        try:
            del self._log[: os.write(2, self._log[:PIPE_BUF])]
        except OSError:  # the disk is full, or the reader is gone: work goes on
            self._log_bytes_dropped += len(self._log)
            self._log.clear()
            self._unwatch(2)
            return
        if not self._log:
            self._unwatch(2)
            if dropped := self._log_bytes_dropped:
                self._log_bytes_dropped = 0
                self.log(f"{dropped} bytes of output were dropped: nobody took them in time")

    def _close(self) -> None:
        process.stop([record.process for record in self._workers.values()], 0.0)
        self._reap()
        for sock in [self._listener, *self._leases]:
            sock.close()
        for stranger in list(self._strangers.values()):
            self._dismiss(stranger, "the server stops")
        while self._log and any(descriptor == 2 for descriptor, _ in self._poll.poll(100)):
            self._on_stderr(select.POLLOUT)
        for descriptor in (self._wake_read, self._wake_write):
            os.close(descriptor)


def load_work_fn(name: str) -> Callable[[Channel], Any]:
    """Import and return the function called "package.module.function".

    Raises ValueError if that is no such name, and ImportError or TypeError if it leads nowhere.
    """
    module_name, _, function = name.rpartition(".")
    if not module_name:
        raise ValueError(f"work_fn must be MODULE.FUNCTION, got {name!r}")
    module = importlib.import_module(module_name)
    work_fn = getattr(module, function, None)
    if work_fn is None:
        raise ImportError(f"module {module_name} ({module.__file__}) has no function {function!r}")
    if not callable(work_fn):
        raise TypeError(f"{name} is a {type(work_fn).__name__}, not a function")
    found: Callable[[Channel], Any] = work_fn
    return found


def _listen(host: str, port: int) -> socket.socket:
    try:
        if os.path.isabs(host):
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(host)
            listener.listen()
        else:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            listener = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        text = f"cannot listen on {host}:{port}: {reason}; choose another address or port"
        raise OSError(error.errno, text) from None
    listener.setblocking(False)
    return listener


def _redirect(log_write: int) -> None:
    """Give a worker an empty stdin and the log pipe as stdout and stderr."""
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(log_write, 1)
    os.dup2(log_write, 2)
    os.close(log_write)
    # New streams: a notebook or a test runner may have put others in their place.
    sys.stdout, sys.stderr = (
        os.fdopen(number, "w", 1, errors="backslashreplace", closefd=False) for number in (1, 2)
    )


def _silent_s(sock: socket.socket) -> float | None:
    """Return how long ago anything was sent on a TCP connection, if the system tells."""
    if sock.family == socket.AF_UNIX or not hasattr(socket, "TCP_INFO") or sys.platform != "linux":
        return None
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    # struct tcp_info: eight single bytes, then 32-bit numbers; tcpi_last_data_sent is the tenth.
    return int.from_bytes(info[44:48], sys.byteorder) / 1000


def serve_node(settings: dict[str, Any]) -> int:
    """Serve as a Cluster's node: settings came on stdin, which is now the lease.

    One line goes to stdout, after the coordinator's marker: where the server listens, or what
    is wrong. Everything else that would go there goes to stderr, where the logs are.
    """
    return process.run_with_keeper(lambda: _serve_node(settings))


def _serve_node(settings: dict[str, Any]) -> int:
    process.adopt_orphans()
    ready = os.dup(1)
    os.dup2(2, 1)
    server: WorkerServer | None = None
    try:
        server = _start_node(settings)
        ssh_connection = os.environ.get("SSH_CONNECTION", "").split()
        address = ssh_connection[2] if len(ssh_connection) == 4 else "127.0.0.1"
        report: dict[str, Any] = {"host": server.host, "port": server.port, "address": address}
    except Exception as error:  # the user's module may raise anything
        report = {"error": f"{type(error).__name__}: {error}"}
    os.write(ready, f"{settings['marker']}{json.dumps(report)}\n".encode())
    os.close(ready)
    if server is None:
        return 1
    server.hold_stdin_lease(settings["silence_max_s"])
    try:
        server.serve_forever()
    finally:
        process.end_orphans()
        if os.path.isabs(server.host):
            os.unlink(server.host)
            os.rmdir(os.path.dirname(server.host))
    return 0


def _start_node(settings: dict[str, Any]) -> WorkerServer:
    os.environ.update(settings["env"])
    if settings["workdir"]:
        os.chdir(os.path.expanduser(settings["workdir"]))
    sys.path.insert(0, os.getcwd())
    work_fn = load_work_fn(settings["work_fn"])
    if "torch" in sys.modules:
        # Imported once here instead of once in every worker, on their first step.
        for module in ("torch.distributed.fsdp", "torch._dynamo"):
            with contextlib.suppress(ImportError):  # a torch that was built without it
                importlib.import_module(module)
    host = settings["host"] or os.environ.get("SSH_CONNECTION", "- - 127.0.0.1 -").split()[2]
    if os.path.isabs(host):
        os.mkdir(os.path.dirname(host), 0o700)
    return WorkerServer(
        work_fn,
        host=host,
        key=settings["key"].encode(),
        max_workers=settings["num_workers"],
        node=settings["node"],
    )


if __name__ == "__main__":
    from miniray.cli.serve import main

    sys.exit(main())
