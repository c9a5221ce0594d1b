"""A connected socket that sends and receives whole messages, the same on both ends."""

import contextlib
import errno
import math
from collections.abc import Generator, Iterator
from typing import Any, Self

from miniray import wire
from miniray.codec import Unreadable
from miniray.endings import read_ending
from miniray.endpoint import Endpoint
from miniray.errors import MiniRayError, ProtocolError
from miniray.waiting import HANG_UP, READABLE, WRITABLE, Late, deadline_after, time_left, wait_until
from miniray.waiting import wait as wait  # for whoever looks for it beside the channels

LAST_WORDS_S = 1.0
_NOTHING = object()


class Channel(Endpoint):
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

    def send(self, message: Any, timeout: float | None = None) -> None:
        """Send one message: plain values, numpy arrays, CPU tensors, dataclasses, nested at will.

        Raises TypeError or ValueError for what cannot be sent, before a byte is out. Raises
        TimeoutError after `timeout` seconds, and a WorkerError or ConnectionError if the other
        side is gone; both end the channel.
        """
        self.send_frame(wire.MESSAGE, message, timeout)

    def recv(self, timeout: float | None = None) -> Any:
        """Return the next message; arrays and tensors in it are writable and the caller's own.

        Raises TimeoutError after `timeout` seconds, and TypeError for a message with a class that
        this process does not have; both leave the channel usable. Raises a WorkerError, EOFError
        or ConnectionError, now and ever after, once there is no more.
        """
        message = self.recv_frame(wire.MESSAGE, timeout)
        return message if type(message) is not Unreadable else message.refuse(self.name)

    def __iter__(self) -> Iterator[Any]:
        """Yield messages until the other side hangs up."""
        while True:
            try:
                message = self.recv()
            except self.goodbye:
                return
            yield message

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def send_frame(self, kind: int, body: Any, timeout: float | None = None) -> None:
        """Send one frame, whole; whatever cuts it short ends the channel."""
        frame = wire.encode(kind, body, memfd=self.frames.memfd)
        deadline = math.inf if timeout is None else deadline_after(timeout)
        if self.turn_to_send.is_mine():
            self.turn_to_send.refuse_handler()
        steps = self.sending(frame, deadline, timeout)
        try:
            if not self.turn_to_send.try_take(False):
                self.turn_to_send.take(deadline)
            for events in steps:
                wait_until({self: events}, deadline)
        except Late:
            others = f"other threads' messages to {self.name} took all of {timeout}s"
            raise TimeoutError(others) from None
        except BaseException:
            steps.close()
            raise
        finally:
            try:  # noqa: SIM105  # a handler that raises could come in the midst of suppress()
                self.turn_to_send.leave()
            except RuntimeError:  # another thread's turn
                pass
        if self.ended is not None:
            raise self.why_it_ended()

    def sending(
        self, frame: wire.Encoded, deadline: float, timeout: float | None
    ) -> Generator[int, None, None]:
        """Send a frame, in this thread's turn; yield the events to wait for if there is no room.

        Whatever cuts it short ends the channel.
        """
        try:
            for _ in self.frames.send(frame) if self.ended is None else ():
                if self.is_gone() or self.frames.has_hung_up():  # a copy of its end may be left
                    raise BrokenPipeError(errno.EPIPE, "it has ended")
                if not time_left(deadline):
                    late = f"{self.name} took nothing in for {timeout}s; half a message may be out"
                    self.end(TimeoutError(f"{late}, so the channel is closed"), deadline)
                if self.ended is None:
                    yield WRITABLE | HANG_UP | (0 if self._take_in() else READABLE)
                if self.ended is not None:
                    return
        except OSError as error:  # what had arrived, the reason too, can still be received
            if error.errno is None:
                self.end(self._interrupted(), deadline)
                raise
            self.read_to_the_end(min(deadline, deadline_after(LAST_WORDS_S)), keep=True)
            self.lose(error, deadline)
        except BaseException:  # Ctrl-C, or what another signal's handler raised
            self.end(self._interrupted(), deadline)
            raise

    def _interrupted(self) -> Exception:
        late = f"a send to {self.name} was interrupted; half a message may be out"
        return ConnectionError(f"{late}, so the channel is closed")

    def recv_frame(self, kind: int, timeout: float | None = None) -> Any:
        """Return the body of the next frame, which is to be of this kind.

        A TimeoutError leaves the channel usable.
        """
        deadline = math.inf if timeout is None else deadline_after(timeout)
        if self.turn_to_receive.is_mine():
            self.turn_to_receive.refuse_handler()
        body = _NOTHING
        try:
            if not self.turn_to_receive.try_take(False):
                self.turn_to_receive.take(deadline)
            if not self.inbox:
                self._receive(kind, deadline)
            if self.inbox:
                if self.bell is not None:
                    self._look_ahead()
                body = self.inbox[0]
                del self.inbox[0]  # not popleft: a handler that raises would come after the call
            if self.bell is not None:
                self.ring()
        except Late:
            raise TimeoutError(f"{self.name} sent nothing for {timeout}s") from None
        except BaseException:
            self._put_back(body)
            raise
        finally:
            try:
                self.turn_to_receive.leave()
            except RuntimeError:  # another thread's turn
                pass
            except BaseException:  # a handler's: nothing is lost
                self._put_back(body)
                raise
        if body is _NOTHING:
            raise self.why_it_ended()
        return body

    def _put_back(self, body: Any) -> None:
        if body is not _NOTHING and not (self.inbox and self.inbox[0] is body):
            self.inbox.appendleft(body)

    def _receive(self, kind: int, deadline: float) -> None:
        """Put the next frame's body into the inbox, or end the channel if there is none.

        Whoever has the turn also notes the end: another thread would take it for a hang-up.
        """
        gone = False
        while self.ended is None:
            try:
                frame = self.frames.receive(-math.inf if gone else deadline)
                if frame.kind == kind:
                    self.inbox.append(frame.body)
                    return
            except BlockingIOError:
                if gone:  # before we looked a last time
                    self.lose(ConnectionResetError(errno.ECONNRESET, "it has ended"), deadline)
                elif not self.turn_to_receive.rest(lambda: self.wait_for_more(deadline)):
                    raise Late from None
                gone = self.is_gone()
            except ProtocolError as error:
                self.end(error, deadline)
            except OSError as error:
                if error.errno is None:  # a handler's
                    self._end_if_torn()
                    raise
                self.lose(error, deadline)
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
        if self.turn_to_receive.is_at_work():
            return
        try:
            self.turn_to_receive.take(deadline if keep else 0.0)
            while self.ended is None and time_left(deadline):
                self._receive(wire.MESSAGE, deadline)
                if not keep:
                    self.inbox.clear()
        except Late:
            pass  # so it has not ended yet
        finally:
            try:  # noqa: SIM105  # a handler that raises could come in the midst of suppress()
                self.turn_to_receive.leave()
            except RuntimeError:  # another thread's turn
                pass

    def _end_if_torn(self) -> None:
        """End the channel if a signal's handler has raised in the midst of a receive."""
        if not self.frames.is_whole():
            self.end(ConnectionError(f"a receive from {self.name} was interrupted"))

    def _look_ahead(self) -> None:
        """Find out whether one more message is complete in what has been received ahead."""
        try:
            self.frames.peek()
        except ProtocolError as error:
            self.end(error)
        except BaseException:
            self._end_if_torn()
            raise

    def _take_in(self) -> bool:
        """Take in what is here of a message; return whether there is nothing more to take in now.

        That is so, too, while another thread receives.
        """
        if self.inbox or self.ended is not None or self.turn_to_receive.is_at_work():
            return True
        try:
            if not self.turn_to_receive.try_take(False):
                return True
            is_complete = self.frames.take_in()
            self.ring()
            return is_complete
        except ProtocolError as error:
            self.end(error)
            return True
        except OSError as error:
            if error.errno is None:  # a handler's
                self._end_if_torn()
                raise
            return True  # `recv` finds it, too
        except BaseException:
            self._end_if_torn()
            raise
        finally:
            try:  # noqa: SIM105  # a handler that raises could come in the midst of suppress()
                self.turn_to_receive.leave()
            except RuntimeError:  # another thread's turn
                pass

    def holds_message(self) -> bool:
        """Return whether `recv` will not wait, having taken in what has arrived so far."""
        return self.is_ready(0) or self._take_in()

    def say_ending(self, kind: int, body: dict[str, Any]) -> None:
        """Send the last frame, and leave nothing unread: a close would reset the connection."""
        if self.ended is None:
            with contextlib.suppress(OSError, EOFError, MiniRayError):  # nobody is left to be told
                self.send_frame(kind, body)
                self.frames.drop_unread()
