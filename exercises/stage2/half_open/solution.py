"""Notice a peer whose machine is gone, without a word, while nobody sends anything."""

import socket


def watch_peer(sock: socket.socket, patience_s: int) -> None:
    """Let the kernel find out within `patience_s` seconds that the peer's machine is gone.

    That holds for a connection on which nothing is under way, and for one with bytes that nobody
    acknowledges; the patience is 12 seconds or more. A peer that is well and says nothing for an
    hour is none of its business.
    """
    # begin yours
    idle_s = patience_s // 2
    interval_s = patience_s // 6
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, (idle_s + 2 * interval_s) * 1000)
    # end yours
