"""What noticing a dead machine takes."""

import socket
from types import ModuleType

from exercises.checking import expect

RETRIES_S = 924  # Linux gives up on bytes that nobody acknowledges after about 15 minutes


def _watched(answer: ModuleType, patience_s: int) -> socket.socket:
    """Return one end of a TCP connection, as the answer has left it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sock = socket.create_connection(listener.getsockname())
    answer.watch_peer(sock, patience_s)
    return sock


def _tcp(sock: socket.socket, option: int) -> int:
    return sock.getsockopt(socket.IPPROTO_TCP, option)


def check_nothing_under_way(answer: ModuleType) -> None:
    """ask for 40 seconds, and look when a silent connection to a dead machine is given up"""
    with _watched(answer, 40) as sock:
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE):
            happened = "never"
            if sock.gettimeout() is not None:
                happened = f"recv gives up after {sock.gettimeout():g} s, on a living peer as well"
            expect(False, expected="within 40 s", happened=happened)
        after_s = _silent_until(sock)
        happened = f"after {after_s} s"
        expect(10 <= after_s <= 40, expected="within 40 s, and not before 10", happened=happened)


def _silent_until(sock: socket.socket) -> int:
    """Return after how many seconds of silence Linux gives up, from tcp_keepalive_timer()."""
    idle_s, interval_s = _tcp(sock, socket.TCP_KEEPIDLE), _tcp(sock, socket.TCP_KEEPINTVL)
    user_timeout_ms = _tcp(sock, socket.TCP_USER_TIMEOUT)
    if not user_timeout_ms:
        return idle_s + interval_s * _tcp(sock, socket.TCP_KEEPCNT)
    after_s = idle_s + interval_s  # with a user timeout the number of probes does not count
    while after_s * 1000 < user_timeout_ms:
        after_s += interval_s
    return after_s


def check_bytes_under_way(answer: ModuleType) -> None:
    """ask for 40 seconds, and look when bytes that nobody acknowledges are given up"""
    with _watched(answer, 40) as sock:
        user_timeout_ms = _tcp(sock, socket.TCP_USER_TIMEOUT)
        after_s = user_timeout_ms / 1000 or RETRIES_S
        happened = f"after about {after_s:g} s"
        expect(10 <= after_s <= 40, expected="within 40 s, and not before 10", happened=happened)


def check_other_patience(answer: ModuleType) -> None:
    """ask for 600 seconds, and look when silence is given up"""
    with _watched(answer, 600) as sock:
        after_s = _silent_until(sock)
        expected = "between 150 and 600 s"
        expect(150 <= after_s <= 600, expected=expected, happened=f"after {after_s} s")


def check_a_silent_peer(answer: ModuleType) -> None:
    """ask for 12 seconds, and look how long recv waits for a peer that is well"""
    with _watched(answer, 12) as sock:
        timeout_s = sock.gettimeout()
        happened = f"it gives up after {timeout_s} s"
        expect(timeout_s is None, expected="as long as it takes", happened=happened)
