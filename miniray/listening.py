"""Where a server listens: at an address and a port, or at the path of a Unix socket."""

import contextlib
import errno
import os
import select
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from miniray import inherited
from miniray.poll_loop import PollLoop
from miniray.waiting import deadline_after, time_left

BACKLOG = 1024
PAUSE_S = 1.0


class Listener:
    """Listen, and give each connection with its address to `welcome`.

    A host that is a path makes a Unix socket, in place of one that a killed server left there.
    Raises OSError, which says what to do, if it cannot listen.
    """

    def __init__(
        self,
        host: str,
        port: int,
        loop: PollLoop,
        say: Callable[[str], None],
        welcome: Callable[[socket.socket, Any], None],
    ) -> None:
        self._loop, self._say, self._welcome = loop, say, welcome
        self._pause_ends: float | None = None
        with inherited.lock:
            self._sock = _listen(host, port)
            inherited.own(self)
        self.address = self._sock.getsockname()
        self._loop.watch(self._sock.fileno(), select.POLLIN, self._accept)
        loop.duties.append(self._end_pause)

    def close(self) -> None:
        """Stop listening, and remove the file of a Unix socket."""
        self._sock.close()
        if isinstance(self.address, str):
            with contextlib.suppress(FileNotFoundError):  # somebody was faster
                os.unlink(self.address)

    def abandon(self) -> None:
        """Close, in a forked child, the server's socket."""
        self._sock.close()

    def _accept(self, events: int) -> None:
        try:
            with inherited.lock:
                self._welcome(*self._sock.accept())
            self._pause_ends = None
        except (BlockingIOError, ConnectionAbortedError):  # it has left already
            pass
        except OSError as error:  # no descriptors are left: at once it would be the same again
            self._loop.unwatch(self._sock.fileno())
            if self._pause_ends is None:
                self._say(f"cannot accept connections: {error.strerror}; it will try again")
            self._pause_ends = deadline_after(PAUSE_S)

    def _end_pause(self) -> float | None:
        if self._pause_ends is None:
            return None
        if (seconds := time_left(self._pause_ends)) > 0:
            return seconds
        self._loop.watch(self._sock.fileno(), select.POLLIN, self._accept)
        return None


def _listen(host: str, port: int) -> socket.socket:
    try:
        if os.path.isabs(host):
            listener = _listen_at_path(Path(host))
        else:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            family, _, _, _, address = found[0]  # of a link-local one, with its interface
            listener = socket.create_server(address, family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:  # the latter: it is no name at all
        number = getattr(error, "errno", None) or 0  # a name's that is not known is below 0
        reason = os.strerror(number) if number > 0 else getattr(error, "strerror", None) or error
        text = f"cannot listen on {host}:{port}: {reason}; choose another address or port"
        raise OSError(number if number > 0 else errno.EADDRNOTAVAIL, text) from None
    listener.setblocking(False)
    return listener


def _listen_at_path(path: Path) -> socket.socket:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        if path.is_socket() and probe.connect_ex(str(path)) == errno.ECONNREFUSED:
            path.unlink()
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener
