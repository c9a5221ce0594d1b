"""A connected socket that sends and receives whole messages, the same on both ends."""

import contextlib
import json
import socket
import traceback
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Self

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
        self._ended: Exception | None = None  # why there is no more, or None while it is open
        owned.add(sock)

    def send(self, message: Any) -> None:
        """Send one message: whatever JSON can say.

        Raises TypeError or ValueError for what cannot be sent, before a byte is out, and a
        WorkerError or ConnectionError if the other side is gone. Waits while the other side does
        not receive: two sides that both send a large message wait forever.
        """
        frame = wire.encode(wire.MESSAGE, message)
        self._check_open()
        try:
            self._sock.sendall(frame)
        except OSError:
            for _ in self:
                pass  # the last thing it said is why; nobody will ask for the rest any more
            self._check_open()
        except BaseException:  # Ctrl-C, and half a message may be out
            self._ended = ConnectionError(f"a message to {self.name} was interrupted")
            raise

    def recv(self) -> Any:
        """Return the next message.

        Raises a WorkerError, EOFError or ConnectionError, now and ever after, once there is no
        more. It waits as long as it takes: a process cannot end without hanging up.
        """
        kind, body = self._recv_frame()
        if kind == wire.MESSAGE:
            return body
        self._ended = self._read_ending(kind, body)
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

    def _recv_frame(self) -> tuple[int, Any]:
        self._check_open()
        try:
            kind, length = wire.decode_prelude(self._recv_exactly(wire.PRELUDE.size))
            return kind, json.loads(self._recv_exactly(length))
        except OSError as error:
            self._ended = self._explain_silence(error)
        except ProtocolError as error:
            self._ended = error
        raise self._ended

    def _recv_exactly(self, nbytes: int) -> bytearray:
        data = bytearray(nbytes)
        missing = memoryview(data)
        while missing:
            received = self._sock.recv_into(missing)  # which may be less than asked for
            if received == 0:
                raise ConnectionResetError("it hung up without a goodbye")
            missing = missing[received:]
        return data

    def _read_ending(self, kind: int, body: Any) -> Exception:
        """Return what a frame that is no message says about the end."""
        if kind == wire.EXIT:
            return self._goodbye(f"{self.name} is done")
        return WorkerFailed(
            f"{self.name} raised {body['type']}: {body['message']}\n\n"
            f"Its traceback:\n{body['traceback']}"
        )

    def _explain_silence(self, error: OSError) -> Exception:
        """Return why the other side is gone though it said no goodbye."""
        return ConnectionResetError(f"{self.name} is gone: {error}")

    def _send_last(self, kind: int, body: Any, flags: int = 0) -> None:
        """Send a frame about the end, if the other side is still there."""
        if self._ended is None:
            with contextlib.suppress(OSError):  # then nobody is left to be told
                self._sock.sendall(wire.encode(kind, body), flags)


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
