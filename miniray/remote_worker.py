"""A worker on another machine: a channel over TCP, after the handshake."""

import errno
import math
import time
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from miniray import auth
from miniray.any_worker import EXPLAIN_S, AnyWorker
from miniray.connection import open_connection, server_status
from miniray.endings import keep
from miniray.errors import ProtocolError, WorkerDied, WorkerError
from miniray.group import ANSWER_S, Group
from miniray.process import STOP_S
from miniray.waiting import HANG_UP, Source, deadline_after, time_left, wait_until

ASK_AGAIN_S = 0.05
SESSION_S = 0.5  # an ssh session ends a moment after what it carried
_UNREACHABLE = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)


class Session(Protocol):
    """What a worker of a Cluster knows of the ssh session that its node hangs on."""

    def fileno(self) -> int:
        """Return a descriptor that is readable once the session has ended."""

    def how_it_ended(self, timeout: float = 0.0) -> str | None:
        """Return in words why the session has ended, None while it lives."""


class RemoteWorker(AnyWorker):
    """Ask a WorkerServer for a new worker and talk to it, exactly as with a local Worker.

    `host` is a name or an address, or the path of a Unix socket (then `port` is ignored). `key`
    defaults to the key file's. With `encrypt`, which the server has to be started with, too, nobody
    on the way reads or changes what is sent. It is connected and authenticated on return; raises
    ConnectionError or TimeoutError if no server answers there, AuthenticationError if it holds
    another key. With `rendezvous`, addresses of that machine, the worker holds a port of the first
    that it has, `self.rendezvous`, and is where the ranks of a process group meet as rank 0.

    >>> worker = RemoteWorker("localhost", 10000)
    >>> worker.send({"cmd": "hello"})
    >>> worker.recv()
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        key: bytes | None = None,
        name: str | None = None,
        timeout: float = 10.0,
        encrypt: bool = False,
        rendezvous: Sequence[str] = (),
    ) -> None:
        self.host, self.port = host, port
        self._key = auth.load_key(make=False) if key is None else key
        # Both are a Cluster's to set: what its node hangs on, and with whom it lives and ends.
        self.session: Session | None = None
        self.group: Group | None = None
        request: auth.Message = {"type": "worker", "name": name or "", "encrypt": int(encrypt)}
        request["rendezvous"] = " ".join(rendezvous)
        try:
            sock, reply = open_connection(host, port, self._key, request, timeout)
        except ConnectionError as error:
            if not isinstance(error.__cause__, ConnectionRefusedError | FileNotFoundError):
                raise
            raise ConnectionError(
                f"{error}; is a server running there? Start one with: "
                "miniray serve --port PORT --work-fn MODULE.FUNCTION"
            ) from error
        self.worker_id: int = reply["worker"]
        self.pid: int = reply["pid"]
        self.rendezvous: list[Any] = reply["rendezvous"]  # an address and a port, or nothing
        super().__init__(sock, name=name or f"worker {self.worker_id} at {host}:{port}")

    def wait(self, timeout: float | None = None) -> int:
        deadline = deadline_after(timeout)
        while True:
            # Even who only looks has to give the server a moment.
            until = max(deadline, deadline_after(ANSWER_S))
            record = self._ask(min(until, deadline_after(EXPLAIN_S)))
            if record["state"] == "ended":
                return int(record["exit_code"])
            if not wait_until({self: HANG_UP}, deadline):
                raise TimeoutError(f"{self.name} still runs after {timeout}s")
            # The connection may end a moment before the process does.
            time.sleep(min(ASK_AGAIN_S, time_left(deadline)))

    def how_it_ended(self, timeout: float = EXPLAIN_S) -> WorkerError | None:
        try:
            record = self._ask(deadline_after(timeout))
        except WorkerDied as lost:
            return self.ended if isinstance(self.ended, WorkerError) else keep(lost)
        return None if record["state"] == "running" else self.ending(record["exit_code"])

    def close(self, timeout: float = STOP_S) -> None:
        """Hang up, and wait for `timeout` seconds at most until the server has ended the worker."""
        was_open = self.ended is None
        super().close()
        deadline = deadline_after(timeout)
        while was_open and (left := time_left(deadline)) and self.how_it_ended(left) is None:
            time.sleep(min(ASK_AGAIN_S, time_left(deadline)))

    def _ask(self, deadline: float) -> dict[str, Any]:
        """Return what the server has on record of this worker; raise WorkerDied if it is lost."""
        if self.session is not None and (words := self.session.how_it_ended()):
            raise WorkerDied(f"{self.name} is lost: {words}")
        try:
            status = server_status(
                self.host, self.port, key=self._key, timeout=time_left(deadline),
                worker=self.worker_id,
            )  # fmt: skip
        except (OSError, ProtocolError, WorkerError) as error:
            words = self.session.how_it_ended(SESSION_S) if self.session is not None else None
            silence = words or f"its server does not answer ({error})"
            raise WorkerDied(f"{self.name} is lost: {silence}") from error.with_traceback(None)
        for record in status["workers"]:
            if record["pid"] == self.pid:
                return dict(record)
        raise WorkerDied(f"{self.name} has ended, and its server does not know any more how")

    def explain(self, error: OSError, deadline: float) -> Exception:
        gone = f"{self.name} is gone: {error.strerror or error}"
        if error.errno in _UNREACHABLE:
            return WorkerDied(f"{gone}; its machine or the link to it is lost")
        until = min(deadline_after(EXPLAIN_S), max(deadline, deadline_after(ANSWER_S)))
        try:
            code = self.wait(time_left(until))
        except WorkerDied as lost:
            return lost
        except TimeoutError:
            return WorkerDied(f"{gone}, but its server says that it still runs")
        return self.ending(code, said_goodbye=False)

    def end(self, reason: Exception, deadline: float = math.inf) -> None:
        if self.ended is None and self.group is not None:
            reason = self.group.conclude(self, keep(reason), deadline)
        super().end(reason, deadline)

    def omens(self) -> Iterable[Source]:
        return [] if self.group is None else [self.group]
