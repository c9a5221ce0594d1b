"""Who listens at a port, and whether one could do so oneself."""

import errno
import os
import socket

import psutil


def listening(port: int, pid: int | None = None) -> list[str]:
    """Return the addresses at which a process, by default this one, listens at a port."""
    return [
        one.laddr.ip
        for one in psutil.Process(pid or os.getpid()).net_connections("tcp")
        if one.status == psutil.CONN_LISTEN and one.laddr.port == port
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


def is_open(address: str, port: int) -> bool:
    """Return whether somebody listens there."""
    with socket.socket() as sock:
        return sock.connect_ex((address, port)) == 0
