"""A server that runs a work function for one connection after the other.

python -m stages.stage2_remote_worker.worker_server --port 10000 --work-fn my_module.work_fn
"""

import argparse
import importlib
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

from .channel import Channel, detect_lost_peer, owned, run_work


class WorkerServer:
    """Run `work_fn(channel)`, in this very process, for each client in turn.

    Listens, on return, at `self.host`, `self.port`; `port=0` takes a free one. Raises OSError if
    it cannot listen there.
    """

    def __init__(
        self, work_fn: Callable[[Channel], Any], *, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        self._work_fn = work_fn
        self._listener = _listen(host, port)
        owned.add(self._listener)
        self.host: str = self._listener.getsockname()[0]
        self.port: int = self._listener.getsockname()[1]

    def serve_forever(self) -> None:
        """Serve until a signal ends this process."""
        while True:
            sock, address = self._listener.accept()
            with sock:
                detect_lost_peer(sock)
                run_work(self._work_fn, Channel(sock, name=f"client {address[0]}:{address[1]}"))


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
        return socket.create_server((host, port))
    except OSError as error:
        text = f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}"
        raise OSError(error.errno, f"{text}; choose another address or port") from None


def main() -> None:
    """Serve from the command line."""
    parser = argparse.ArgumentParser(description="Run a work function for clients over TCP.")
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
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("stopped")


if __name__ == "__main__":
    main()
