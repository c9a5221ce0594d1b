"""Send and receive at the same time, so that two who both send cannot wait for each other."""

import select
import socket

PIECE_BYTES = 65536


def exchange(sock: socket.socket, data: bytes, nbytes: int) -> bytes:
    """Send all of `data` and receive exactly `nbytes`, whichever can go on; return what came.

    What comes after those bytes stays in the socket, which is left blocking, as it was. Raises
    EOFError if the peer hangs up before they have come.
    """
    # begin yours
    # end yours
