"""Send and receive at the same time, so that two who both send cannot wait for each other."""

import select
import socket

PIECE_BYTES = 65536


def exchange(sock: socket.socket, data: bytes, nbytes: int) -> bytes:
    """Send all of `data` and receive exactly `nbytes`, whichever can go on; return what came.

    What comes after those bytes stays in the socket, which is left blocking, as it was. Raises
    EOFError if the peer hangs up before they have come, or before all is sent.
    """
    # begin yours
    unsent, received = memoryview(data), bytearray()
    sock.setblocking(False)
    try:
        while unsent or len(received) < nbytes:
            missing = nbytes - len(received)
            readable, writable, _ = select.select(
                [sock] if missing else [], [sock] if unsent else [], []
            )
            if readable:
                piece = sock.recv(min(missing, PIECE_BYTES))
                if not piece:
                    raise EOFError(f"the peer hung up after {len(received)} of {nbytes} bytes")
                received += piece
            if writable:
                unsent = unsent[sock.send(unsent) :]
    except (BrokenPipeError, ConnectionResetError) as error:  # whoever sends is told in this way
        raise EOFError(f"the peer hung up after {len(received)} of {nbytes} bytes") from error
    finally:
        sock.setblocking(True)
    return bytes(received)
    # end yours
