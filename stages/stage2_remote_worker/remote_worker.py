"""A worker on another machine: a channel over TCP."""

import socket

from .channel import Channel, detect_lost_peer
from .errors import WorkerDied, WorkerExited


class RemoteWorker(Channel):
    """Connect to a WorkerServer and talk to its work function, exactly as with a local Worker.

    Raises ConnectionError or TimeoutError if no server answers there.

    >>> worker = RemoteWorker("localhost", 10000)
    >>> worker.send({"cmd": "hello"})
    >>> worker.recv()
    """

    _goodbye = WorkerExited

    def __init__(
        self, host: str, port: int, *, name: str | None = None, timeout: float = 10.0
    ) -> None:
        self.host, self.port = host, port
        sock = _connect(host, port, timeout)
        super().__init__(sock, name=name or f"worker at {host}:{port}")

    def _explain_silence(self, error: OSError) -> Exception:
        return WorkerDied(f"{self.name} is gone: {error}")


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
