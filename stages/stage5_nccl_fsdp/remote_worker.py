"""A worker on another machine: a channel over TCP, after the handshake."""

import socket
import time

from . import auth, process
from .channel import Channel, detect_lost_peer
from .errors import ProtocolError, WorkerDied, WorkerExited

EXPLAIN_S = 3.0


class RemoteWorker(Channel):
    """Ask a WorkerServer for a new worker and talk to it, exactly as with a local Worker.

    `key` defaults to the key file's. It is connected and authenticated on return; raises
    ConnectionError or TimeoutError if no server answers there, AuthenticationError if it holds
    another key.

    >>> worker = RemoteWorker("localhost", 10000)
    >>> worker.send({"cmd": "hello"})
    >>> worker.recv()
    """

    _goodbye = WorkerExited

    def __init__(
        self,
        host: str,
        port: int,
        *,
        key: bytes | None = None,
        name: str | None = None,
        timeout: float = 10.0,
    ) -> None:
        self.host, self.port = host, port
        self._key = auth.load_key() if key is None else key
        request = {"type": "worker", "name": name or "worker"}
        sock, reply = open_connection(host, port, self._key, request, timeout)
        self.worker_id: int = reply["worker"]
        self.pid: int = reply["pid"]
        super().__init__(sock, name=name or f"worker {self.worker_id} at {host}:{port}")

    def ask_free_port(self) -> int:
        """Ask the server for a port that is free on its machine."""
        request = {"type": "free_port"}
        sock, reply = open_connection(self.host, self.port, self._key, request, EXPLAIN_S)
        sock.close()
        port: int = reply["free_port"]
        return port

    def _explain_silence(self, error: OSError) -> Exception:
        """Ask the server, which has reaped the worker, how it ended."""
        request = {"type": "status", "worker": self.worker_id}
        try:
            sock, reply = open_connection(self.host, self.port, self._key, request, EXPLAIN_S)
        except (OSError, ProtocolError) as silence:
            return WorkerDied(f"{self.name} is lost: its server does not answer ({silence})")
        sock.close()
        code = reply["exit_code"]
        how = "is gone, says its server" if code is None else process.describe(code)
        return WorkerDied(f"{self.name} {how}", exit_code=code)


def open_connection(
    host: str, port: int, key: bytes, request: auth.Message, timeout: float
) -> tuple[socket.socket, auth.Message]:
    """Connect, do the client's side of the handshake, return the socket and the server's reply."""
    deadline = time.monotonic() + timeout
    sock = _connect(host, port, timeout)
    server = Channel(sock, name=f"server at {host}:{port}")
    try:
        hello = auth.hello(auth.make_nonce())
        server.send(hello)
        challenge = server.recv(max(deadline - time.monotonic(), 0))
        server.send(auth.response(key, hello, challenge, request))
        reply: auth.Message = server.recv(max(deadline - time.monotonic(), 0))
    except BaseException:
        sock.close()
        raise
    return sock, reply


def _connect(host: str, port: int, timeout: float) -> socket.socket:
    try:
        sock = socket.create_connection((host, port), timeout)
    except TimeoutError:
        text = f"cannot connect to {host}:{port}: no answer for {timeout}s"
        raise TimeoutError(text) from None
    except OSError as error:
        text = f"cannot connect to {host}:{port}: {error.strerror}; is a server running there?"
        raise ConnectionError(text) from error
    sock.settimeout(None)  # from here on a channel has deadlines of its own
    detect_lost_peer(sock)
    return sock
