"""A descriptor for somebody else's loop: readable while a socket is, or while it is rung."""

import select
import socket
import threading

from miniray import inherited


class Bell:
    """Tell of a socket, and of what was received ahead and the socket does not show any more."""

    def __init__(self, sock: socket.socket) -> None:
        self._is_rung = False
        self._ringing = threading.Lock()
        with inherited.lock:
            self._hand, self._ear = socket.socketpair()
            for one in (self._hand, self._ear):
                one.setblocking(False)
            if hasattr(select, "epoll"):
                self._poller = select.epoll()
                for one in (sock, self._ear):
                    self._poller.register(one.fileno(), select.EPOLLIN | select.EPOLLRDHUP)
            else:
                self._poller = select.kqueue()
                for one in (sock, self._ear):
                    wanted = select.kevent(one.fileno(), select.KQ_FILTER_READ, select.KQ_EV_ADD)
                    self._poller.control([wanted], 0)

    def fileno(self) -> int:
        """Return the descriptor, which can itself be polled."""
        return self._poller.fileno()

    def ring(self, is_rung: bool) -> None:
        """Make it readable, or leave that to the socket again."""
        with self._ringing:
            if is_rung and not self._is_rung:
                self._hand.send(b"r")
            elif self._is_rung and not is_rung:
                self._ear.recv(16)
            self._is_rung = is_rung

    def close(self) -> None:
        """Close all of it but the socket."""
        self._poller.close()
        self._hand.close()
        self._ear.close()
