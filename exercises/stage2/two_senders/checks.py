"""What sending and receiving at the same time has to do."""

import os
import select
import socket
from collections.abc import Callable
from types import ModuleType
from typing import Any

from exercises.checking import expect, expect_raises, note

THEIRS, OURS = 3_000_000, 2_000_000  # bytes: more than the kernel keeps for a busy reader


class Watched:
    """A socket that notes how much has been taken out of it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.taken = sock, 0
        self._say()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)

    def _say(self) -> None:
        note(f"it had taken {self.taken} of {THEIRS} bytes from a peer that sends before it reads")

    def recv(self, nbytes: int, *flags: int) -> bytes:
        piece = self.sock.recv(nbytes, *flags)
        self.taken += len(piece)
        self._say()
        return piece

    def recv_into(self, memory: Any, *arguments: int) -> int:
        nbytes = self.sock.recv_into(memory, *arguments)
        self.taken += nbytes
        self._say()
        return nbytes


def _peer(run: Callable[[socket.socket], None], buffer_bytes: int = 0) -> socket.socket:
    """Fork a peer; return our end. Without a number of bytes the buffers are as they are."""
    ours, theirs = socket.socketpair()
    if buffer_bytes:
        for sock in (ours, theirs):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
    if os.fork() == 0:
        ours.close()
        run(theirs)
        os._exit(0)
    theirs.close()
    return ours


def check_an_answer(answer: ModuleType) -> None:
    """send 4 bytes to a peer that reads them, and then sends 9 bytes of answer and 5 more"""

    def run(sock: socket.socket) -> None:
        if sock.recv(4) == b"ping":
            sock.sendall(b"pong-pongagain")
            sock.recv(1)  # it stays until we hang up

    with _peer(run) as ours:
        note("all was sent, and the answer was on its way")
        got = answer.exchange(ours, b"ping", 9)
        expect(got == b"pong-pong", expected="b'pong-pong'", happened=repr(got))
        expect(ours.getblocking(), expected="a blocking socket", happened="it is non-blocking now")
        note("the 5 bytes behind the answer were to be left in the socket, and were not there")
        rest = ours.recv(64)
        expect(rest == b"again", expected="b'again' left in the socket", happened=f"{rest!r} left")
    os.wait()


def check_both_at_once(answer: ModuleType) -> None:
    """exchange 2 MB for 3 MB, with a peer that sends all of its own before it reads"""

    def run(sock: socket.socket) -> None:
        sock.sendall(b"t" * THEIRS)
        count = 0
        while count < OURS:
            count += len(sock.recv(65536))
        sock.sendall(b"all")
        sock.recv(1)

    with _peer(run) as ours:
        select.select([ours], [], [])  # it has begun
        got = answer.exchange(Watched(ours), b"o" * OURS, THEIRS)
        happened = f"{len(got)} bytes"
        expect(got == b"t" * THEIRS, expected=f"{THEIRS} bytes", happened=happened)
        note("the peer waited for the rest of what it was to get")
        last = ours.recv(3)
        expect(last == b"all", expected="the peer to have got all", happened=f"it said {last!r}")
    os.wait()


def check_small_buffers(answer: ModuleType) -> None:
    """exchange 100 kB for 100 kB over buffers of 4 kB, with a peer that sends before it reads"""
    size = 100_000

    def run(sock: socket.socket) -> None:
        sock.sendall(b"t" * size)
        count = 0
        while count < size:
            count += len(sock.recv(65536))
        sock.sendall(b"all")
        sock.recv(1)

    with _peer(run, buffer_bytes=4096) as ours:
        note("it had taken 1 piece or more of a peer whose buffers are small")
        got = answer.exchange(ours, b"o" * size, size)
        happened = f"{len(got)} bytes"
        expect(got == b"t" * size, expected=f"{size} bytes", happened=happened)
        last = ours.recv(3)
        expect(last == b"all", expected="the peer to have got all", happened=f"it said {last!r}")
    os.wait()


def check_a_peer_that_hangs_up(answer: ModuleType) -> None:
    """expect 9 bytes of a peer that sends 3 and hangs up"""
    with _peer(lambda sock: sock.sendall(b"abc")) as ours:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        note("3 of 9 bytes had come, and the peer had hung up")
        with expect_raises(EOFError, when="for a peer that has hung up"):
            answer.exchange(ours, b"", 9)
        expect(ours.getblocking(), expected="a blocking socket", happened="it is non-blocking now")
    os.wait()


def check_a_peer_that_is_done(answer: ModuleType) -> None:
    """expect 9 bytes of a peer that sends 9 and hangs up"""
    with _peer(lambda sock: sock.sendall(b"good-bye!")) as ours:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        note("9 of 9 bytes had come, and the peer had hung up")
        try:
            got = repr(answer.exchange(ours, b"", 9))
        except Exception as error:
            got = f"{type(error).__name__}: {error}"
        expect(got == "b'good-bye!'", expected="b'good-bye!'", happened=got)
    os.wait()


def check_one_that_goes_while_we_send(answer: ModuleType) -> None:
    """exchange 2 MB for 9 bytes, with a peer that sends 3 and hangs up"""
    with _peer(lambda sock: sock.sendall(b"abc")) as ours:
        note("3 of 9 bytes had come, the peer had hung up, and there was more to send")
        with expect_raises(EOFError, when="for a peer that has hung up"):
            answer.exchange(ours, b"o" * OURS, 9)
    os.wait()
