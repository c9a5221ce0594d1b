"""The key file, and a handshake in which both sides prove that they hold the key.

    client -> server  hello      version, nonce
    server -> client  challenge  version, nonce, proof by the server over hello
    client -> server  response   request, proof by the client over all of the above
    server -> client  welcome    reply, proof by the server over all of the above

A proof is an HMAC over every message so far. Each side proves with its own key, derived from the
one secret, so that nothing a side has said can be said back to it; the nonces make every
handshake's proofs its own. The functions here are pure: messages in, message out.

What follows in clear (a status) the welcome's reply holds a digest of. Where all that follows is to
be encrypted, it calls the connection by a name made for it alone; once TLS has begun, server and
then client prove that they have seen the same beginning of it, on the connection of that name.
"""

import hashlib
import hmac
import json
import os
import secrets
from pathlib import Path
from typing import Any

from miniray.errors import AuthenticationError

VERSION = 1
NONCE_CHARS = 64
KEY_CHARS_MIN = 32

Message = dict[str, Any]


def load_key(path: str | os.PathLike[str] | None = None, *, make: bool = True) -> bytes:
    """Return the key from its file, which is made, for this user alone, if there is none.

    The file is `path`, else $MINIRAY_KEY_FILE, else ~/.miniray/key. Raises PermissionError if
    others may read it, ValueError if what it holds is no key, and FileNotFoundError if there is
    none and it is not to `make` one: a client's own would open nothing.
    """
    file = Path(path or os.environ.get("MINIRAY_KEY_FILE") or "~/.miniray/key").expanduser()
    if not file.exists():
        if not make:
            raise FileNotFoundError(f"there is no key in {file}: copy that of the server there")
        _make_key(file)
    status = file.stat()
    if status.st_mode & 0o077 or status.st_uid != os.geteuid():
        raise PermissionError(
            f"key file {file} has mode {status.st_mode & 0o777:o} and owner {status.st_uid}: "
            f"others can use it; make it yours alone (chmod 600 {file}) or delete it for a new one"
        )
    key = file.read_bytes().strip()
    if len(key) < KEY_CHARS_MIN:
        raise ValueError(f"key file {file} holds {len(key)} characters, not {KEY_CHARS_MIN}")
    return key


def _make_key(file: Path) -> None:
    """Make a key file that is complete the moment it appears, whoever else is making one."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, make_key() + b"\n")
        os.close(descriptor)
        os.link(draft, file)
    except FileExistsError:
        pass  # another process made it first: its key is as good
    finally:
        draft.unlink()


def make_key() -> bytes:
    """Return a new random key."""
    return secrets.token_hex(32).encode()


def hello(nonce: str) -> Message:
    """Return the client's first message."""
    return {"version": VERSION, "nonce": nonce}


def make_nonce() -> str:
    """Return what makes a handshake unlike any other."""
    return secrets.token_hex(NONCE_CHARS // 2)


def challenge(key: bytes, hello: Message, nonce: str) -> Message:
    """Return the server's answer to a hello; raise AuthenticationError if it is not one."""
    _check_opening(hello, {"version", "nonce"})
    ours = {"version": VERSION, "nonce": nonce}
    return {**ours, "proof": _prove(key, "server challenge", hello, ours)}


def response(key: bytes, hello: Message, challenge: Message, request: Message) -> Message:
    """Return the client's answer to a challenge; raise AuthenticationError on a false proof."""
    _check_opening(challenge, {"version", "nonce", "proof"})
    theirs = {"version": challenge["version"], "nonce": challenge["nonce"]}
    _check_proof(challenge, _prove(key, "server challenge", hello, theirs))
    return {"request": request, "proof": _prove(key, "client", hello, challenge, request)}


def read_response(key: bytes, hello: Message, challenge: Message, response: Message) -> Message:
    """Return the request in a client's response; raise AuthenticationError on a false proof."""
    request = response.get("request") if len(response) == 2 else None
    if type(request) is not dict or not {type(value) for value in request.values()} <= {str, int}:
        raise AuthenticationError("a response without a request")
    _check_proof(response, _prove(key, "client", hello, challenge, request))
    return request


def welcome(
    key: bytes, hello: Message, challenge: Message, response: Message, reply: Message
) -> Message:
    """Return the server's reply to a request, with its proof."""
    proof = _prove(key, "server welcome", hello, challenge, response, reply)
    return {"reply": reply, "proof": proof}


def read_welcome(
    key: bytes, hello: Message, challenge: Message, response: Message, welcome: Message
) -> Message:
    """Return the server's reply; raise AuthenticationError on a false proof."""
    reply = welcome.get("reply")
    if type(reply) is not dict:
        raise AuthenticationError("a welcome without a reply")
    _check_proof(welcome, _prove(key, "server welcome", hello, challenge, response, reply))
    return reply


def digest(message: Message) -> str:
    """Return what a reply says of a message that follows it."""
    return hashlib.sha256(_as_bytes(message)).hexdigest()


def check_digest(reply: Message, message: Message) -> None:
    """Raise AuthenticationError if a message is not the one that the reply has promised."""
    if reply.get("digest") != digest(message):
        raise AuthenticationError("what followed the server's welcome is not what it had promised")


def prove_same_view(
    key: bytes, session: str, view: Message, *, is_server: bool
) -> tuple[bytes, bytes]:
    """Return what this side is to say, and to hear, of the beginning of TLS as both have seen it.

    That is on the connection which the server's welcome has called `session`.
    """
    sides = ("server", "client") if is_server else ("client", "server")
    seen = {"session": session}, view
    ours, theirs = (_prove(key, f"{side} began to encrypt", *seen).encode() for side in sides)
    return ours, theirs


def check_same_view(proof: bytes, expected: bytes) -> None:
    """Raise AuthenticationError if the other side has seen TLS begin in another way."""
    if not hmac.compare_digest(proof, expected):
        who = "somebody sits between this side and the other: each began to encrypt with him"
        raise AuthenticationError(who)


def _check_opening(message: Message, fields: set[str]) -> None:
    version, nonce = message.get("version"), message.get("nonce")
    if type(version) is int and version != VERSION:
        theirs = str(version)[:20]
        raise AuthenticationError(f"handshake version {theirs} on the other side, {VERSION} here")
    well_formed = type(version) is int and type(nonce) is str and len(nonce) == NONCE_CHARS
    if not well_formed or message.keys() != fields:
        raise AuthenticationError("the other side's first message is not a MiniRay handshake")


def _prove(key: bytes, role: str, *transcript: Message) -> str:
    """Return the proof that the holder of `key` in `role` has seen this transcript."""
    role_key = hmac.digest(key, f"miniray {role}".encode(), hashlib.sha256)
    return hmac.new(role_key, _as_bytes(transcript), hashlib.sha256).hexdigest()


def _as_bytes(value: Any) -> bytes:
    try:
        return json.dumps(value, sort_keys=True).encode()
    except (TypeError, ValueError, RecursionError):  # nobody who holds the key says such things
        raise AuthenticationError("what has come is nothing that has a proof") from None


def _check_proof(message: Message, expected: str) -> None:
    proof = message.get("proof")
    # JSON can say a lone surrogate, which UTF-8 cannot: ASCII with replacements never fails.
    given = proof.encode("ascii", "replace") if type(proof) is str else b""
    if not hmac.compare_digest(given, expected.encode()):
        raise AuthenticationError(
            "the other side holds a different key: both must use the same; unless one was given, "
            f"here that is in {os.environ.get('MINIRAY_KEY_FILE') or '~/.miniray/key'}"
        )
