"""A descriptor for somebody else's loop: readable while a socket is, or while it is rung."""

import select
import socket
import sys
import threading
from collections.abc import Callable

from miniray import inherited


class Bell:
    """Tell of a socket, and of what was received ahead and the socket does not show any more."""

    def __init__(self, sock: socket.socket) -> None:
        self._is_rung: bool | None = False  # None: nobody knows, a handler has raised
        self._ringing = threading.RLock()
        with inherited.lock:
            self._hand, self._ear = socket.socketpair()
            self._poller = _watch(sock, self._ear)
        for one in (self._hand, self._ear):
            one.setblocking(False)

    def fileno(self) -> int:
        """Return the descriptor, which can itself be polled."""
        return self._poller.fileno()

    def ring(self, is_due: Callable[[], bool]) -> None:
        """Make it readable if that is due, or else leave that to the socket again."""
        with self._ringing:
            due = is_due()
            if due is self._is_rung:
                return
            self._is_rung = None
            try:
                if due:
                    self._hand.send(b"r")
                else:
                    self._ear.recv(4096)
            except OSError as error:
                if error.errno is None:  # a handler's; else it was so already, or is closed
                    raise
            self._is_rung = due

    def close(self) -> None:
        """Close all of it but the socket."""
        for one in (self._poller, self._hand, self._ear):
            one.close()


if sys.platform == "linux":

    def _watch(*sockets: socket.socket) -> select.epoll:
        poller = select.epoll()
        for one in sockets:
            poller.register(one.fileno(), select.EPOLLIN)
        return poller

else:  # macOS

    def _watch(*sockets: socket.socket) -> "select.kqueue":
        poller = select.kqueue()
        for one in sockets:
            wanted = select.kevent(one.fileno(), select.KQ_FILTER_READ, select.KQ_EV_ADD)
            poller.control([wanted], 0)
        return poller
