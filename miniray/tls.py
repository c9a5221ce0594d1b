"""TLS without I/O: bytes in, bytes out, and what was seen of its beginning.

TLS keeps others from reading along and from changing a bit. That the right one is at the other end
it would show by certificates; here the handshake with the key has shown that already. TLS 1.3 wants
a certificate all the same, so it gets one whose private key stands below, for all the world to
read: it proves nothing, and nobody looks at it. What proves that nobody sits in between is
`view`: both sides have to have seen every byte of TLS's beginning alike, and say so under the key
(see `auth`). With it the two halves of the secret, which are made anew for each connection, are
the ones that were sent; so only the two who made them can know it.
"""

import functools
import hashlib
import ssl
import tempfile
import threading
from typing import Any

from miniray.errors import ProtocolError

RECORD_BYTES = 16 * 1024  # what TLS encrypts at once, at most
BEGINNING_BYTES_MAX = 16 * 1024
CERTIFICATE_OF_NOBODY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgpAeKue5mIqr/JFjt
hu9OGpVvTBNjBG16l8d7KT3rRpyhRANCAAS+cSz8fRsbtsiP1cO4wM8BjvO3R6fN
7Jbt0Kr0NIiSkw7tPZ+MrHH0EgAMV5Nycse44rlThA4YYn5na8JoPLWu
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBHTCBxQIUJJubwM67DAsbcw+9oPZKPm0UbsEwCgYIKoZIzj0EAwIwETEPMA0G
A1UEAwwGbm9ib2R5MCAXDTI2MTEyNjExMDQxOVoYDzMwMjYwMzI5MTEwNDE5WjAR
MQ8wDQYDVQQDDAZub2JvZHkwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAS+cSz8
fRsbtsiP1cO4wM8BjvO3R6fN7Jbt0Kr0NIiSkw7tPZ+MrHH0EgAMV5Nycse44rlT
hA4YYn5na8JoPLWuMAoGCCqGSM49BAMCA0cAMEQCIBWTEEpnUpC3S+YVOQ86dniF
wWJJuXTE7bYC5qoCh6siAiByFwE51SQnyYoV56UoVRS5x0Xxq8vcgt/EPRGPvg2b
Ow==
-----END CERTIFICATE-----
"""


class Tls:
    """One end of TLS: give what arrives to `begin`, then to `put`; send on what comes out.

    One thread may `seal` while another puts and reads.
    """

    def __init__(self, *, is_server: bool) -> None:
        self.has_begun = False
        self._is_server = is_server
        self._arrived, self._to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = make_context(is_server=is_server).wrap_bio(
            self._arrived, self._to_send, server_side=is_server
        )
        self._lock = threading.RLock()  # OpenSSL's objects are one thread's at a time
        self._sent, self._received = b"", b""

    def begin(self, data: bytes = b"") -> bytes:
        """Take in what has arrived; return what is to be sent. It may be that `has_begun` then.

        Raises ProtocolError if what has arrived is no beginning of TLS.
        """
        self._received += data
        self._arrived.write(data)
        try:
            self._tls.do_handshake()
            self.has_begun = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            raise ProtocolError(f"encryption cannot begin: {_reason(error)}") from None
        out = self._to_send.read()
        self._sent += out
        # The other side has nothing to add before it has heard from this one.
        if len(self._received) > BEGINNING_BYTES_MAX or (self.has_begun and self._arrived.pending):
            raise ProtocolError("encryption cannot begin: more has come than that takes")
        return out

    def view(self) -> dict[str, str]:
        """Return what both sides see alike of TLS's beginning, unless somebody is in between."""
        sides = ("server", "client") if self._is_server else ("client", "server")
        seen = (hashlib.sha256(one).hexdigest() for one in (self._sent, self._received))
        return dict(zip(sides, seen, strict=True))

    def seal(self, data: Any) -> bytes:
        """Return the records that carry the data."""
        with self._lock:
            self._tls.write(data)
            return self._to_send.read()

    def put(self, data: Any) -> None:
        """Take in what has arrived, for `read` and `read_into`."""
        self._arrived.write(data)

    def read(self) -> bytes:
        """Return all that is in the records that are complete.

        Raises ProtocolError if they are not what the other side has sent.
        """
        pieces = []
        while piece := self._read(RECORD_BYTES):
            pieces.append(piece)
        return b"".join(pieces)

    def read_into(self, memory: memoryview) -> int:
        """Put what is in the next record into memory, as much as there is room; return how much."""
        return self._read(len(memory), memory) or 0

    def _read(self, *where: Any) -> Any:
        try:
            with self._lock:
                return self._tls.read(*where)
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLError as error:
            raise ProtocolError(
                f"what has arrived is not what was sent ({_reason(error)}): "
                "somebody, or something, has changed it on its way"
            ) from None


@functools.cache
def make_context(*, is_server: bool) -> ssl.SSLContext:
    """Return what all connections of this process have in common."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if is_server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if is_server:
        context.num_tickets = 0  # nobody comes back to go on
        with tempfile.NamedTemporaryFile("w") as file:  # it takes nothing but a path
            file.write(CERTIFICATE_OF_NOBODY)
            file.flush()
            context.load_cert_chain(file.name)
    else:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).lower().replace("_", " ")
