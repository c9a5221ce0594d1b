"""Connect to a server, and prove to each other that both hold the key: the client's side."""

import os
import socket
from typing import Any

from miniray import auth, inherited, wire
from miniray.channel import Channel
from miniray.errors import ProtocolError
from miniray.frames import FrameSocket
from miniray.waiting import deadline_after, time_left, watch_link


def open_connection(
    host: str, port: int, key: bytes, request: auth.Message, timeout: float
) -> tuple[socket.socket | FrameSocket, auth.Message]:
    """Connect, do the client's side of the handshake, return what to talk over and the reply.

    If the request says `encrypt`, that is what the two sides do from there on.
    """
    deadline = deadline_after(timeout)
    where = host if os.path.isabs(host) else f"{host}:{port}"
    try:
        sock = _connect(host, port, deadline)
    except TimeoutError:
        raise TimeoutError(f"cannot connect to {where}: no answer for {timeout:.1f}s") from None
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConnectionError(f"cannot connect to {where}: {reason}") from error
    try:
        watch_link(sock)
        # Who is not authenticated yet gets 4 KiB.
        channel = Channel(sock, name=f"server at {where}", handshake=True)
        reply = _shake_hands(channel, key, request, deadline)
        if not request.get("encrypt"):
            return sock, reply
        if "session" not in reply:
            raise ProtocolError("it cannot encrypt, because its MiniRay is older than this one")
        from miniray.encrypted import encrypt  # and ssl, which nobody else needs

        return encrypt(sock, key, reply["session"], deadline, is_server=False), reply
    except BaseException as error:
        sock.close()
        if isinstance(error, ProtocolError):
            raise type(error)(f"{where}: {error}") from None
        if isinstance(error, TimeoutError):
            silence = f"{where} did not finish the handshake in {timeout:.1f}s"
            raise TimeoutError(f"{silence}: it is stopped, overrun, or no MiniRay server") from None
        if isinstance(error, ConnectionResetError | BrokenPipeError):
            raise ConnectionError(
                f"{where} closed the connection during the handshake: it is no MiniRay server, "
                "speaks another version, or is overrun"
            ) from error
        raise


def _connect(host: str, port: int, deadline: float) -> socket.socket:
    places: list[tuple[int, Any]] = [(socket.AF_UNIX, host)]
    if not os.path.isabs(host):
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        places = [(family, address) for family, _, _, _, address in found]
    for number, (family, address) in enumerate(places):
        sock = inherited.OwnedSocket(family)
        try:
            share = time_left(deadline) / (len(places) - number)
            sock.settimeout(max(share, 0.001))  # 0 would mean not to wait at all
            sock.connect(address)
            return sock
        except OSError as error:
            sock.close()
            problem = error
    raise problem


def _shake_hands(
    channel: Channel, key: bytes, request: auth.Message, deadline: float
) -> auth.Message:
    def exchange(message: auth.Message) -> auth.Message:
        channel.send_frame(wire.AUTH, message, time_left(deadline))
        reply: auth.Message = channel.recv_frame(wire.AUTH, time_left(deadline))
        if type(reply) is not dict:
            raise ProtocolError("it does not follow the handshake")
        return reply

    hello = auth.hello(auth.make_nonce())
    challenge = exchange(hello)
    response = auth.response(key, hello, challenge, request)
    reply = auth.read_welcome(key, hello, challenge, response, exchange(response))
    if "error" in reply:
        raise ConnectionRefusedError(f"{channel.name} refuses: {reply['error']}")
    return reply


def server_status(
    host: str, port: int, *, key: bytes | None = None, timeout: float = 10.0, **request: int | str
) -> dict[str, Any]:
    """Ask a server what runs and how each worker ended: {"server": {...}, "workers": [...]}.

    `worker=N` asks for one worker alone. With `type="end_workers"` all workers get SIGKILL first.
    Request and status go in clear; nobody can change them on their way.
    """
    deadline = deadline_after(timeout)
    key = auth.load_key(make=False) if key is None else key
    sock, reply = open_connection(host, port, key, {"type": "status", **request}, timeout)
    with Channel(sock, name=f"server at {host}:{port}") as channel:
        channel.goodbye = ConnectionResetError  # before the status nobody says one
        status: dict[str, Any] = channel.recv_frame(wire.MESSAGE, time_left(deadline))
        auth.check_digest(reply, status)
        return status
