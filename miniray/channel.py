"""A connected socket that sends and receives whole messages, the same on both ends."""

import collections
import contextlib
import errno
import math
import os
import socket
import time
from collections.abc import Iterator
from typing import Any, Self

from miniray import inherited, loans, pool, wire
from miniray.bell import Bell
from miniray.endings import again, keep, read_ending
from miniray.errors import MiniRayError, ProtocolError
from miniray.frames import PATIENCE_S, FrameSocket
from miniray.turn import Turn
from miniray.waiting import (
    READABLE,
    WRITABLE,
    Receiver,
    deadline_after,
    link_is_lost,
    time_left,
    wait_until,
)
from miniray.waiting import wait as wait  # for whoever looks for it beside the channels

LEAVE_S = 1.0
LAST_WORDS_S = 1.0
_NOTHING = object()
_DONTWAIT = int(socket.MSG_DONTWAIT)  # not the enum, which is slower


class Channel(Receiver):
    """Send and receive messages over a connected stream socket, which it owns from now on.

    Threads that send at once take turns, and so do those that receive. A `recv` that timed out
    resumes where it was; a `send` that timed out ends the channel. Both sides may send one
    message of any size at the same moment: while a send waits, it takes in the other side's
    next message. From the second one on, a send may wait until the other side receives.

    >>> left, right = socket.socketpair()
    >>> with Channel(left) as ours, Channel(right) as theirs:
    ...     ours.send({"step": 1})
    ...     theirs.recv(timeout=10.0)
    {'step': 1}
    """

    # What `recv` raises after the other side's goodbye.
    goodbye: type[Exception] = EOFError
    goodbye_hint = ""

    def __init__(
        self,
        sock: socket.socket,
        *,
        name: str = "peer",
        memfd: bool = False,
        handshake: bool = False,
    ) -> None:
        self.name = name
        # Why the channel has ended, or None while it is open: all that there is to know of it.
        self.ended: Exception | None = None
        self.look_due = 0.0
        self._frames = FrameSocket(sock, memfd=memfd, handshake=handshake)
        # What came in for whoever receives next: a message, or what a failed send still heard.
        self._inbox: collections.deque[Any] = collections.deque()
        self._sending, self._receiving = Turn("send"), Turn("receive")
        self._bell: Bell | None = None
        inherited.own(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {self.ended or 'open'}>"

    def send(self, message: Any, timeout: float | None = None) -> None:
        """Send one message: plain values, bytes, numpy arrays, CPU tensors, nested at will.

        Raises TypeError or ValueError for what cannot be sent, before a byte is out. Raises
        TimeoutError after `timeout` seconds, and a WorkerError or ConnectionError if the other
        side is gone; both end the channel.
        """
        self.send_frame(wire.MESSAGE, message, timeout)

    def recv(self, timeout: float | None = None) -> Any:
        """Return the next message; arrays and tensors in it are writable and the caller's own.

        Raises TimeoutError after `timeout` seconds, which leaves the channel usable, and a
        WorkerError, EOFError or ConnectionError, now and ever after, once there is no more.
        """
        return self.recv_frame(wire.MESSAGE, timeout)

    def __iter__(self) -> Iterator[Any]:
        """Yield messages until the other side hangs up."""
        while True:
            try:
                message = self.recv()
            except self.goodbye:
                return
            yield message

    def fileno(self) -> int:
        """Return a descriptor that is readable if, and only if, `recv` has something to do.

        It is for `select`, asyncio and the like: what it tells is not in the socket alone.
        """
        if self._bell is None and self._frames.sock.fileno() >= 0:
            self._bell = Bell(self._frames.sock)
            self._ring()
        return -1 if self._bell is None else self._bell.fileno()

    def descriptor(self) -> int:
        return self._frames.sock.fileno()

    def close(self) -> None:
        """Say goodbye and hang up; messages not yet received are gone."""
        if self._frames.sock.fileno() < 0:
            return
        self.hang_up(ConnectionError(f"this side has closed the channel to {self.name}"))
        for turn in (self._sending, self._receiving):
            # A thread that was waiting has been woken, and leaves before the number is reused.
            turn.is_free(LEAVE_S)
        self._frames.close()
        if self._bell is not None:
            self._bell.close()
            self._bell = None
        pool.empty()
        loans.empty()

    def hang_up(self, reason: Exception) -> None:
        """End the channel with a reason and, if it was open, a goodbye; nothing waits for it."""
        with contextlib.suppress(OSError):  # a peer that is gone needs no goodbye
            if self.ended is None:
                self.ended = reason
                if self._sending.is_free():  # else it would come in the middle of a message
                    self._frames.sock.send(wire.encode(wire.EXIT, {"code": 0}).head, _DONTWAIT)
            self._frames.sock.shutdown(socket.SHUT_RDWR)

    def abandon(self) -> None:
        """Let go of the socket in a forked child, without a word to the other side."""
        self.ended = ConnectionError(f"{self.name} stayed with the process that forked this one")
        # Whoever had the old ones in the parent is not here to give them back.
        self._sending, self._receiving = Turn("send"), Turn("receive")
        self._frames.close()
        if self._bell is not None:
            self._bell.close()
            self._bell = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def send_frame(self, kind: int, body: Any, timeout: float | None = None) -> None:
        """Send one frame, whole; whatever cuts it short ends the channel."""
        frame = wire.encode(kind, body, memfd=self._frames.memfd)
        deadline = math.inf if timeout is None else deadline_after(timeout)
        if self._sending.is_mine():
            self._sending.refuse_handler()
        try:
            if not self._sending.try_take(False):
                self._sending.take(deadline)
            if self.ended is None:
                self._send(frame, deadline, timeout)
        except TimeoutError:
            others = f"other threads' messages to {self.name} took all of {timeout}s"
            raise TimeoutError(others) from None
        finally:
            try:  # noqa: SIM105  # a handler that raises could come in the midst of suppress()
                self._sending.leave()
            except RuntimeError:  # another thread's turn
                pass
        if self.ended is not None:
            raise self._again()

    def _send(self, frame: wire.Encoded, deadline: float, timeout: float | None) -> None:
        try:
            for _ in self._frames.send(frame):
                if self.is_gone():  # and somewhere is a copy of its end, which nobody reads
                    raise BrokenPipeError(errno.EPIPE, "it has ended")
                events = WRITABLE if self._take_in() else WRITABLE | READABLE
                if not wait_until({self: events}, deadline):
                    late = f"{self.name} took nothing in for {timeout}s; half a message may be out"
                    self.end(TimeoutError(f"{late}, so the channel is closed"), deadline)
                if self.ended is not None:
                    return
        except ProtocolError as error:
            self.end(error, deadline)
        except OSError as error:  # what had arrived, the reason too, can still be received
            self.read_to_the_end(min(deadline, deadline_after(LAST_WORDS_S)), keep=True)
            self._lose(error, deadline)
        except BaseException:  # Ctrl-C, or what another signal's handler raised
            late = f"a send to {self.name} was interrupted; half a message may be out"
            self.end(ConnectionError(f"{late}, so the channel is closed"), deadline)
            raise

    def recv_frame(self, kind: int, timeout: float | None = None) -> Any:
        """Return the body of the next frame, which is to be of this kind.

        A TimeoutError leaves the channel usable.
        """
        deadline = math.inf if timeout is None else deadline_after(timeout)
        if self._receiving.is_mine():
            self._receiving.refuse_handler()
        body = nothing = _NOTHING
        try:
            if not self._receiving.try_take(False):
                self._receiving.take(deadline)
            if not self._inbox:
                self._receive(kind, deadline)
            if self._inbox:
                body = self._inbox[0]
                del self._inbox[0]  # not popleft: a handler that raises would come after the call
            if self._bell is not None:
                self._ring()
        except TimeoutError:
            raise TimeoutError(f"{self.name} sent nothing for {timeout}s") from None
        finally:
            try:
                self._receiving.leave()
            except RuntimeError:  # another thread's turn
                pass
            except BaseException:  # a handler's: nothing is lost
                if body is not nothing:
                    self._inbox.appendleft(body)
                raise
        if body is nothing:
            raise self._again()
        return body

    def _receive(self, kind: int, deadline: float) -> None:
        """Put the next frame's body into the inbox, or end the channel if there is none.

        Whoever has the turn also notes the end: another thread would take it for a hang-up.
        """
        gone = False
        while self.ended is None:
            try:
                patient = not gone and (deadline == math.inf or time_left(deadline) > PATIENCE_S)
                frame = self._frames.receive(patient=patient)
                if frame.kind == kind:
                    self._inbox.append(frame.body)
                    return
            except BlockingIOError:
                if gone:  # before we looked a last time
                    self._lose(ConnectionResetError(errno.ECONNRESET, "it has ended"), deadline)
                elif not wait_until({self: READABLE}, deadline):
                    raise TimeoutError from None
                gone = self.is_gone()
            except ProtocolError as error:
                self.end(error, deadline)
            except OSError as error:
                self._lose(error, deadline)
            except BaseException:
                self._end_if_torn()
                raise
            else:
                goodbye = self.goodbye(f"{self.name} is done{self.goodbye_hint}")
                self.end(read_ending(frame, self.name, goodbye), deadline)

    def read_to_the_end(self, deadline: float, *, keep: bool) -> None:
        """Receive the messages that still come, to be kept or dropped, and why they end.

        Who would only drop them leaves that to a thread that receives already.
        """
        if self._receiving.is_mine():
            return
        try:
            self._receiving.take(deadline if keep else 0.0)
            while self.ended is None and time_left(deadline):
                self._receive(wire.MESSAGE, deadline)
                if not keep:
                    self._inbox.clear()
        except TimeoutError:
            pass  # so it has not ended yet
        finally:
            try:  # noqa: SIM105  # a handler that raises could come in the midst of suppress()
                self._receiving.leave()
            except RuntimeError:  # another thread's turn
                pass

    def _end_if_torn(self) -> None:
        """End the channel if a signal's handler has raised in the midst of a receive."""
        if not self._frames.is_whole():
            self.end(ConnectionError(f"a receive from {self.name} was interrupted"))

    def _take_in(self) -> bool:
        """Take in what is here of a message; return whether there is nothing more to take in now.

        That is so, too, while another thread receives.
        """
        if self._inbox or self.ended is not None or self._receiving.is_mine():
            return True
        try:
            self._receiving.take(deadline=0.0)
            return self._frames.take_in()
        except TimeoutError:
            return True
        except ProtocolError as error:
            self.end(error)
            return True
        except OSError:  # `recv` finds it, too
            return True
        except BaseException:
            self._end_if_torn()
            raise
        finally:
            try:  # noqa: SIM105  # a handler that raises could come in the midst of suppress()
                self._receiving.leave()
            except RuntimeError:  # another thread's turn
                pass

    def holds_message(self) -> bool:
        """Return whether `recv` will not wait, having taken in what has arrived so far."""
        return self.is_ready(0) or self._take_in()

    def _ring(self) -> None:
        """Have who looks at `fileno` see what is here already."""
        if self._bell is not None:
            self._bell.ring(bool(self._inbox) or self.ended is not None or self._frames.is_next())

    def end(self, reason: Exception, deadline: float = math.inf) -> None:
        """End the channel with a reason, unless it has one."""
        if self.ended is None:
            self.ended = keep(reason)
            self._ring()

    def _again(self) -> Exception:
        assert self.ended is not None
        return again(self.ended)

    def _lose(self, error: OSError, deadline: float) -> None:
        if self.ended is None:
            self.end(self.explain(error, deadline), deadline)

    def explain(self, error: OSError, deadline: float) -> Exception:
        """Return why the other side is gone though it said no goodbye."""
        return ConnectionResetError(f"{self.name} is gone: {error.strerror or error}")

    def is_gone(self) -> bool:
        """Return whether the other side's process is known to have ended."""
        return False

    def is_ready(self, events: int) -> bool:
        is_here = self._inbox or self._frames.may_hold_frame()
        return bool(events & READABLE and is_here) or self.ended is not None or self.is_gone()

    def look(self, deadline: float) -> None:
        if self.ended is None and link_is_lost(self._frames.sock):
            self._lose(OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)), deadline)

    def say_ending(self, kind: int, body: dict[str, Any]) -> None:
        """Send the last frame, and leave nothing unread: a close would reset the connection."""
        if self.ended is None:
            with contextlib.suppress(OSError, EOFError, MiniRayError):  # nobody is left to be told
                self.send_frame(kind, body)
                self._frames.drop_unread()
