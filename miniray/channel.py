"""A connected socket that sends and receives whole messages, the same on both ends."""

import array
import collections
import contextlib
import errno
import math
import os
import select
import selectors
import socket
import struct
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn, Self, TypeVar

from miniray import pool, wire
from miniray.errors import ProtocolError, WorkerFailed

TRACEBACK_CHARS_MAX = 64 * 1024
SENDMSG_PARTS_MAX = 512  # the kernel takes 1024 at once
LOST_PEER_S = 15
LOOK_S = 2.0
# Of Linux's struct tcp_info: unanswered retransmissions and probes, milliseconds since an answer.
TCP_INFO_HEAD = struct.Struct("=2xBB52xI")
UNANSWERED_MIN = 3
_INTERNET = (socket.AF_INET, socket.AF_INET6)
_DONTWAIT = int(socket.MSG_DONTWAIT)  # not the enum, which is slower

_every_channel: "weakref.WeakSet[Channel]" = weakref.WeakSet()


class Channel:
    """Send and receive messages over a connected stream socket, which it owns from now on.

    One thread may send while another receives; two may not do the same. A `recv` that timed out
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
    _goodbye: type[Exception] = EOFError

    def __init__(self, sock: socket.socket, *, name: str = "peer", memfd: bool = False) -> None:
        self.name = name
        sock.settimeout(None)
        self._sock = sock
        self._memfd = memfd
        self._decoder = wire.Decoder(memfd=memfd)
        self._ended: Exception | None = None
        self._inbox: collections.deque[Any] = collections.deque()
        self._receiving = threading.Lock()
        _every_channel.add(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {self._ended or 'open'}>"

    def send(self, message: Any, timeout: float | None = None) -> None:
        """Send one message: plain values, bytes, numpy arrays, CPU tensors, nested at will.

        Raises TypeError or ValueError for what cannot be sent, before a byte is out. Raises
        TimeoutError after `timeout` seconds, and a WorkerError or ConnectionError if the other
        side is gone; both end the channel.
        """
        if self._ended is not None:
            raise self._ended.with_traceback(None)
        self._send_frame(wire.MESSAGE, message, timeout)

    def recv(self, timeout: float | None = None) -> Any:
        """Return the next message; arrays and tensors in it are writable and the caller's own.

        Raises TimeoutError after `timeout` seconds, which leaves the channel usable, and a
        WorkerError, EOFError or ConnectionError, now and ever after, once there is no more.
        """
        if self._inbox:
            return self._inbox.popleft()
        if self._ended is not None:
            raise self._ended.with_traceback(None)
        with self._receiving:
            kind, body = self._recv_frame(timeout)
        if kind == wire.MESSAGE:
            return body
        self._end(self._read_ending(wire.Frame(kind, body)))

    def __iter__(self) -> Iterator[Any]:
        """Yield messages until the other side hangs up."""
        while True:
            try:
                message = self.recv()
            except self._goodbye:
                return
            yield message

    def fileno(self) -> int:
        """Return the descriptor; it is readable if, and only if, `recv` has something to say."""
        return self._sock.fileno()

    def close(self) -> None:
        """Say goodbye and hang up; messages not yet received are gone."""
        if self._sock.fileno() < 0:
            return
        if self._ended is None:
            self._ended = ConnectionError(f"this side has closed the channel to {self.name}")
            with contextlib.suppress(OSError):  # a peer that is gone needs no goodbye
                goodbye = wire.encode(wire.EXIT, {"code": 0})
                self._sock.send(goodbye.head, _DONTWAIT)
        self._sock.close()
        pool.empty()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _send_frame(self, kind: int, body: Any, timeout: float | None) -> None:
        frame = wire.encode(kind, body, memfd=self._memfd)
        head = frame.head
        try:
            if not frame.parts and not frame.descriptors:
                try:
                    sent = self._sock.send(head, _DONTWAIT)
                    if sent == len(head):
                        return  # as for most messages
                    head = head[sent:]
                except BlockingIOError:
                    pass  # it waits below
            deadline = math.inf if timeout is None else time.monotonic() + timeout
            if frame.descriptors:
                self._send_parts([head], deadline)
                self._send_parts([b"\0"], deadline, frame.descriptors)
                self._send_parts([*frame.parts], deadline)
            else:
                self._send_parts([head, *frame.parts], deadline)
        except _Late:
            late = f"{self.name} took nothing in for {timeout}s; half a message may be out"
            self._end(TimeoutError(f"{late}, so the channel is closed"))
        except ProtocolError as error:
            self._end(error)
        except OSError as error:
            self._end_broken(error)
        except BaseException:  # Ctrl-C, or what another signal's handler raised
            if self._ended is None:
                reason = f"a send to {self.name} was interrupted; half a message may be out"
                self._ended = ConnectionError(f"{reason}, so the channel is closed")
            raise

    def _send_parts(
        self, parts: list[Any], deadline: float, descriptors: Sequence[int] = ()
    ) -> None:
        ancillary: list[Any] = []
        if descriptors:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        begin = 0
        while begin < len(parts):
            some = parts[begin : begin + SENDMSG_PARTS_MAX]
            try:
                sent = self._sock.sendmsg(some, ancillary, _DONTWAIT)
            except BlockingIOError:
                self._wait_to_send(deadline)
                continue
            ancillary = []
            while begin < len(parts) and sent >= len(parts[begin]):
                sent -= len(parts[begin])
                begin += 1
            if sent:
                parts[begin] = memoryview(parts[begin])[sent:]

    def _wait_to_send(self, deadline: float) -> None:
        """Wait until there is room, taking in the other side's message meanwhile."""
        events = select.POLLOUT
        if not self._receiving.locked() and len(self._want_but_the_end()):
            events |= select.POLLIN
        ready = _poll(self._sock, events, deadline)
        if not ready & select.POLLIN or not self._receiving.acquire(blocking=False):
            return
        try:
            want = self._want_but_the_end()
            if not len(want):  # another thread received meanwhile
                return
            nbytes = self._sock.recv_into(want, flags=_DONTWAIT)
            if nbytes == 0:
                raise BrokenPipeError(errno.EPIPE, "the other side hung up")
            self._decoder.advance(nbytes)
        except BlockingIOError:
            return  # another thread received it first
        finally:
            self._receiving.release()

    def _want_but_the_end(self) -> memoryview:
        """Return what may be received without completing a frame that nobody has asked for."""
        if self._decoder.wants_descriptors:
            return memoryview(b"")
        want = memoryview(self._decoder.want)
        return want[:-1] if self._decoder.ends_frame else want

    def _recv_frame(self, timeout: float | None) -> wire.Frame:
        deadline = None if timeout is None else time.monotonic() + timeout
        decoder, sock = self._decoder, self._sock
        try:
            while True:
                if deadline is not None:
                    _poll(sock, select.POLLIN, deadline)
                descriptors: list[int] = []
                if decoder.wants_descriptors:
                    data, descriptors, _, _ = socket.recv_fds(sock, 1, wire.DESCRIPTORS_MAX)
                    nbytes = len(data)
                else:
                    try:
                        nbytes = sock.recv_into(decoder.want)
                    except BlockingIOError:  # nothing for LOOK_S
                        _raise_if_lost(sock)
                        continue
                if nbytes == 0:
                    raise ConnectionResetError(errno.ECONNRESET, "it hung up without a goodbye")
                frame = decoder.advance(nbytes, descriptors)
                if frame is not None:
                    return frame
        except _Late:
            raise TimeoutError(f"{self.name} sent nothing for {timeout}s") from None
        except ProtocolError as error:
            reason: Exception = error
        except OSError as error:
            reason = self._ended or self._explain_silence(error)
        self._end(reason)

    def _end(self, reason: Exception) -> NoReturn:
        if self._ended is None:
            self._ended = reason
        raise self._ended.with_traceback(None) from None

    def _end_broken(self, error: OSError) -> NoReturn:
        """End a channel that cannot send; what had arrived, the reason too, can be received."""
        with self._receiving:
            while self._ended is None:
                try:
                    frame = self._recv_frame(timeout=1.0)
                except TimeoutError:
                    self._end(self._explain_silence(error))
                if frame.kind != wire.MESSAGE:
                    self._end(self._read_ending(frame))
                self._inbox.append(frame.body)
        self._end(self._ended)

    def _read_ending(self, frame: wire.Frame) -> Exception:
        """Return what a frame that is no message says about the end."""
        body = frame.body
        if frame.kind == wire.EXIT and type(body) is dict:
            code = body.get("code")
            return self._goodbye(
                f"{self.name} {f'exited with status {code}' if code else 'is done'}"
            )
        if frame.kind == wire.ERROR and type(body) is dict:
            kind, text, trace = (str(body.get(key)) for key in ("type", "message", "traceback"))
            return WorkerFailed(
                f"{self.name} raised {kind}: {text}\n\nIts traceback:\n{trace}",
                remote_type=kind,
                remote_traceback=trace,
                failed_at=time_s if type(time_s := body.get("time")) is float else 0.0,
            )
        return ProtocolError(f"{self.name} sent a frame of kind {frame.kind} in mid-conversation")

    def _explain_silence(self, error: OSError) -> Exception:
        """Return why the other side is gone though it said no goodbye."""
        return ConnectionResetError(f"{self.name} is gone: {error.strerror or error}")


AnyChannel = TypeVar("AnyChannel", bound=Channel)


def wait(channels: Iterable[AnyChannel], timeout: float | None = None) -> list[AnyChannel]:
    """Return the channels on which `recv` will not wait, in the order given; [] on timeout.

    Works over any number of channels (epoll on Linux, not select with its limit of 1024).
    """
    channels = list(channels)
    ready = {channel for channel in channels if channel._inbox or channel._ended is not None}
    with selectors.DefaultSelector() as selector:
        for channel in {*channels} - ready:
            selector.register(channel, selectors.EVENT_READ)
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            seconds = 0 if ready else min(max(deadline - time.monotonic(), 0), LOOK_S)
            found = selector.select(seconds)
            ready.update(key.fileobj for key, _ in found)  # type: ignore[misc]  # what we registered
            if ready or time.monotonic() >= deadline:
                break
            ready.update(channel for channel in channels if is_lost(channel._sock))
    return [channel for channel in channels if channel in ready]


def run_work(work_fn: Callable[[Channel], Any], channel: Channel) -> int:
    """Run a work function in its worker, report how it ended, and return the exit status."""
    code = 0
    try:
        work_fn(channel)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        # A function that did not expect the coordinator to leave has ended all the same.
        if not (isinstance(error, EOFError | ConnectionError) and error is channel._ended):
            _report_failure(channel, error)
            return 1
        code = 0 if isinstance(error, EOFError) else 1
    _send_ending(channel, wire.EXIT, {"code": code})
    return code


def _report_failure(channel: Channel, error: BaseException) -> None:
    trace = "".join(traceback.format_exception(error))
    with contextlib.suppress(OSError, ValueError):  # a full disk must not hide the failure
        sys.stderr.write(trace)
    report = {
        "type": type(error).__name__,
        "message": _text_of(error),
        "traceback": trace[-TRACEBACK_CHARS_MAX:],
        # A process group notes it before it is torn down, which makes the other ranks fail.
        "time": getattr(error, "failed_at", time.time()),
    }
    _send_ending(channel, wire.ERROR, report)


def _text_of(error: BaseException) -> str:
    try:
        return str(error)[:TRACEBACK_CHARS_MAX]
    except Exception as nested:  # a __str__ may do anything, and must not hide the traceback
        return f"<its __str__ raised {type(nested).__name__}>"


def _send_ending(channel: Channel, kind: int, body: dict[str, Any]) -> None:
    """Send the last frame, and leave nothing unread: a close would then reset the connection."""
    if channel._ended is not None:
        return
    with contextlib.suppress(OSError, EOFError, ProtocolError):  # nobody is left to be told
        channel._send_frame(kind, body, None)
        while channel._sock.recv(1 << 16, _DONTWAIT):
            pass


def close_inherited(kept: Channel | None) -> None:
    """Close, in a forked child, every channel but its own.

    A child that held its siblings' sockets would keep them from ever seeing end of file.
    """
    for channel in list(_every_channel):
        if channel is not kept:
            channel._sock.close()


def detect_lost_peer(sock: socket.socket, *, reads_at_once: bool = False) -> None:
    """Have the kernel end a TCP connection whose other machine is gone, within LOST_PEER_S.

    That is while nothing is under way. Bytes that nobody acknowledges it sends again for some 15
    minutes. It can be told to give up earlier, but then it also gives up a peer that is well and
    does not read. So only a peer that always `reads_at_once` is treated like that; for the others
    whoever waits asks `is_lost` now and then.
    """
    if sock.family not in _INTERNET:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A blocking receive returns to ask.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(LOOK_S), 0))
    options = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 5}
    if reads_at_once:
        options["TCP_USER_TIMEOUT"] = LOST_PEER_S * 1000
    for option, value in options.items():
        if hasattr(socket, option):  # macOS has other names for some
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def is_lost(sock: socket.socket) -> bool:
    """Return whether the kernel asks again and again, and had no answer for LOST_PEER_S.

    A machine that is there answers, though its process does not read.
    """
    if sock.family not in _INTERNET or sys.platform != "linux":
        return False
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_HEAD.size)
    retransmissions, probes, silent_ms = TCP_INFO_HEAD.unpack(info)
    unanswered = int(max(retransmissions, probes))
    return unanswered >= UNANSWERED_MIN and silent_ms >= LOST_PEER_S * 1000


def _raise_if_lost(sock: socket.socket) -> None:
    if is_lost(sock):  # as the kernel itself would say it
        raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))


class _Late(Exception):
    """A deadline passed."""


def _poll(sock: socket.socket, events: int, deadline: float) -> int:
    """Return which events are ready on a socket; raise _Late after the deadline."""
    poller = select.poll()
    poller.register(sock, events)
    while True:
        seconds = min(max(deadline - time.monotonic(), 0), LOOK_S)
        if ready := poller.poll(math.ceil(seconds * 1000)):
            return ready[0][1]
        if time.monotonic() >= deadline:
            raise _Late
        _raise_if_lost(sock)
