"""Read exactly as many bytes as a message has."""

import socket


def recv_exactly(sock: socket.socket, nbytes: int) -> bytes:
    """Return the next `nbytes` bytes of a blocking socket, no more and no fewer.

    Raises ConnectionResetError, and says how many bytes had arrived, if the other side hangs up
    before the last of them.
    """
    # begin yours
    data = bytearray()
    while len(data) < nbytes:
        piece = sock.recv(nbytes - len(data))
        if not piece:
            raise ConnectionResetError(f"it hung up after {len(data)} of {nbytes} bytes")
        data += piece
    return bytes(data)
    # end yours
