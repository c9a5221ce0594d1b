"""Open the place where all ranks of a run meet."""

import socket
from collections.abc import Callable


def open_rendezvous(address: str, tell: Callable[[int], None]) -> socket.socket:
    """Listen at an address of this node, on a port that is nobody else's; return the listener.

    `tell(port)` tells the port to the other ranks, which connect at once. Other programs on this
    machine look for free ports at the same time.
    """
    # begin yours
    listener = socket.create_server((address, 0))
    tell(listener.getsockname()[1])
    return listener
    # end yours
