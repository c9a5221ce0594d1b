"""Read exactly as many bytes as a message has."""

import socket


def recv_exactly(sock: socket.socket, nbytes: int) -> bytes:
    """Return the next `nbytes` bytes of a blocking socket, no more and no fewer.

    Raises ConnectionResetError, and says how many bytes had arrived, if the other side hangs up
    before the last of them.
    """
    # begin yours
    # end yours
