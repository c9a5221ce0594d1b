"""A descriptor for somebody else's loop: readable while a socket is, or while it is rung."""

import contextlib
import select
import socket
import sys
import threading

from miniray import inherited


class Bell:
    """Tell of a socket, and of what was received ahead and the socket does not show any more."""

    def __init__(self, sock: socket.socket) -> None:
        self._is_rung = False
        self._ringing = threading.RLock()
        with inherited.lock:
            self._hand, self._ear = socket.socketpair()
            self._poller = _watch(sock, self._ear)

    def fileno(self) -> int:
        """Return the descriptor, which can itself be polled."""
        return self._poller.fileno()

    def ring(self, is_rung: bool) -> None:
        """Make it readable, or leave that to the socket again."""
        with self._ringing, contextlib.suppress(OSError):  # another thread has just closed it
            if is_rung and not self._is_rung:
                self._hand.send(b"r")
            elif self._is_rung and not is_rung:
                self._ear.recv(1)
            self._is_rung = is_rung

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
