"""Who listens at a port of this machine, or of this network namespace."""

import errno
import socket

import psutil


def listeners(port: int) -> list[str]:
    """Return the addresses at which somebody listens at a port."""
    return [
        connection.laddr.ip
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
    ]


def is_free(address: str, port: int) -> bool:
    """Return whether one can listen there."""
    try:
        socket.create_server((address, port)).close()
        return True
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
