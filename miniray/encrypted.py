"""Frames over a stream socket, encrypted."""

import errno
import math
import socket
import ssl
from collections.abc import Iterator, Sequence
from typing import Any

from miniray import auth, wire
from miniray.frames import DONTWAIT, PATIENCE_S, FrameSocket
from miniray.tls import Tls, make_context
from miniray.waiting import time_left

PIECE_BYTES = 128 * 1024


def prepare() -> None:
    """Make what all connections of a server have in common."""
    make_context(is_server=True)


def encrypt(
    sock: socket.socket, key: bytes, session: str, deadline: float, *, is_server: bool
) -> "EncryptedFrames":
    """Encrypt a connection from now on, whose two sides have shown each other the key.

    `session` is what the server has called it in its welcome. Raises AuthenticationError if
    somebody sits in between, ProtocolError, OSError, and TimeoutError at the deadline.
    """

    def recv() -> bytes:
        sock.settimeout(max(time_left(deadline), 0.001))  # 0 would mean not to wait at all
        data = sock.recv(PIECE_BYTES)
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, "it hung up without a goodbye")
        return data

    tls = Tls(is_server=is_server)
    if not is_server:
        sock.sendall(tls.begin())
    while not tls.has_begun:
        sock.sendall(tls.begin(recv()))
    ours, theirs = auth.prove_same_view(key, session, tls.view(), is_server=is_server)
    if is_server:  # which speaks first
        sock.sendall(tls.seal(ours))
    told = b""
    while len(told) < len(theirs):
        tls.put(recv())
        told += tls.read()
    auth.check_same_view(told[: len(theirs)], theirs)
    if not is_server:
        sock.sendall(tls.seal(ours))
    return EncryptedFrames(sock, tls, told[len(theirs) :])


class EncryptedFrames(FrameSocket):
    """Send and receive whole frames over a socket, which it owns from now on, through TLS.

    All that can be decrypted goes to the decoder at once. So what hides here is never more than a
    part of a record, and the socket tells of the rest.
    """

    def __init__(self, sock: socket.socket, tls: Tls, told: bytes) -> None:
        super().__init__(sock, memfd=False, handshake=False)
        self._tls = tls
        if told:
            self.decoder.feed(told)

    def send(self, frame: wire.Encoded) -> Iterator[None]:
        for piece in _pieces([frame.head, *frame.parts]):
            rest = memoryview(self._seal(piece))
            while rest:
                try:
                    rest = rest[self.sock.send(rest, DONTWAIT) :]
                except BlockingIOError:
                    yield

    def send_at_once(self, data: bytes) -> None:
        self.sock.send(self._seal(data), DONTWAIT)

    def _seal(self, data: Any) -> bytes:
        try:
            return self._tls.seal(data)
        except ssl.SSLError as error:  # what came was not what had been sent
            raise ConnectionResetError(errno.ECONNRESET, "its encryption has ended") from error

    def read(self, deadline: float) -> None:
        decoder, arrived = self.decoder, self.arrived
        patience_ms = PATIENCE_S * 1000
        if deadline != math.inf:
            patience_ms = min(patience_ms, math.ceil(time_left(deadline) * 1000))
        self.in_kernel = True
        if patience_ms:
            self.poller.poll(patience_ms)
        arrived.extend(map(self.sock.recv, (PIECE_BYTES,), (DONTWAIT,)))
        self._tls.put(arrived[0])
        while decoder.memory and (nbytes := self._tls.read_into(decoder.memory)):
            decoder.filled(nbytes)
        if rest := self._tls.read():
            decoder.feed(rest)
        self.in_kernel, got = False, arrived.pop()
        if not got:
            raise ConnectionResetError(errno.ECONNRESET, "it hung up without a goodbye")


def _pieces(parts: Sequence[Any]) -> Iterator[Any]:
    """Yield what to encrypt at once: of large parts a piece, of small ones several."""
    small, nbytes = list[Any](), 0
    for part in parts:
        for begin in range(0, len(part), PIECE_BYTES):
            piece = memoryview(part)[begin : begin + PIECE_BYTES]
            if nbytes + len(piece) > PIECE_BYTES:
                yield b"".join(small)
                small, nbytes = [], 0
            if len(piece) == PIECE_BYTES:
                yield piece
            else:
                small.append(piece)
                nbytes += len(piece)
    yield b"".join(small)
