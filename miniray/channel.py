"""A connected socket that sends and receives whole messages, the same on both ends."""

import array
import collections
import contextlib
import errno
import math
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self, TypeVar

from miniray import inherited, pool, wire
from miniray.errors import MiniRayError, ProtocolError, WorkerFailed, again
from miniray.turn import Turn
from miniray.waiting import (
    READABLE,
    WRITABLE,
    Source,
    deadline_after,
    link_is_lost,
    time_left,
    wait_until,
)

SENDMSG_PARTS_MAX = 512  # the kernel takes 1024 at once
LEAVE_S = 1.0
LAST_WORDS_S = 1.0
_DONTWAIT = int(socket.MSG_DONTWAIT)  # not the enum, which is slower
_PEEK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)
_ANCILLARY_BYTES = socket.CMSG_SPACE(wire.DESCRIPTORS_MAX * array.array("i").itemsize)


class Channel(Source):
    """Send and receive messages over a connected stream socket, which it owns from now on.

    Threads that send at once take turns, and so do those that receive. A `recv` that timed out
    resumes where it was; a `send` that timed out ends the channel. Both sides may send one
    message of any size at the same moment: while a send waits, it takes in the other side's
    current message up to the last byte, which stays in the kernel so that `fileno()` is honest.
    From the second message on, a send may wait until the other side receives.

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
        sock.settimeout(None)
        self._sock, self._memfd = sock, memfd
        self._decoder = wire.Decoder(auth_only=handshake, memfd=memfd)
        self._inbox: collections.deque[wire.Frame] = collections.deque()
        self._arrived: list[Any] = []  # what a receive returned and the decoder has not seen yet
        self._sending, self._receiving = Turn("send"), Turn("receive")
        inherited.own(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {self.ended or 'open'}>"

    def send(self, message: Any, timeout: float | None = None) -> None:
        """Send one message: plain values, bytes, numpy arrays, CPU tensors, nested at will.

        Raises TypeError or ValueError for what cannot be sent, before a byte is out. Raises
        TimeoutError after `timeout` seconds, and a WorkerError or ConnectionError if the other
        side is gone; both end the channel.
        """
        try:
            self.send_frame(wire.MESSAGE, message, deadline_after(timeout))
        except TimeoutError:
            if self.ended is None:  # another thread had the turn: nothing of ours is out
                raise TimeoutError(f"another send to {self.name} took all of {timeout}s") from None
            raise

    def recv(self, timeout: float | None = None) -> Any:
        """Return the next message; arrays and tensors in it are writable and the caller's own.

        Raises TimeoutError after `timeout` seconds, which leaves the channel usable, and a
        WorkerError, EOFError or ConnectionError, now and ever after, once there is no more.
        """
        deadline = deadline_after(timeout)
        try:
            frame = self._next_frame(deadline)
        except TimeoutError:
            raise TimeoutError(f"{self.name} sent nothing for {timeout}s") from None
        if frame is not None and frame.kind == wire.MESSAGE:
            return frame.body
        if frame is not None:
            self.end(self._read_ending(frame), deadline)
        raise self._again()

    def __iter__(self) -> Iterator[Any]:
        """Yield messages until the other side hangs up."""
        while True:
            try:
                message = self.recv()
            except self.goodbye:
                return
            yield message

    def fileno(self) -> int:
        """Return the descriptor; it is readable if, and only if, `recv` has something to do."""
        return self._sock.fileno()

    def close(self) -> None:
        """Say goodbye and hang up; messages not yet received are gone."""
        if self._sock.fileno() < 0:
            return
        self.hang_up(ConnectionError(f"this side has closed the channel to {self.name}"))
        for turn in (self._sending, self._receiving):
            # A thread that was waiting has been woken, and leaves before the number is reused.
            with contextlib.suppress(RuntimeError, TimeoutError):
                turn.refuse_handler()
                try:
                    turn.take(deadline_after(LEAVE_S))
                finally:
                    turn.leave()
        self._sock.close()
        pool.empty()

    def hang_up(self, reason: Exception) -> None:
        """End the channel with a reason and, if it was open, a goodbye; nothing waits for it."""
        with contextlib.suppress(OSError):  # a peer that is gone needs no goodbye
            if self.ended is None:
                self.ended = reason
                self._sock.send(wire.encode(wire.EXIT, {"code": 0}).head, _DONTWAIT)
            self._sock.shutdown(socket.SHUT_RDWR)

    def abandon(self) -> None:
        """Let go of the socket in a forked child, without a word to the other side."""
        self.ended = ConnectionError(
            f"the channel to {self.name} stayed with the process that forked this one"
        )
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def send_frame(self, kind: int, body: Any, deadline: float = math.inf) -> None:
        """Send one frame, whole; whatever cuts it short ends the channel."""
        frame = wire.encode(kind, body, memfd=self._memfd)
        self._sending.refuse_handler()
        try:
            self._sending.take(deadline)
            self._raise_if_ended()
            try:
                self._write(frame, deadline)
            except TimeoutError:
                late = f"{self.name} did not take in a message in time; half of it may be out"
                self.end(TimeoutError(f"{late}, so the channel is closed"), deadline)
            except ProtocolError as error:
                self.end(error, deadline)
            except OSError as error:
                self._end_broken(error, deadline)
            except BaseException:  # Ctrl-C, or what another signal's handler raised
                late = f"a send to {self.name} was interrupted; half a message may be out"
                self.end(ConnectionError(f"{late}, so the channel is closed"), deadline)
                raise
            else:
                return
        finally:
            self._sending.leave()
        self._raise_if_ended()

    def _write(self, frame: wire.Encoded, deadline: float) -> None:
        if frame.descriptors:
            self._write_parts([frame.head], deadline)
            self._write_parts([b"\0"], deadline, frame.descriptors)
            self._write_parts(frame.parts, deadline)
        elif frame.parts:
            self._write_parts([frame.head, *frame.parts], deadline)
        else:  # as for most messages
            try:
                sent = self._sock.send(frame.head, _DONTWAIT)
            except BlockingIOError:
                sent = 0
            if sent < len(frame.head):
                self._write_parts([memoryview(frame.head)[sent:]], deadline)

    def _write_parts(
        self, parts: Sequence[Any], deadline: float, descriptors: Iterable[int] = ()
    ) -> None:
        rights = array.array("i", descriptors)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else []
        while parts:
            try:
                sent = self._sock.sendmsg(parts[:SENDMSG_PARTS_MAX], ancillary, _DONTWAIT)
            except BlockingIOError:
                self._wait_to_send(deadline)
                continue
            ancillary = []
            done = 0
            while done < len(parts) and sent >= len(parts[done]):
                sent -= len(parts[done])
                done += 1
            parts = parts[done:]
            if sent:
                parts[0] = memoryview(parts[0])[sent:]

    def _wait_to_send(self, deadline: float) -> None:
        """Wait until there is room, taking in the other side's message meanwhile."""
        if self.is_gone():  # and somewhere is a copy of its end, which nobody reads
            raise BrokenPipeError(errno.EPIPE, "it has ended")
        events = WRITABLE if self._take_in() else WRITABLE | READABLE
        if not wait_until({self: events}, deadline):
            raise TimeoutError
        self._raise_if_ended()

    def recv_frame(self, deadline: float = math.inf) -> wire.Frame:
        """Receive one frame; a TimeoutError at the deadline leaves the channel usable."""
        frame = self._next_frame(deadline)
        if frame is None:
            raise self._again()
        return frame

    def drain(self, deadline: float) -> Exception | None:
        """Drop the messages that still come; return why the channel ended, None at the deadline."""
        self._read_to_the_end(deadline)
        return self.ended

    def _read_to_the_end(self, deadline: float) -> list[wire.Frame]:
        messages = []
        with contextlib.suppress(TimeoutError):
            while self.ended is None and time_left(deadline):
                frame = self._next_frame(deadline)
                if frame is not None and frame.kind == wire.MESSAGE:
                    messages.append(frame)
                elif frame is not None:
                    self.end(self._read_ending(frame), deadline)
        return messages

    def _next_frame(self, deadline: float) -> wire.Frame | None:
        """Return the next frame, or None if the channel has ended."""
        self._receiving.refuse_handler()
        gone = False
        try:
            self._receiving.take(deadline)
            while not self._inbox and self.ended is None:
                try:
                    return self._receive(to_the_end=True)
                except BlockingIOError:
                    if gone:  # before we looked a last time
                        self._lose(ConnectionResetError(errno.ECONNRESET, "it has ended"), deadline)
                        continue
                    gone = self.is_gone()
                    if not gone and not wait_until({self: READABLE}, deadline):
                        raise TimeoutError from None
                except ProtocolError as error:
                    self.end(error, deadline)
                except OSError as error:
                    self._lose(error, deadline)
            return self._inbox.popleft() if self._inbox else None
        finally:
            self._receiving.leave()

    def _take_in(self) -> bool:
        """Take in what has arrived of a frame, all but its last byte, which keeps fileno honest.

        Returns whether nothing but that byte is missing, or another thread does the receiving.
        """
        if self._inbox:
            return True
        try:
            self._receiving.refuse_handler()
        except RuntimeError:
            return True
        try:
            self._receiving.take(deadline=0.0)
            self._receive(to_the_end=False)
        except BlockingIOError:
            return False
        except TimeoutError:
            pass
        finally:
            self._receiving.leave()
        return True

    def _receive(self, *, to_the_end: bool) -> wire.Frame | None:
        """Take in what has arrived of one frame; return it if that completes it.

        Raises BlockingIOError once nothing more is here, and OSError if the other side hung up.
        Returns None if only the last byte is missing and it is not to be taken `to_the_end`.
        """
        decoder, arrived = self._decoder, self._arrived
        while True:
            want = decoder.want
            if not to_the_end and decoder.ends_frame:
                want = memoryview(want)[:-1]
                if not len(want) and not arrived:
                    return None
            if not arrived:
                # C puts the result into the list: a signal's handler that raises cannot lose it.
                if decoder.wants_descriptors:
                    asked = (1,), (_ANCILLARY_BYTES,), (_DONTWAIT,)
                    arrived.extend(map(self._sock.recvmsg, *asked))
                else:
                    arrived.extend(map(self._sock.recv_into, (want,), (0,), (_DONTWAIT,)))
            try:
                frame = self._decode(arrived.pop())
            except (OSError, ProtocolError):
                raise
            except BaseException:  # a handler has raised, and who knows what is counted
                self.ended = ConnectionError(f"a receive from {self.name} was interrupted")
                raise
            if frame is not None:
                return frame

    def _decode(self, result: Any) -> wire.Frame | None:
        """Pass on to the decoder what a receive returned: a number of bytes, or descriptors too."""
        if type(result) is int:
            if result == 0:
                raise ConnectionResetError(errno.ECONNRESET, "it hung up without a goodbye")
            return self._decoder.advance(result)
        data, ancillary, _, _ = result
        descriptors = array.array("i")
        for _, _, rights in ancillary:
            descriptors.frombytes(rights[: len(rights) - len(rights) % descriptors.itemsize])
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, "it hung up without a goodbye")
        return self._decoder.advance(1, descriptors)

    def _read_ending(self, frame: wire.Frame) -> Exception:
        """Return what a frame that is no message says about the end."""
        body = frame.body
        if frame.kind == wire.EXIT and type(body) is dict:
            return self.goodbye(f"{self.name} is done{self.goodbye_hint}")
        if frame.kind == wire.ERROR and type(body) is dict:
            kind, text, trace = (str(body.get(key)) for key in ("type", "message", "traceback"))
            code, time_s = body.get("code"), body.get("time")
            happened = text if kind == "SystemExit" else f"raised {kind}: {text}"
            return WorkerFailed(
                f"{self.name} {happened}\n\nIts traceback:\n{trace}",
                remote_type=kind,
                remote_traceback=trace,
                failed_at=time_s if type(time_s) is float else 0.0,
                exit_code=code if type(code) is int else 1,
                in_collective=body.get("in_collective") is True,
            )
        return ProtocolError(f"{self.name} sent a frame of kind {frame.kind} in mid-conversation")

    def _end_broken(self, error: OSError, deadline: float) -> None:
        """End a channel that cannot send; what had arrived, the reason too, can be received."""
        messages = self._read_to_the_end(min(deadline, deadline_after(LAST_WORDS_S)))
        self._inbox.extend(messages)
        self._lose(error, deadline)

    def _lose(self, error: OSError, deadline: float) -> None:
        if self.ended is None:
            self.end(self.explain(error, deadline), deadline)

    def end(self, reason: Exception, deadline: float = math.inf) -> None:
        """End the channel with a reason, unless it has one."""
        if self.ended is None:
            self.ended = reason.with_traceback(None)

    def _raise_if_ended(self) -> None:
        if self.ended is not None:
            raise self._again()

    def _again(self) -> Exception:
        assert self.ended is not None
        return again(self.ended)

    def explain(self, error: OSError, deadline: float) -> Exception:
        """Return why the other side is gone though it said no goodbye."""
        return ConnectionResetError(f"{self.name} is gone: {error.strerror or error}")

    def is_gone(self) -> bool:
        """Return whether the other side's process is known to have ended."""
        return False

    def is_ready(self) -> bool:
        return bool(self._inbox) or self.ended is not None

    def look(self, deadline: float) -> None:
        if self.ended is None and link_is_lost(self._sock):
            self._lose(OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)), deadline)

    def holds_message(self) -> bool:
        """Return whether `recv` will not wait, having taken in what has arrived so far."""
        if self.is_ready():
            return True
        try:
            return self._take_in() and bool(self._sock.recv(1, _PEEK))
        except BlockingIOError:
            return False
        except (OSError, ProtocolError):  # recv says so, too
            return True

    def is_my_ending(self, error: BaseException) -> bool:
        """Return whether an exception is what this channel raises since it has ended."""
        mine = self.ended
        return mine is not None and type(error) is type(mine) and error.args == mine.args

    def say_ending(self, kind: int, body: dict[str, Any]) -> None:
        """Send the last frame, and leave nothing unread: a close would reset the connection."""
        if self.ended is None:
            with contextlib.suppress(OSError, EOFError, MiniRayError):  # nobody is left to be told
                self.send_frame(kind, body)
                while self._sock.recv(1 << 16, _DONTWAIT):
                    pass


AnyChannel = TypeVar("AnyChannel", bound=Channel)


def wait(channels: Iterable[AnyChannel], timeout: float | None = None) -> list[AnyChannel]:
    """Return the channels on which `recv` will not wait, in the order given; [] on timeout.

    Works over any number of channels (poll, not select with its limit of 1024). What has arrived
    of a message that is not complete yet is taken in, and does not count.
    """
    wanted = dict.fromkeys(channels, READABLE)
    deadline = deadline_after(timeout)
    while wanted and (found := wait_until(wanted, deadline)):
        if ready := [channel for channel in found if channel.holds_message()]:
            return ready
    return []
