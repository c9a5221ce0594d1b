"""Watch a server fork: python -m stages.stage3_worker_server.demo"""

import contextlib
import os
import signal
import socket

from . import auth
from .channel import Channel, wait
from .errors import AuthenticationError, WorkerDied
from .remote_worker import RemoteWorker
from .worker import Worker
from .worker_server import WorkerServer

KEY = auth.make_key()
COUNT = 4


def estimate_pi(channel: Channel) -> None:
    """Count, for each (first, last), what its part of the series adds up to; or die."""
    for message in channel:
        if message == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        first, last = message
        channel.send(sum((-1) ** n * 4 / (2 * n + 1) for n in range(first, last)))


def serve(channel: Channel) -> None:
    """Run a server, and say where it listens."""
    server = WorkerServer(estimate_pi, key=KEY)
    channel.send([server.host, server.port])
    server.serve_forever()


def main() -> None:
    """Run the scenes."""
    with Worker(serve) as process:
        show_scenes(process)


def show_scenes(process: Worker) -> None:
    """Talk to the server."""
    host, port = process.recv()
    print(
        f"This process is {os.getpid()}; the server is process {process.pid}, at {host}:{port}.\n"
    )

    workers = [RemoteWorker(host, port, key=KEY) for _ in range(COUNT)]
    print(f"1. {COUNT} connections, and the server has forked {COUNT} workers:\n")
    for index, worker in enumerate(workers):
        worker.send([index * 100_000, (index + 1) * 100_000])
    total, busy = 0.0, list(workers)
    while busy:
        for worker in wait(busy):
            part = worker.recv()
            total += part
            busy.remove(worker)
            print(f"   {worker.name}, process {worker.pid}: {part:+.12f}")
    print(f"   {'together, as they came in':>42}: {total:+.12f}\n")

    print("2. One of them is killed. The server has reaped it, and is asked how it died:\n")
    workers[1].send("die")
    try:
        workers[1].recv(timeout=5.0)
    except WorkerDied as error:
        print(f"   WorkerDied: {error}; .signal is {error.signal}")
    workers[2].send([0, 10])
    print(f"   {workers[2].name} did not notice: {workers[2].recv(timeout=5.0):+.12f}\n")

    print(
        "3. Strangers. One speaks HTTP, one has made up a key; the server says, on stderr, why:\n"
    )
    with socket.create_connection((host, port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with contextlib.suppress(ConnectionError):  # or end of file: it is hung up on
            stranger.recv(1)
    try:
        RemoteWorker(host, port, key=b"a key that I have made up")
    except AuthenticationError as error:
        print(f"   AuthenticationError: {error}\n")
    with RemoteWorker(host, port, key=KEY) as late:
        print(f"   {late.name} is served as if nothing had been: no stranger has a number\n")

    print("4. SIGTERM to the server. It hangs up on the workers, waits for them, and reaps them:\n")
    os.kill(process.pid, signal.SIGTERM)
    print(f"   the server ended with status {process.wait(timeout=10.0)}")
    for worker in workers:
        worker.close()
    left = [worker.pid for worker in workers if os.path.exists(f"/proc/{worker.pid}")]
    print(f"   workers left: {left or 'none'}")


if __name__ == "__main__":
    main()
