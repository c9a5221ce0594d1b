"""One end of a connection: its name, what it holds, and how it ends."""

import collections
import contextlib
import errno
import math
import os
import socket
from typing import Any

from miniray import inherited, loans, pool, wire
from miniray.bell import Bell
from miniray.endings import again, keep
from miniray.frames import FrameSocket, frames_over
from miniray.turn import Turn
from miniray.waiting import READABLE, Receiver, link_is_lost

LEAVE_S = 1.0


class Endpoint(Receiver):
    """What a channel is apart from sending and receiving.

    It owns its socket, on which frames may have been sent and received already.
    """

    def __init__(
        self,
        sock: socket.socket | FrameSocket,
        *,
        name: str = "peer",
        memfd: bool = False,
        handshake: bool = False,
    ) -> None:
        self.name = name
        # Why the channel has ended, or None while it is open: all that there is to know of it.
        self.ended: Exception | None = None
        self.look_due = 0.0
        self.frames = frames_over(sock, memfd=memfd, handshake=handshake)
        # What came in for whoever receives next: a message, or what a failed send still heard.
        self.inbox: collections.deque[Any] = collections.deque()
        self.turn_to_send, self.turn_to_receive = Turn("send"), Turn("receive")
        self.turn_to_call = Turn("call")
        self.bell: Bell | None = None
        inherited.own(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {self.ended or 'open'}>"

    def fileno(self) -> int:
        """Return a descriptor that is readable if, and only if, `recv` has something to do.

        It is for `select`, asyncio and the like: what it tells is not in the socket alone.
        """
        if self.bell is None and self.frames.sock.fileno() >= 0:
            self.bell = Bell(self.frames.sock)
            self.holds_message()
            self.ring()
        return -1 if self.bell is None else self.bell.fileno()

    def ring(self) -> None:
        """Have who looks at `fileno` see what is here already."""
        bell = self.bell
        if bell is not None:
            bell.ring(self._holds_something)

    def _holds_something(self) -> bool:
        return bool(self.inbox) or self.ended is not None or self.frames.next is not None

    def descriptor(self) -> int:
        return self.frames.sock.fileno()

    def close(self) -> None:
        """Say goodbye and hang up; messages not yet received are gone."""
        if self.frames.sock.fileno() < 0:
            return
        self.hang_up(ConnectionError(f"this side has closed the channel to {self.name}"))
        for turn in (self.turn_to_send, self.turn_to_receive):
            # A thread that was waiting has been woken, and leaves before the number is reused.
            turn.is_free(LEAVE_S)
        self._let_go()
        pool.empty()
        loans.empty()

    def hang_up(self, reason: Exception) -> None:
        """End the channel with a reason and, if it was open, a goodbye; nothing waits for it."""
        with contextlib.suppress(OSError):  # a peer that is gone needs no goodbye
            if self.ended is None:
                self.ended = reason
                if self.turn_to_send.is_free():  # else it would come in the middle of a message
                    self.frames.send_at_once(wire.encode(wire.EXIT, {"code": 0}).head)
            self.frames.sock.shutdown(socket.SHUT_RDWR)

    def abandon(self) -> None:
        """Let go of the socket in a forked child, without a word to the other side."""
        self.ended = ConnectionError(f"{self.name} stayed with the process that forked this one")
        # Whoever had the old ones in the parent is not here to give them back.
        self.turn_to_send, self.turn_to_receive = Turn("send"), Turn("receive")
        self.turn_to_call = Turn("call")
        self._let_go()

    def _let_go(self) -> None:
        self.frames.close()
        self.inbox.clear()
        bell, self.bell = self.bell, None
        if bell is not None:
            bell.close()

    def end(self, reason: Exception, deadline: float = math.inf) -> None:
        """End the channel with a reason, unless it has one."""
        if self.ended is None:
            self.ended = keep(reason)
            self.ring()

    def lose(self, error: OSError, deadline: float) -> None:
        """End the channel because the connection has, and say why."""
        if self.ended is None:
            self.end(self.explain(error, deadline), deadline)

    def explain(self, error: OSError, deadline: float) -> Exception:
        """Return why the other side is gone though it said no goodbye."""
        return ConnectionResetError(f"{self.name} is gone: {error.strerror or error}")

    def why_it_ended(self) -> Exception:
        """Return what every call raises from now on."""
        assert self.ended is not None
        return again(self.ended)

    def is_gone(self) -> bool:
        """Return whether the other side's process is known to have ended."""
        return False

    def is_ready(self, events: int) -> bool:
        is_here = self.inbox or self.frames.may_hold_frame()
        return bool(events & READABLE and is_here) or self.ended is not None or self.is_gone()

    def look(self, deadline: float) -> None:
        if self.ended is None and link_is_lost(self.frames.sock):
            self.lose(OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)), deadline)
