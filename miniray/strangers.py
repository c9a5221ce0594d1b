"""Connections that have not shown the key yet: the handshake, a step at a time, within limits."""

import collections
import random
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from miniray import auth, inherited, wire
from miniray.decoding import Decoder
from miniray.errors import ProtocolError
from miniray.poll_loop import PollLoop
from miniray.worker_log import WorkerLog

STRANGERS_MAX = 64
STRANGER_S = 5.0
REFUSALS_S = 1.0  # from one line on the log to the next

# What a welcome proves: the key, and the three messages before it.
Proofs = tuple[bytes, auth.Message, auth.Message, auth.Message]
# Puts the server's reply to a request into a frame, with its proof.
Welcome = Callable[[auth.Message], bytes]
# Does what a request asks for; returns what to say before hanging up, or None to keep the socket.
Admit = Callable[[socket.socket, auth.Message, Welcome], bytes | None]


@dataclass(eq=False)
class Stranger:
    """One connection, and how far its handshake has come."""

    sock: socket.socket
    name: str
    network: bytes
    deadline: float
    decoder: Decoder = field(default_factory=lambda: Decoder(auth_only=True))
    opening: tuple[auth.Message, auth.Message] | None = None  # its hello and our challenge
    farewell: bytes = b""


class Strangers:
    """Let in who shows the key, and close the connection of who does not.

    The log tells of that at once, and of more within a second in one line, with their number.

    A newcomer always gets a place. If all are taken, the network with the most strangers gives one
    up: of two of its strangers at random, one that has not said hello if there is one. So a flood
    from one network pushes out itself, and within it hardly anybody who knows the protocol.
    """

    def __init__(self, loop: PollLoop, log: WorkerLog, key: bytes, admit: Admit) -> None:
        self._loop, self._log, self._key, self._admit = loop, log, key, admit
        self._strangers: set[Stranger] = set()
        self._refusals, self._last_refusal, self._silent_until = 0, "", 0.0
        loop.duties += [self._dismiss_the_late, self._say_refusals]
        inherited.own(self)

    def add(self, sock: socket.socket, address: Any) -> None:
        """Begin the handshake with a connection that was just accepted at `address`."""
        name, network = "the tunnel", b""
        if isinstance(address, tuple):
            name = f"{address[0]}:{address[1]}"
            # Who has one IPv6 address has all that begin with the same half.
            network = socket.inet_pton(sock.family, address[0].partition("%")[0])[:8]
        if len(self._strangers) >= STRANGERS_MAX:
            self._dismiss(self._choose_who_goes(), "too many at once")
        sock.setblocking(False)
        stranger = Stranger(sock, name, network, time.monotonic() + STRANGER_S)
        self._strangers.add(stranger)
        self._watch(stranger, select.POLLIN, self._hear)

    def close(self) -> None:
        """Dismiss everybody."""
        for stranger in list(self._strangers):
            self._dismiss(stranger, "the server stops")
        self._silent_until = 0.0
        self._say_refusals()

    def abandon(self) -> None:
        """Close, in a forked child, the server's connections."""
        for stranger in self._strangers:
            stranger.sock.close()

    def _choose_who_goes(self) -> Stranger:
        counts = collections.Counter(stranger.network for stranger in self._strangers)
        most = max(counts.values())
        crowd = [stranger for stranger in self._strangers if counts[stranger.network] == most]
        return min(random.choices(crowd, k=2), key=lambda stranger: stranger.opening is not None)

    def _watch(self, stranger: Stranger, events: int, step: Callable[[Stranger], None]) -> None:
        def take_step(events: int) -> None:
            try:
                step(stranger)
            except BlockingIOError:
                pass
            except (OSError, ProtocolError) as error:
                self._dismiss(stranger, str(error))

        self._loop.watch(stranger.sock.fileno(), events, take_step)

    def _hear(self, stranger: Stranger) -> None:
        """Take in what the stranger says: a hello, then the response to our challenge."""
        data = stranger.sock.recv(stranger.decoder.missing)  # what comes after is for the worker
        if not data:
            why = "; it probably holds a different key" if stranger.opening else ""
            raise ConnectionError(f"left before the end of the handshake{why}")
        stranger.decoder.feed(data)
        if (frame := stranger.decoder.next_frame()) is None:
            return
        if type(frame.body) is not dict:
            raise ProtocolError("an AUTH frame without a message")
        if stranger.opening is None:
            challenge = auth.challenge(self._key, frame.body, auth.make_nonce())
            stranger.opening = frame.body, challenge
            # So little a new connection takes at once, or never.
            stranger.sock.send(_encode(challenge))
        else:
            self._let_in(stranger, (self._key, *stranger.opening, frame.body))

    def _let_in(self, stranger: Stranger, proofs: Proofs) -> None:
        def welcome(reply: auth.Message) -> bytes:
            if "error" in reply:
                self._note_refusal(stranger, reply["error"])
            return _encode(auth.welcome(*proofs, reply))

        request = auth.read_response(*proofs)
        with inherited.lock:  # nobody owns the connection while a worker is forked that keeps it
            self._forget(stranger)
            farewell = self._admit(stranger.sock, request, welcome)
        if farewell is not None:
            stranger.farewell = farewell
            self._strangers.add(stranger)
            self._watch(stranger, select.POLLOUT, self._bid_farewell)

    def _bid_farewell(self, stranger: Stranger) -> None:
        stranger.farewell = stranger.farewell[stranger.sock.send(stranger.farewell) :]
        if not stranger.farewell:
            self._forget(stranger)
            stranger.sock.close()

    def _forget(self, stranger: Stranger) -> None:
        self._strangers.discard(stranger)  # it may have failed while it was let in
        self._loop.unwatch(stranger.sock.fileno())

    def _dismiss(self, stranger: Stranger, reason: str) -> None:
        self._forget(stranger)
        stranger.sock.close()
        self._note_refusal(stranger, reason)

    def _note_refusal(self, stranger: Stranger, reason: str) -> None:
        self._refusals += 1
        self._last_refusal = f"from {stranger.name}: {reason}"

    def _dismiss_the_late(self) -> float | None:
        now = time.monotonic()
        for stranger in [one for one in self._strangers if one.deadline <= now]:
            self._dismiss(stranger, f"not introduced after {STRANGER_S:.0f}s")
        return min((one.deadline - now for one in self._strangers), default=None)

    def _say_refusals(self) -> float | None:
        if not self._refusals:
            return None
        if (seconds := self._silent_until - time.monotonic()) > 0:
            return seconds
        number = self._refusals
        which = f"{number:,} connections, the last" if number > 1 else "the connection"
        self._log.say(f"closed {which} {self._last_refusal}")
        self._refusals, self._silent_until = 0, time.monotonic() + REFUSALS_S
        return None


def _encode(message: auth.Message) -> bytes:
    return wire.encode(wire.AUTH, message).head
