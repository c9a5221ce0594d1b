"""What noticing a dead machine takes."""

import socket
from typing import Any

from exercises.checking import expect

LIMIT_S = 15


def _watched(answer: Any) -> socket.socket:
    """Return one end of a TCP connection, as the answer has left it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sock = socket.create_connection(listener.getsockname())
    answer.channel.detect_lost_peer(sock)
    return sock


def _tcp(sock: socket.socket, option: int) -> int:
    return sock.getsockopt(socket.IPPROTO_TCP, option)


def check_nothing_under_way(answer: Any) -> None:
    """look when a silent connection to a dead machine is given up"""
    with _watched(answer) as sock:
        if sock.gettimeout() is not None:
            happened = f"recv gives up after {sock.gettimeout():g} s, on a living peer as well"
            expect(False, expected=f"within {LIMIT_S} s", happened=happened)
        keepalive = sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        expect(keepalive, expected=f"within {LIMIT_S} s", happened="never")
        after_s = _silent_until(sock)
        expected = f"within {LIMIT_S} s, and not before 5"
        expect(5 <= after_s <= LIMIT_S, expected=expected, happened=f"after {after_s} s")


def _silent_until(sock: socket.socket) -> int:
    """Return after how many seconds of silence Linux gives up."""
    idle_s, interval_s = _tcp(sock, socket.TCP_KEEPIDLE), _tcp(sock, socket.TCP_KEEPINTVL)
    return idle_s + interval_s * _tcp(sock, socket.TCP_KEEPCNT)


def check_one_that_is_busy(answer: Any) -> None:
    """look when a peer is given up that is well, and does not read what we send"""
    with _watched(answer) as sock:
        after_ms = _tcp(sock, socket.TCP_USER_TIMEOUT)
        expect(not after_ms, expected="never", happened=f"after {after_ms} ms of not reading")


def check_a_lost_packet(answer: Any) -> None:
    """count the questions that a peer may miss before it is given up"""
    with _watched(answer) as sock:
        count = _tcp(sock, socket.TCP_KEEPCNT)
        expect(count >= 2, expected="2 or more", happened=f"{count}: one lost packet is a death")


def check_nodelay(answer: Any) -> None:
    """look whether a small message waits for others"""
    with _watched(answer) as sock:
        nodelay = _tcp(sock, socket.TCP_NODELAY)
        expect(nodelay, expected="it is sent at once", happened="it may wait: TCP_NODELAY is off")


def check_another_system(answer: Any) -> None:
    """take TCP_KEEPIDLE out of the module socket, as on macOS, and call detect_lost_peer"""
    kept = socket.TCP_KEEPIDLE
    del socket.TCP_KEEPIDLE
    try:
        _watched(answer).close()
    finally:
        socket.TCP_KEEPIDLE = kept  # type: ignore[misc]
