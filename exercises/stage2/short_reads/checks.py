"""What receiving a frame has to do."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from exercises.checking import Pieces, expect, expect_raises, note

TEXT = "".join(chr(65 + n % 57) for n in range(240))


@contextlib.contextmanager
def _pair(answer: Any) -> Iterator[tuple[Any, socket.socket]]:
    """Yield a channel, and the socket at its other end."""
    ours, theirs = socket.socketpair()
    with theirs:
        channel = answer.channel.Channel(ours, name="worker 7")
        yield channel, theirs
        ours.close()


def _frame(answer: Any, body: Any) -> bytes:
    return bytes(answer.wire.encode(answer.wire.MESSAGE, body))


def check_whole(answer: Any) -> None:
    """send the frame of "abc", and call recv()"""
    with _pair(answer) as (channel, theirs):
        theirs.sendall(_frame(answer, "abc"))
        got = channel.recv()
        expect(got == "abc", expected="'abc'", happened=repr(got))


def check_pieces(answer: Any) -> None:
    """send a frame of 251 bytes, which arrives 7 bytes at a time, and call recv()"""
    with _pair(answer) as (channel, theirs):
        channel._sock = Pieces(channel._sock, 7)
        theirs.sendall(_frame(answer, TEXT))
        note("all 251 bytes had arrived, 7 a read")
        try:
            got = channel.recv()
            happened = f"{got!r:.40}"
        except AttributeError as error:
            got, happened = None, f"AttributeError: {error}"
        expect(got == TEXT, expected="the whole text", happened=happened)


def check_no_more(answer: Any) -> None:
    """send the frames of "one" and "two" at once, and call recv() twice"""
    with _pair(answer) as (channel, theirs):
        theirs.sendall(_frame(answer, "one") + _frame(answer, "two"))
        first = channel.recv(1.0)
        expect(first == "one", expected="'one'", happened=repr(first))
        try:
            second = repr(channel.recv(0.2))
        except Exception as error:
            second = f"{type(error).__name__}: {error}"
        expect(second == "'two'", expected="'two' then", happened=f"then {second}")


def check_a_frame_that_comes_later(answer: Any) -> None:
    """call recv(timeout=1.0), and send a frame while it waits"""
    with _pair(answer) as (channel, theirs):

        def send() -> None:
            time.sleep(0.1)
            theirs.sendall(_frame(answer, "patience"))

        threading.Thread(target=send, daemon=True).start()
        note("nothing had come yet, and there was a second to wait")
        try:
            got = repr(channel.recv(1.0))
        except TimeoutError:
            got = "TimeoutError, at once"
        expect(got == "'patience'", expected="'patience'", happened=got)


def check_hang_up(answer: Any) -> None:
    """send 3 of 14 bytes, hang up, and call recv(timeout=5.0)"""
    with _pair(answer) as (channel, theirs):
        theirs.sendall(_frame(answer, "hello"[:3])[:3])
        theirs.close()
        note("3 of 14 bytes had arrived, the peer had closed")
        with expect_raises(ConnectionResetError, when="after 3 of 14 bytes"):
            got = channel.recv(5.0)
            expect(False, expected="an error", happened=f"{got!r} was returned")


def check_late_and_then(answer: Any) -> None:
    """send half of a frame, call recv(timeout=0.1), send the rest, and call recv() again"""
    with _pair(answer) as (channel, theirs):
        frame = _frame(answer, "late")
        theirs.sendall(frame[:11])
        note("half of a frame had arrived, and 0.1 s were over")
        with expect_raises(TimeoutError, when="after 0.1 s"):
            try:
                channel.recv(0.1)
            except TimeoutError as error:
                words, said = "worker 7 sent nothing for 0.1s", str(error)
                expect(words in said, expected=f"the words {words!r}", happened=f"{said!r}")
                raise
        theirs.sendall(frame[11:])
        try:
            got = repr(channel.recv(1.0))
        except Exception as error:
            got = f"{type(error).__name__}: {error}"
        expect(got == "'late'", expected="'late', once all of it is there", happened=got)


def check_ever_after(answer: Any) -> None:
    """hang up, and call recv() twice"""
    with _pair(answer) as (channel, theirs):
        theirs.close()
        said = []
        for _ in range(2):
            try:
                said.append(repr(channel.recv(0.2)))
            except Exception as error:
                said.append(f"{type(error).__name__}: {error}")
        same = said[0] == said[1] and channel._ended is not None
        happened = f"first {said[0]}; then {said[1]}; and it keeps {channel._ended!r}"
        expect(same, expected="the same error twice, which the channel keeps", happened=happened)


def check_nonsense(answer: Any) -> None:
    """send what is no frame, and call recv() twice"""
    with _pair(answer) as (channel, theirs):
        theirs.sendall(b"GET / HTTP/1.1\r\n\r\n")
        for _ in range(2):
            with expect_raises(answer.errors.ProtocolError, when="for what is no frame"):
                channel.recv(0.5)


def check_a_trickle(answer: Any) -> None:
    """call recv(timeout=0.2), while a byte of a long frame arrives every 0.05 s"""
    with _pair(answer) as (channel, theirs):
        frame = _frame(answer, TEXT)

        def trickle() -> None:
            with contextlib.suppress(OSError):
                for byte in frame:
                    theirs.sendall(bytes([byte]))
                    time.sleep(0.05)

        threading.Thread(target=trickle, daemon=True).start()
        note("0.2 s were over long ago, and bytes kept coming")
        with expect_raises(TimeoutError, when="after 0.2 s in all"):
            channel.recv(0.2)


class _Reset:
    """A socket whose connection is reset while it is read."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def recv_into(self, *_: object) -> int:
        raise ConnectionResetError(104, "Connection reset by peer")

    recv = recv_into


def check_who_explains(answer: Any) -> None:
    """hang up, and then reset a connection, on channels whose _explain_silence knows how it died"""
    known = answer.errors.WorkerDied("worker 7 was killed by SIGSEGV")
    for how in ("hang-up", "reset"):
        with _pair(answer) as (channel, theirs):
            channel._explain_silence = lambda error: known
            if how == "reset":
                channel._sock = _Reset(channel._sock)
                theirs.sendall(b"M")
            theirs.close()
            try:
                happened = f"{channel.recv(0.5)!r} was returned"
            except Exception as error:
                happened = f"{type(error).__name__}: {error}"
        expect(
            happened == "WorkerDied: worker 7 was killed by SIGSEGV",
            expected=f"what _explain_silence returns, after a {how}",
            happened=happened,
        )


def check_no_time_at_all(answer: Any) -> None:
    """call recv(0) while nothing has come"""
    with _pair(answer) as (channel, _):
        note("nothing had come, and recv was not to wait")
        with expect_raises(TimeoutError, when="at once"):
            channel.recv(0)
