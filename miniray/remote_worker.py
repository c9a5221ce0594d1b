"""A worker on another machine: a channel over TCP, after the handshake."""

import os
import socket
import time
from typing import Any, Protocol

from miniray import auth, wire
from miniray.channel import Channel, detect_lost_peer
from miniray.errors import (
    AuthenticationError,
    ProtocolError,
    WorkerDied,
    WorkerError,
    WorkerExited,
    WorkerFailed,
)

EXPLAIN_S = 3.0
EXPLAIN_AGAIN_S = 0.05


class RemoteWorker(Channel):
    """Ask a WorkerServer for a new worker and talk to it, exactly as with a local Worker.

    `host` is a name or an address, or the path of a Unix socket (then `port` is ignored). `key`
    defaults to the key file's. It is connected and authenticated on return; raises
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
        # Set by a Cluster whose ranks form one process group: they live and end together.
        self.group: Group | None = None
        request = {"type": "worker", "name": name or ""}
        sock, reply = open_connection(host, port, self._key, request, timeout)
        self.worker_id: int = reply["worker"]
        self.pid: int = reply["pid"]
        super().__init__(sock, name=name or f"worker {self.worker_id} at {host}:{port}")

    def recv(self, timeout: float | None = None) -> Any:
        """Return the next message, like Channel.recv.

        In a process group it also watches the other ranks: if one dies, `recv` on any of them
        raises the first culprit's error, and all are ended.
        """
        if self.group is None or self._ended is not None:
            return super().recv(timeout)
        self.group.wait_for(self, timeout)
        try:
            return super().recv(timeout)
        except (WorkerFailed, WorkerDied) as error:
            raise self.group.blame(error) from None

    def how_it_ended(self, timeout: float = EXPLAIN_S) -> WorkerError | None:
        """Ask the server how this worker ended; return None if it was as it should.

        Returns a WorkerDied that says so if the server is gone too, or still sees it running.
        """
        deadline = time.monotonic() + timeout
        try:
            while True:
                left = deadline - time.monotonic()
                status = server_status(
                    self.host, self.port, key=self._key, timeout=left, worker=self.worker_id
                )
                record: dict[str, Any] = next(iter(status["workers"]), {})
                # The connection may end a moment before the process does.
                if record.get("ended") or deadline - time.monotonic() < EXPLAIN_AGAIN_S:
                    break
                time.sleep(EXPLAIN_AGAIN_S)
        except (OSError, ProtocolError, WorkerError) as error:
            return WorkerDied(f"{self.name} is lost: its server does not answer ({error})")
        if not record.get("ended"):
            return WorkerDied(f"{self.name} hung up, but its server says it still runs")
        code = record["exit_code"]
        if code == 0:
            return None
        return WorkerDied(
            f"{self.name} {record['ended']}",
            signal=-code if code < 0 else None,
            exit_code=code if code > 0 else None,
        )

    def _explain_silence(self, error: OSError) -> Exception:
        lost = WorkerDied(f"{self.name} is gone: {error.strerror or error}", exit_code=0)
        return self.how_it_ended() or lost


class Group(Protocol):
    """What a RemoteWorker asks of the process group that it belongs to."""

    def wait_for(self, worker: RemoteWorker, timeout: float | None) -> None: ...
    def blame(self, error: WorkerError) -> WorkerError: ...


def open_connection(
    host: str, port: int, key: bytes, request: auth.Message, timeout: float
) -> tuple[socket.socket, auth.Message]:
    """Connect, do the client's side of the handshake, return the socket and the reply."""
    deadline = time.monotonic() + timeout
    where = host if os.path.isabs(host) else f"{host}:{port}"
    sock = _connect(host, port, where, timeout)
    channel = Channel(sock, name=f"server at {where}")
    channel._decoder = wire.Decoder(auth_only=True)  # who is not authenticated yet gets 4 KiB
    try:
        return sock, _shake_hands(channel, key, request, deadline)
    except AuthenticationError as error:
        sock.close()
        raise AuthenticationError(f"{where}: {error}") from None
    except ConnectionResetError as error:
        sock.close()
        raise ConnectionError(
            f"{where} closed the connection during the handshake: it is no MiniRay server, "
            "speaks another version, or is overrun"
        ) from error
    except BaseException:
        sock.close()
        raise


def _connect(host: str, port: int, where: str, timeout: float) -> socket.socket:
    try:
        if os.path.isabs(host):
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(timeout)
            sock.connect(host)
        else:
            sock = socket.create_connection((host, port), timeout)
    except TimeoutError:
        raise TimeoutError(f"cannot connect to {where}: no answer for {timeout:.1f}s") from None
    except OSError as error:
        raise ConnectionError(
            f"cannot connect to {where}: {error.strerror or error}; is a server running there? "
            "Start one with: miniray serve --port PORT --work-fn MODULE.FUNCTION"
        ) from error
    detect_lost_peer(sock)
    return sock


def _shake_hands(
    channel: Channel, key: bytes, request: auth.Message, deadline: float
) -> auth.Message:
    def exchange(message: auth.Message) -> auth.Message:
        left = max(deadline - time.monotonic(), 0)
        channel._send_frame(wire.AUTH, message, left)
        frame = channel._recv_frame(left)
        if frame.kind != wire.AUTH or type(frame.body) is not dict:
            raise ProtocolError(f"{channel.name} does not follow the handshake")
        body: auth.Message = frame.body
        return body

    hello = auth.hello(auth.make_nonce())
    challenge = exchange(hello)
    response = auth.response(key, hello, challenge, request)
    reply = auth.read_welcome(key, hello, challenge, response, exchange(response))
    if "error" in reply:
        raise ConnectionRefusedError(f"{channel.name} refuses: {reply['error']}")
    return reply


def server_status(
    host: str,
    port: int,
    *,
    key: bytes | None = None,
    timeout: float = 10.0,
    **request: int,
) -> dict[str, Any]:
    """Ask a server what runs and how each worker ended: {"server": {...}, "workers": [...]}.

    `worker=N` asks for one worker alone, `free_port=1` for a port that is free there.
    """
    deadline = time.monotonic() + timeout
    key = auth.load_key() if key is None else key
    sock, _ = open_connection(host, port, key, {"type": "status", **request}, timeout)
    with Channel(sock, name=f"server at {host}:{port}") as channel:
        status: dict[str, Any] = channel.recv(max(deadline - time.monotonic(), 0))
        return status
