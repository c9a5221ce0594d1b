"""The key file, and a handshake in which both sides prove that they hold the key.

    client -> server  hello      version, nonce
    server -> client  challenge  version, nonce, proof by the server over hello
    client -> server  response   request, proof by the client over all of the above

A proof is an HMAC over every message so far. Each side proves with its own key, derived from the
one secret, so that nothing a side has said can be said back to it; the nonces make every
handshake's proofs its own. The functions here are pure: messages in, message out.
"""

import contextlib
import hashlib
import hmac
import json
import os
import secrets
from pathlib import Path
from typing import Any

from .errors import AuthenticationError

VERSION = 1
NONCE_CHARS = 64

Message = dict[str, Any]


def load_key() -> bytes:
    """Return the key from its file, which is made, for this user alone, if there is none.

    The file is $MINIRAY_KEY_FILE, else ~/.miniray/key. Raises PermissionError if others can read
    it.
    """
    file = Path(os.environ.get("MINIRAY_KEY_FILE") or "~/.miniray/key").expanduser()
    if not file.exists():
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A draft first: the file has to be complete the moment it appears.
        draft = file.with_name(f"{file.name}.{secrets.token_hex(8)}")
        draft.touch(mode=0o600)
        draft.write_bytes(make_key())
        with contextlib.suppress(FileExistsError):  # another process was first: its key will do
            os.link(draft, file)
        draft.unlink()
    mode = file.stat().st_mode & 0o777
    if mode & 0o077:
        raise PermissionError(f"key file {file} has mode {mode:o}: others can use it; chmod 600")
    return file.read_bytes().strip()


def make_key() -> bytes:
    """Return a new random key."""
    return secrets.token_hex(32).encode()


def make_nonce() -> str:
    """Return what makes a handshake unlike any other."""
    return secrets.token_hex(NONCE_CHARS // 2)


def hello(nonce: str) -> Message:
    """Return the client's first message."""
    return {"version": VERSION, "nonce": nonce}


def challenge(key: bytes, hello: Message, nonce: str) -> Message:
    """Return the server's answer to a hello; raise AuthenticationError if it is not one."""
    _check_opening(hello, {"version", "nonce"})
    ours = {"version": VERSION, "nonce": nonce}
    return {**ours, "proof": _prove(key, "server", hello, ours)}


def response(key: bytes, hello: Message, challenge: Message, request: Message) -> Message:
    """Return the client's answer to a challenge; raise AuthenticationError on a false proof."""
    _check_opening(challenge, {"version", "nonce", "proof"})
    theirs = {"version": challenge["version"], "nonce": challenge["nonce"]}
    _check_proof(challenge, _prove(key, "server", hello, theirs))
    return {"request": request, "proof": _prove(key, "client", hello, challenge, request)}


def read_response(key: bytes, hello: Message, challenge: Message, response: Message) -> Message:
    """Return the request in a client's response; raise AuthenticationError on a false proof."""
    request = response.get("request") if type(response) is dict else None
    if type(request) is not dict or not {type(value) for value in request.values()} <= {str, int}:
        raise AuthenticationError("a response without a request")
    _check_proof(response, _prove(key, "client", hello, challenge, request))
    return request


def _check_opening(message: Any, fields: set[str]) -> None:
    if type(message) is not dict or message.keys() != fields:
        raise AuthenticationError("the other side's first message is not a handshake")
    version, nonce = message["version"], message["nonce"]
    if version != VERSION:
        raise AuthenticationError(f"the other side's handshake is not of version {VERSION}")
    if type(nonce) is not str or len(nonce) != NONCE_CHARS:
        raise AuthenticationError("the other side's nonce is not one")


def _prove(key: bytes, role: str, *transcript: Message) -> str:
    """Return the proof that the holder of `key` in `role` has seen this transcript."""
    role_key = hmac.digest(key, role.encode(), hashlib.sha256)
    text = json.dumps(transcript, sort_keys=True).encode()
    return hmac.new(role_key, text, hashlib.sha256).hexdigest()


def _check_proof(message: Message, expected: str) -> None:
    given = str(message.get("proof")).encode("ascii", "replace")
    if not hmac.compare_digest(given, expected.encode()):
        raise AuthenticationError(
            "the other side holds a different key: both must use the same key file "
            "($MINIRAY_KEY_FILE, else ~/.miniray/key)"
        )
