"""Connect to a port at a pace, from an address of its own: python -m tests.support.strangers."""

import argparse
import collections
import contextlib
import socket
import time

IP_BIND_ADDRESS_NO_PORT = 24  # Linux's; Python has no name for it
HELD_MAX = 512


def main() -> None:
    """Connect for some seconds, and print how often."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.strangers", description=__doc__)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--source", default="127.0.0.2")
    parser.add_argument("--a-second", type=int, default=3000)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    begin = time.monotonic()
    held: collections.deque[socket.socket] = collections.deque()
    count = 0
    print("begins", flush=True)
    while (now := time.monotonic()) < begin + options.seconds:
        while count < (now - begin) * options.a_second:
            count += 1
            held.append(knock(options.source, (options.host, options.port)))
            if len(held) > HELD_MAX:
                held.popleft().close()
        time.sleep(0.001)
    print(count)


def knock(source: str, address: tuple[str, int]) -> socket.socket:
    """Begin to connect, wait for nothing, and say nothing."""
    sock = socket.socket()
    sock.setblocking(False)
    # The port is chosen on connecting, which is much faster when many are taken.
    sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    sock.bind((source, 0))
    with contextlib.suppress(BlockingIOError):
        sock.connect(address)
    return sock


if __name__ == "__main__":
    main()
