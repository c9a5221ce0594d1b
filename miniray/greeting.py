"""What a worker says to its client before its work: welcome, and nothing in clear from then on."""

import socket
import sys
from typing import Any

from miniray import auth, wire
from miniray.errors import ProtocolError
from miniray.frames import FrameSocket
from miniray.strangers import Welcome
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


def tell(welcome: Welcome, message: Any) -> bytes:
    """Return a welcome and, in clear, a message that nobody can change on its way."""
    return welcome({"digest": auth.digest(message)}) + wire.encode(wire.MESSAGE, message).head
