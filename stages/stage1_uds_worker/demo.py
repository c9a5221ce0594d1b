"""Watch a worker: python -m stages.stage1_uds_worker.demo"""

import os
import signal
from typing import Any

from . import wire
from .channel import Channel
from .errors import WorkerDied, WorkerFailed
from .worker import Worker

KINDS = {wire.MESSAGE: "MESSAGE", wire.ERROR: "ERROR", wire.EXIT: "EXIT"}
SHOWN_BYTES_MAX = 20


def square(channel: Channel) -> None:
    """Answer each {"n": n} with its square, from a process of its own."""
    for message in channel:
        channel.send({"square": message["n"] ** 2, "by": os.getpid()})


def fragile(channel: Channel) -> None:
    """Do what the coordinator says, which does not end well."""
    match channel.recv():
        case "raise":
            raise ValueError("no such batch: 7")
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)


class Tap:
    """A socket that shows the bytes that cross it."""

    def __init__(self, channel: Channel) -> None:
        self._sock = channel._sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def sendall(self, data: bytes, flags: int = 0) -> None:
        kind, length = wire.decode_prelude(data[: wire.PRELUDE.size])
        show("sent", data[: wire.PRELUDE.size], f"{KINDS[kind]}, {length} bytes follow")
        show("sent", data[wire.PRELUDE.size :])
        self._sock.sendall(data, flags)

    def recv_into(self, memory: memoryview) -> int:
        nbytes = self._sock.recv_into(memory)
        data = bytes(memory[:nbytes])
        if nbytes == wire.PRELUDE.size and data[0] in KINDS:
            kind, length = wire.decode_prelude(data)
            show("received", data, f"{KINDS[kind]}, {length} bytes follow")
        else:
            show("received", data, "" if data else "(end of file: nobody holds the other end)")
        return nbytes


def show(what: str, data: bytes, meaning: str = "") -> None:
    """Print some bytes, and what they say."""
    shown = data[:SHOWN_BYTES_MAX]
    more = " ..." if len(data) > len(shown) else ""
    digits = f"{shown.hex(' ')}{more}  " if data else ""
    print(f"    {what:8}  {digits}{meaning or shown.decode()}{more}")


def state_of(pid: int) -> str:
    """Return the state of a process in the system's table."""
    try:
        os.kill(pid, 0)  # sends nothing: it only asks
    except ProcessLookupError:
        return "gone from the process table"
    return "in the process table"


def main() -> None:
    """Run the scenes."""
    print(f"This process is {os.getpid()}. It forks, and keeps one end of a socketpair.\n")
    with Worker(square) as worker:
        print(f'1. {worker.name} is its child. worker.send({{"n": 12}}), then worker.recv():\n')
        worker._sock = Tap(worker)  # type: ignore[assignment]  # it does what a socket does
        worker.send({"n": 12})
        print(f"\n   received {worker.recv()}\n")

    print("2. Its function raises. The traceback comes along, as a frame of kind ERROR:\n")
    with Worker(fragile) as worker:
        worker.send("raise")
        try:
            worker.recv()
        except WorkerFailed as error:
            lines = [line for line in str(error).splitlines() if line]
            print("   WorkerFailed:", "\n   | ".join(lines) + "\n")

    print("3. It is killed. No frame can say that: the end of file does, and its exit status:\n")
    with Worker(fragile) as worker:
        worker._sock = Tap(worker)  # type: ignore[assignment]
        worker.send("die")
        try:
            worker.recv()
        except WorkerDied as error:
            print(f"\n   WorkerDied: {error}")
        print(f"   Process {worker.pid} is {state_of(worker.pid)}: it has been reaped.")


if __name__ == "__main__":
    main()
