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
    # end yours
