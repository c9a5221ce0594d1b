"""Watch a worker over TCP: python -m stages.stage2_remote_worker.demo"""

import os
import socket
from typing import Any

from . import wire
from .channel import Channel
from .errors import ProtocolError, WorkerDied
from .remote_worker import RemoteWorker
from .worker import Worker
from .worker_server import WorkerServer

KINDS = {wire.MESSAGE: "MESSAGE", wire.ERROR: "ERROR", wire.EXIT: "EXIT"}
SHOWN_BYTES_MAX = 20


def square(channel: Channel) -> None:
    """Answer each {"n": n} with its square, and die when asked for the square of zero."""
    for message in channel:
        if message["n"] == 0:
            os._exit(1)
        channel.send({"square": message["n"] ** 2, "by": os.getpid()})


def serve(channel: Channel) -> None:
    """Run a server, and say where it listens."""
    server = WorkerServer(square)
    channel.send([server.host, server.port])
    server.serve_forever()


class Tap:
    """A socket that shows the bytes that cross it."""

    def __init__(self, channel: Channel) -> None:
        self._sock = channel._sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def send(self, data: bytes, flags: int = 0) -> int:
        sent = self._sock.send(data, flags)
        show("sent", bytes(data[:sent]))
        return sent

    def sendall(self, data: bytes, flags: int = 0) -> None:
        self._sock.sendall(data, flags)
        show("sent", data)

    def recv_into(self, memory: memoryview) -> int:
        nbytes = self._sock.recv_into(memory)
        show("received", bytes(memory[:nbytes]))
        return nbytes


def show(what: str, data: bytes) -> None:
    """Print some bytes, and what they say."""
    prelude, body = data[: wire.PRELUDE.size], data[wire.PRELUDE.size :]
    if prelude[:4] == wire.MAGIC:
        magic, kind, length = wire.PRELUDE.unpack(prelude)
        print(f"    {what:8}  {prelude.hex(' ')}  {magic.decode()}, {KINDS[kind]}, {length} bytes")
    else:
        body = data
    if not data:
        print(f"    {what:8}  (end of file)")
    elif body:
        shown = body[:SHOWN_BYTES_MAX]
        more = " ..." if len(body) > len(shown) else ""
        print(f"    {what:8}  {shown.hex(' ')}{more}  {shown.decode()}{more}")


def main() -> None:
    """Run the scenes."""
    with Worker(serve) as process:
        show_scenes(process)


def show_scenes(process: Worker) -> None:
    """Talk to the server."""
    host, port = process.recv()
    print(f"This process is {os.getpid()}; process {process.pid} listens on {host}:{port}.\n")

    with RemoteWorker(host, port) as worker:
        local, remote = worker._sock.getsockname(), worker._sock.getpeername()
        print(f"1. A TCP connection from port {local[1]} to port {remote[1]}. send, then recv:\n")
        worker._sock = Tap(worker)  # type: ignore[assignment]  # it does what a socket does
        worker.send({"n": 12})
        print(f"\n   received {worker.recv(timeout=5.0)}; leaving says goodbye:\n")

    print("\n2. Half a frame arrives, and then nothing. A deadline passes; the rest arrives:\n")
    ours, theirs = socket.socketpair()
    with Channel(ours, name="a slow peer") as channel, theirs:
        frame = wire.encode(wire.MESSAGE, "slow, but whole")
        theirs.sendall(frame[:15])
        try:
            channel.recv(timeout=0.2)
        except TimeoutError as error:
            print(f"   TimeoutError: {error}")
        theirs.sendall(frame[15:])
        print(f"   received {channel.recv(timeout=5.0)!r}: it went on where it was\n")

    print("3. Somebody who speaks another protocol is told from a frame by its first four bytes:\n")
    ours, theirs = socket.socketpair()
    with Channel(ours, name="a browser") as channel, theirs:
        theirs.sendall(b"GET / HTTP/1.1\r\n\r\n")
        try:
            channel.recv(timeout=5.0)
        except ProtocolError as error:
            print(f"   ProtocolError: {error}\n")

    print("4. The work function takes its process down, and the server with it:\n")
    with RemoteWorker(host, port) as worker:
        worker.send({"n": 0})
        try:
            worker.recv(timeout=5.0)
        except WorkerDied as error:
            print(f"   WorkerDied: {error}")
    print(f"   The server exited with status {process.wait()}, and nobody listens any more:")
    try:
        RemoteWorker(host, port)
    except ConnectionError as error:
        print(f"   ConnectionError: {error}")
    print("   Stage 3 forks for each client.")


if __name__ == "__main__":
    main()
