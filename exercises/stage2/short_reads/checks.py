"""What recv_exactly has to do."""

import socket
from types import ModuleType

from exercises.checking import Pieces, expect, expect_raises, note

DATA = bytes(range(1, 251))


def check_whole(answer: ModuleType) -> None:
    """send b"abc" through a socketpair, and call recv_exactly(sock, 3)"""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"abc")
        got = answer.recv_exactly(ours, 3)
        expect(got == b"abc", expected="b'abc'", happened=repr(got))


def check_pieces(answer: ModuleType) -> None:
    """send 250 bytes, which arrive 7 at a time, and call recv_exactly(sock, 250)"""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(DATA)
        note("all 250 bytes had arrived, 7 a read")
        got = answer.recv_exactly(Pieces(ours, 7), 250)
        expect(
            got == DATA, expected="all 250 bytes", happened=f"{len(got or b'')} bytes: {got!r:.40}"
        )


def check_no_more(answer: ModuleType) -> None:
    """send two messages of 4 bytes at once, and call recv_exactly(sock, 4) for the first"""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"one.two.")
        first = answer.recv_exactly(ours, 4)
        expect(first == b"one.", expected="b'one.'", happened=repr(first))
        ours.setblocking(False)
        rest = ours.recv(100, socket.MSG_PEEK) if _readable(ours) else b""
        expect(rest == b"two.", expected="b'two.' still in the socket", happened=f"{rest!r} there")


def check_hang_up(answer: ModuleType) -> None:
    """send 3 of 5 bytes, hang up, and call recv_exactly(sock, 5)"""
    ours, theirs = socket.socketpair()
    with ours:
        theirs.sendall(b"abc")
        theirs.close()
        note("3 of 5 bytes had arrived, the peer had closed")
        with expect_raises(ConnectionResetError, when="after 3 of 5 bytes"):
            got = answer.recv_exactly(ours, 5)
            expect(False, expected="an error", happened=f"{got!r} was returned")


def _readable(sock: socket.socket) -> bool:
    import select

    return bool(select.select([sock], [], [], 0)[0])
