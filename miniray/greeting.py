"""What a worker says to its client before its work: welcome, and nothing in clear from then on."""

import socket
import sys
from typing import Any

from miniray import auth, wire
from miniray.errors import ProtocolError
from miniray.frames import FrameSocket
from miniray.strangers import Talk, Welcome
from miniray.waiting import deadline_after


class Greeter:
    """Welcome those who have shown the key, in a worker's name, and encrypt if that is wanted."""

    def __init__(self, key: bytes, *, encrypt: bool) -> None:
        self._key, self._encrypt = key, encrypt
        if encrypt:
            from miniray import encrypted  # and ssl, which nobody else needs, before the first fork

            encrypted.prepare()

    def why_not(self, request: auth.Message) -> str | None:
        """Return what is wrong if one side wants to encrypt and the other does not."""
        if bool(request.get("encrypt")) == self._encrypt:
            return None
        return f"it has been started with encrypt={self._encrypt}; connect with the same"

    def greet(
        self, sock: socket.socket, welcome: Welcome, reply: auth.Message, timeout: float
    ) -> socket.socket | FrameSocket | None:
        """Say welcome, within `timeout` seconds; return what to talk over from then on.

        Returns None, and says why on stderr, if it does not come to that.
        """
        session, deadline = auth.make_nonce(), deadline_after(timeout)
        try:
            sock.settimeout(timeout)
            sock.sendall(welcome({**reply, "session": session}))
            if not self._encrypt:
                return sock
            from miniray.encrypted import encrypt

            return encrypt(sock, self._key, session, deadline, is_server=True)
        except (OSError, ProtocolError) as error:
            print(f"closed the connection: {error}", file=sys.stderr)
            return None

    def tell(self, welcome: Welcome, request: auth.Message, message: Any) -> bytes | Talk:
        """Return a welcome and a message that nobody can change on its way.

        It goes in clear, unless the request says `encrypt`; and what says where ranks are goes in
        no other way, if nobody is to read what goes over the network.
        """
        if "look" in request and (problem := self.why_not(request)):
            return welcome({"error": problem})
        frame, reply = wire.encode(wire.MESSAGE, message).head, {"digest": auth.digest(message)}
        if request.get("encrypt") and self._encrypt:
            session = auth.make_nonce()
            return self._tell_secretly(session, welcome({**reply, "session": session}), frame)
        return welcome(reply) + frame

    def _tell_secretly(self, session: str, opening: bytes, frame: bytes) -> Talk:
        """Do the server's part of `encrypt`, without I/O, and say one frame."""
        from miniray.tls import Tls

        tls, out, told = Tls(is_server=True), opening, b""
        while not tls.has_begun:
            out = tls.begin((yield out))
        ours, theirs = auth.prove_same_view(self._key, session, tls.view(), is_server=True)
        out += tls.seal(ours)
        while len(told) < len(theirs):
            tls.put((yield out))
            told, out = told + tls.read(), b""
        auth.check_same_view(told[: len(theirs)], theirs)
        return tls.seal(frame)
