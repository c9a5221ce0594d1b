"""A server that forks one worker for each authenticated connection, in one poll loop.

python -m miniray.worker_server --port 10000 --work-fn my_module.work_fn
"""

import collections
import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Self

from miniray import __version__, auth, inherited, process
from miniray.channel import Channel
from miniray.endings import run_work
from miniray.greeting import Greeter
from miniray.listening import Listener
from miniray.poll_loop import PollLoop
from miniray.strangers import STRANGER_S, Farewell, Strangers, Welcome
from miniray.torch_store import StoreHost
from miniray.waiting import HANG_UP, deadline_after, time_left, watch_link
from miniray.work_fn import load_work_fn
from miniray.worker_log import WorkerLog, WorkerOutput, clean_name, open_standard_streams
from miniray.worker_record import WorkerRecord

ENDED_RECORDS_MAX = 256
FLUSH_S = 1.0


class WorkerServer:
    """Fork a worker that runs `work_fn(channel)` for every client that holds the key.

    `work_fn` is a function or its name, "package.module.function", whose module is imported once,
    here. Listens, on return, at `self.host`, `self.port`; `port=0` takes a free one. A host that
    is a path makes it a Unix socket. Raises OSError if it cannot listen there. It belongs to the
    process that makes it; a forked child of that one has nothing of it. With `encrypt` it serves
    clients that encrypt, and no others.

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
        encrypt: bool = False,
    ) -> None:
        if max_workers < 1:
            raise ValueError(f"max_workers must be at least 1, got {max_workers}")
        self._work_fn = load_work_fn(work_fn) if isinstance(work_fn, str) else work_fn
        self._max_workers, self._node = max_workers, clean_name(node)
        self._workers: dict[int, WorkerRecord] = {}
        self._ended: collections.deque[WorkerRecord] = collections.deque(maxlen=ENDED_RECORDS_MAX)
        self._workers_started, self._started = 0, time.monotonic()
        self._stops: collections.deque[float] = collections.deque()  # asked for and not begun
        self._stop_deadline: float | None = None
        self._claimed, self._closed = threading.Lock(), threading.Event()
        key = auth.load_key() if key is None else key
        self._greeter = Greeter(key, encrypt=encrypt)
        open_standard_streams()
        self.loop = PollLoop()
        self.loop.duties.append(self._advance)
        self._log = WorkerLog(self.loop, self._node or "server")
        self._strangers = Strangers(self.loop, self._log, key, self._admit)
        self._listener = Listener(host, port, self.loop, self._log.say, self._strangers.add)
        address = self._listener.address
        self.host: str = address if isinstance(address, str) else address[0]
        self.port: int = 0 if isinstance(address, str) else address[1]
        inherited.own(self)

    def serve_forever(self) -> None:
        """Serve, once, until `stop` is called or SIGTERM, SIGINT or SIGHUP arrives.

        It leaves no worker. In a thread other than the main one, signals are not its business.
        """
        if not self._claimed.acquire(blocking=False):
            raise RuntimeError("this server serves, has served, or is another process's: make one")
        old_handlers = {}
        try:
            with contextlib.suppress(ValueError):  # not the main thread
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                    old_handlers[number] = signal.signal(number, lambda *_: self.stop())
            while self._stop_deadline is None or (self._workers and time_left(self._stop_deadline)):
                self.loop.turn()
        finally:
            self._close()
            for number, handler in old_handlers.items():
                signal.signal(number, handler or signal.SIG_DFL)

    def stop(self, timeout: float = process.STOP_S) -> None:
        """Have `serve_forever` end all workers and return; any thread may call it, or a signal.

        Workers are hung up on, get SIGTERM after half of `timeout` seconds and SIGKILL at its
        end. A second call ends them at once, and after the end it does nothing.
        """
        self._stops.append(timeout)
        self.loop.wake()

    def has_worker(self, pid: int) -> bool:
        """Return whether a process is a worker that has not been put on record as ended."""
        return any(record.process.pid == pid for record in self._workers.values())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Stop, and wait for the end if another thread serves: no worker outlives its deadline."""
        self.stop()
        if self._claimed.acquire(blocking=False):
            self._close()
        self._closed.wait()

    def abandon(self) -> None:
        """Serve no more, in a forked child, and let nobody wait for the end."""
        self._claimed.acquire(blocking=False)
        self._closed = threading.Event()  # a thread that is not here may hold the other's lock
        self._closed.set()

    def _advance(self) -> float | None:
        """Do what is due, and return the seconds until there is more."""
        while self._stops:
            self._begin_stop(self._stops.popleft())
        if not process.HAS_PIDFD:
            self._reap_all()
        steps = [record.process.advance_stop() for record in self._workers.values()]
        return min((seconds for seconds in steps if seconds is not None), default=None)

    def _begin_stop(self, timeout: float) -> None:
        if self._stop_deadline is not None:  # somebody is in a hurry
            timeout = 0.0
        self._stop_deadline = deadline_after(timeout)
        for record in self._workers.values():
            self._hang_up(record, timeout)

    def _admit(self, sock: socket.socket, request: auth.Message, welcome: Welcome) -> Farewell:
        """Do what a client asks for; return what it is told, None if a worker will tell it."""
        kind = request.get("type")
        if kind == "worker":
            problem = self._greeter.why_not(request) or self._fork_worker(sock, request, welcome)
            return welcome({"error": problem}) if problem else None
        if kind == "end_workers":
            for record in self._workers.values():
                self._hang_up(record, timeout=0.0)
        if kind in ("status", "end_workers"):
            return self._greeter.tell(welcome, request, self._status(request))
        return welcome({"error": f"there is no request of the type {kind!r}"})

    def _status(self, request: auth.Message) -> dict[str, Any]:
        self._reap_all()
        records = [
            record
            for record in (*self._ended, *self._workers.values())
            if request.get("worker") in (None, record.number)
        ]
        server = {
            "pid": os.getpid(),
            "node": self._node,
            "version": __version__,
            "age_s": round(time.monotonic() - self._started, 3),
            "workers_running": len(self._workers),
            "workers_max": self._max_workers,
            "workers_started": self._workers_started,
        }
        return {"server": server, "workers": [record.describe(request) for record in records]}

    def _fork_worker(
        self, sock: socket.socket, request: auth.Message, welcome: Welcome
    ) -> str | None:
        """Fork a worker that talks to a client; return what prevents it, if anything does.

        The worker itself says welcome, so that nothing it sends can come before that.
        """
        if self._stop_deadline is not None:
            return "this server is stopping"
        if len(self._workers) >= self._max_workers:
            return f"all {self._max_workers} workers are taken"
        number = self._workers_started + 1
        name = clean_name(str(request.get("name", ""))) or f"worker {number}"
        if name in {"server", *(record.name for record in self._workers.values())}:
            name = f"{name} ({number})"  # two that print under one name could not be told apart

        def run() -> int:
            output.take_over(str(request.get("title") or name), self._work_fn)
            store.take_over()
            reply = {"worker": number, "pid": os.getpid(), "rendezvous": store.address}
            line = self._greeter.greet(sock, welcome, reply, STRANGER_S)
            return run_work(self._work_fn, Channel(line, name="coordinator")) if line else 1

        try:
            watch_link(sock)
            prefix = f"{self._node}:{name}" if self._node else name
            hosts = str(request.get("rendezvous", "")).split()
            with StoreHost(hosts) as store, WorkerOutput(self._log, prefix) as output:
                child = process.fork(run)
        except (OSError, RuntimeError) as error:
            return f"cannot fork: {error}"
        record = WorkerRecord(number, name, child, sock, output)
        self._workers_started = number
        self._workers[number] = record
        self.loop.watch(sock.fileno(), HANG_UP, lambda _: self._hang_up(record, process.STOP_S))
        if child.descriptor() >= 0:
            self.loop.watch(child.descriptor(), select.POLLIN, lambda _: self._reap(record))
        return None

    def _hang_up(self, record: WorkerRecord, timeout: float) -> None:
        self.loop.unwatch(record.sock.fileno())
        record.is_stopping = True
        record.hang_up()
        record.process.begin_stop(timeout)

    def _reap_all(self) -> None:
        for record in list(self._workers.values()):
            self._reap(record)

    def _reap(self, record: WorkerRecord) -> None:
        """Put a worker that has ended on record, and only then let its client see the end."""
        pidfd = record.process.descriptor()
        code = record.process.poll()
        if code is None:
            return
        record.ended = time.monotonic()
        del self._workers[record.number]
        self._ended.append(record)
        record.output.close()
        if code and not record.is_stopping:
            self._log.say(f"{record.name} {process.describe(code)}")
        self.loop.unwatch(pidfd)
        self.loop.unwatch(record.sock.fileno())
        record.hang_up()
        record.sock.close()

    def _close(self) -> None:
        process.stop([record.process for record in self._workers.values()], 0.0)
        self._reap_all()
        self._strangers.close()
        self._listener.close()
        self._log.flush(deadline_after(FLUSH_S))
        self.loop.close()
        self._closed.set()


if __name__ == "__main__":
    from miniray.cli.serve import main

    sys.exit(main())
