"""A message that flows in without a pause: who has no more time does not take in all of it."""

import contextlib
import socket
import time
from collections.abc import Callable

import pytest

from miniray import Channel, wait, wire
from miniray.frames import FrameSocket

numpy = pytest.importorskip("numpy")
T = 20.0
PIECE_BYTES = 2048
MESSAGE_BYTES = 1 << 30


class FlowingFrames(FrameSocket):
    """There is always more to read: a piece of a large message, the head of which has come."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock, memfd=False, handshake=False)
        self.decoder.feed(wire.encode(wire.MESSAGE, numpy.empty(MESSAGE_BYTES, "u1")).head)

    def read(self, deadline: float) -> None:
        assert self.decoder.memory is not None
        self.decoder.filled(min(PIECE_BYTES, len(self.decoder.memory)))


@pytest.mark.parametrize(
    "ask",
    [
        pytest.param(lambda channel: channel.recv(timeout=0.0), id="recv(0)"),
        pytest.param(lambda channel: channel.recv(timeout=0.01), id="recv(0.01)"),
        pytest.param(lambda channel: wait([channel], timeout=0.0), id="wait(0)"),
    ],
)
def test_a_timeout_holds_though_bytes_flow_on(ask: Callable[[Channel], object]) -> None:
    ours, theirs = socket.socketpair()
    theirs.send(b"more")  # so that poll says, too, that there is something to read
    frames = FlowingFrames(ours)
    with theirs, Channel(frames) as channel:
        with contextlib.suppress(TimeoutError):
            assert ask(channel) == []
        assert frames.decoder.memory is not None
        left = len(frames.decoder.memory)
        assert 0 < left < MESSAGE_BYTES  # it has begun, and is not done


def test_what_is_here_is_taken_in_though_the_deadline_has_passed_long_ago() -> None:
    ours, theirs = socket.socketpair()
    message = numpy.arange(1 << 14)
    with theirs, Channel(ours) as channel:
        theirs.sendall(b"".join([*_pieces(message)]))
        frame = channel.frames.receive(time.monotonic() - 1000.0)
        assert (frame.body == message).all()


def _pieces(message: object) -> list[bytes]:
    encoded = wire.encode(wire.MESSAGE, message)
    return [bytes(encoded.head), *(bytes(part) for part in encoded.parts)]
