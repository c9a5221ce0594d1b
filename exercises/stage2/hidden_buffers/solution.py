"""Wait for whichever of many connections has something to say."""

import select
import socket
from dataclasses import dataclass


@dataclass(eq=False)
class Connection:
    """A socket, and bytes that have been read from it and not been used yet."""

    sock: socket.socket
    pending: bytes = b""


def wait(connections: list[Connection], timeout: float | None) -> list[Connection]:
    """Return the connections with something to read, in the order given; [] on timeout.

    Something to read is what is pending, what is in the socket, and the end of file. `timeout` is
    in seconds, and None is as long as it takes. There may be thousands of connections.
    """
    # begin yours
    poller = select.poll()
    for connection in connections:
        poller.register(connection.sock, select.POLLIN)
    seconds = 0.0 if any(connection.pending for connection in connections) else timeout
    ready = {number for number, _ in poller.poll(None if seconds is None else seconds * 1000)}
    return [one for one in connections if one.pending or one.sock.fileno() in ready]
    # end yours
