"""A connected socket that sends and receives whole messages, the same on both ends."""

import contextlib
import select
import socket
import time
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self, TypeVar

from . import wire
from .errors import ProtocolError, WorkerFailed

# What belongs to this process alone: sockets and files that no forked child may keep.
owned: "weakref.WeakSet[Any]" = weakref.WeakSet()


class Channel:
    """Send and receive messages over a connected stream socket, which it owns from now on."""

    # What `recv` raises after the other side's goodbye.
    _goodbye: type[Exception] = EOFError

    def __init__(self, sock: socket.socket, *, name: str = "peer") -> None:
        self.name = name
        self._sock = sock
        self._decoder = wire.Decoder()
        self._ended: Exception | None = None  # why there is no more, or None while it is open
        owned.add(sock)

    def send(self, message: Any, timeout: float | None = None) -> None:
        """Send one message: plain values, tuples, bytes and CPU tensors, nested at will.

        Raises TypeError or ValueError for what cannot be sent, before a byte is out. Raises
        TimeoutError after `timeout` seconds, and a WorkerError or ConnectionError if the other
        side is gone; both end the channel. Waits while the other side does not receive: two sides
        that both send a large message wait forever, or until one of them is late.
        """
        parts = wire.encode(wire.MESSAGE, message)
        self._check_open()
        try:
            deadline = None if timeout is None else time.monotonic() + timeout
            for part in parts:
                self._send_all(part, deadline)
        except _Late:
            late = f"{self.name} took nothing in for {timeout}s; half a message may be out"
            self._ended = TimeoutError(f"{late}, so the channel is closed")
            raise self._ended from None
        except OSError:
            for _ in self:
                pass  # the last thing it said is why; nobody will ask for the rest any more
            self._check_open()
        except BaseException:  # Ctrl-C, and half a message may be out
            self._ended = ConnectionError(f"a message to {self.name} was interrupted")
            raise

    def recv(self, timeout: float | None = None) -> Any:
        """Return the next message.

        Raises TimeoutError after `timeout` seconds, which leaves the channel usable, and a
        WorkerError, EOFError or ConnectionError, now and ever after, once there is no more.
        """
        frame = self._recv_frame(timeout)
        if frame.kind == wire.MESSAGE:
            return frame.body
        self._ended = self._read_ending(frame)
        raise self._ended

    def __iter__(self) -> Iterator[Any]:
        """Yield messages until the other side says goodbye."""
        with contextlib.suppress(self._goodbye):
            while True:
                yield self.recv()

    def fileno(self) -> int:
        """Return the descriptor; it is readable if, and only if, there is more to receive."""
        return self._sock.fileno()

    def close(self) -> None:
        """Say goodbye and hang up; closing twice is fine."""
        self._send_last(wire.EXIT, None, socket.MSG_DONTWAIT)  # if it takes that at once
        if self._ended is None:
            self._ended = ConnectionError(f"this side has closed the channel to {self.name}")
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._ended is not None:
            raise self._ended.with_traceback(None)

    def _send_all(self, data: Any, deadline: float | None) -> None:
        rest = memoryview(data)
        while rest:
            _wait_for(self._sock, select.POLLOUT, deadline)
            rest = rest[self._sock.send(rest, socket.MSG_DONTWAIT) :]

    def _recv_frame(self, timeout: float | None) -> wire.Frame:
        self._check_open()
        deadline = None if timeout is None else time.monotonic() + timeout
        frame = None
        try:
            while frame is None:
                _wait_for(self._sock, select.POLLIN, deadline)
                nbytes = self._sock.recv_into(self._decoder.want)  # may be less than it wants
                if nbytes == 0:
                    raise ConnectionResetError("it hung up without a goodbye")
                frame = self._decoder.advance(nbytes)
            return frame
        except _Late:
            raise TimeoutError(f"{self.name} sent nothing for {timeout}s") from None
        except OSError as error:
            self._ended = self._explain_silence(error)
        except ProtocolError as error:
            self._ended = error
        raise self._ended

    def _read_ending(self, frame: wire.Frame) -> Exception:
        """Return what a frame that is no message says about the end."""
        if frame.kind == wire.EXIT:
            return self._goodbye(f"{self.name} is done")
        if type(frame.body) is not dict:
            return ProtocolError(f"{self.name} sent an ERROR that says nothing")
        kind, text, trace = (frame.body.get(key) for key in ("type", "message", "traceback"))
        return WorkerFailed(f"{self.name} raised {kind}: {text}\n\nIts traceback:\n{trace}")

    def _explain_silence(self, error: OSError) -> Exception:
        """Return why the other side is gone though it said no goodbye."""
        return ConnectionResetError(f"{self.name} is gone: {error}")

    def _send_last(self, kind: int, body: Any, flags: int = 0) -> None:
        """Send a frame about the end, if the other side is still there."""
        if self._ended is None:
            with contextlib.suppress(OSError):  # then nobody is left to be told
                self._sock.sendall(b"".join(wire.encode(kind, body)), flags)
                # Bytes that nobody reads would turn the close into a reset, which destroys that.
                while self._sock.recv(1 << 16, socket.MSG_DONTWAIT):
                    pass


AnyChannel = TypeVar("AnyChannel", bound=Channel)


def wait(channels: Iterable[AnyChannel], timeout: float | None = None) -> list[AnyChannel]:
    """Return the channels on which `recv` will not wait, in the order given; [] on timeout."""
    channels = list(channels)
    ended = {channel for channel in channels if channel._ended is not None}
    poller = select.poll()
    for channel in {*channels} - ended:
        poller.register(channel, select.POLLIN)
    seconds = 0.0 if ended else timeout
    ready = {number for number, _ in poller.poll(seconds and max(seconds, 0) * 1000)}
    return [channel for channel in channels if channel in ended or channel.fileno() in ready]


def run_work(work_fn: Callable[[Channel], Any], channel: Channel) -> int:
    """Run a work function in its worker, report how it ended, and return the exit status."""
    try:
        work_fn(channel)
    except (Exception, SystemExit) as error:
        code = error.code if isinstance(error, SystemExit) else 1
        if code:  # sys.exit() and sys.exit(0) are a way to return, and nothing else is
            report = {"type": type(error).__name__, "message": str(error)}
            channel._send_last(wire.ERROR, {**report, "traceback": traceback.format_exc()})
            return code if isinstance(code, int) else 1
    channel._send_last(wire.EXIT, None)
    return 0


def close_inherited() -> None:
    """Close, in a forked child, what belongs to its parent.

    A child that held its siblings' sockets would keep them from ever seeing end of file.
    """
    for one in owned:
        one.close()


def detect_lost_peer(sock: socket.socket) -> None:
    """Have the kernel end a silent TCP connection whose other machine is gone, in 15 seconds.

    Bytes that are under way, and that nobody acknowledges, it sends again for some 15 minutes.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option, value in (
        ("TCP_KEEPIDLE", 5),
        ("TCP_KEEPINTVL", 2),
        ("TCP_KEEPCNT", 5),
    ):
        if hasattr(socket, option):  # macOS has other names for some
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


class _Late(Exception):
    """A deadline passed."""


def _wait_for(sock: socket.socket, events: int, deadline: float | None) -> None:
    """Wait until a socket is ready for reading or writing; raise _Late after the deadline."""
    poller = select.poll()
    poller.register(sock, events)
    if not poller.poll(None if deadline is None else max(deadline - time.monotonic(), 0) * 1000):
        raise _Late
