"""What is fuzzed: bytes that somebody sends before the handshake, and after it."""

import contextlib
from collections.abc import Callable
from typing import Any

from miniray import AuthenticationError, ProtocolError, auth, values, wire
from miniray.decoding import Decoder
from miniray.header import REASON_CHARS_MAX
from tests.support.decoders import frames_of

ERROR_CHARS_MAX = 2 * REASON_CHARS_MAX
# A frame that claims more than came gets no memory but what is filled; this is never filled.
PIECE_BYTES = 61
FRAMED = b"F", b"\xc6"

# What a mutation may put in: the marks of values, in quotes, and what stands around them.
WORDS = [
    *(f'\\"{mark}\\"' for mark in (*values.MARKS, "$", "items", "buffer", "index")),
    *(f'\\"{one}\\"' for one in ("torch", "numpy", "bytes", "shared", "float32", "<f4", "|S9")),
    *("MRY1", "null", '{\\"$\\":', ',\\"items\\":[', "]}", ",", "[", "]", "1e999", "\\\\ud800"),
]


# What a handshake has got so far: a message comes into all of its steps.
KEY, NONCE = b"a key", "0" * auth.NONCE_CHARS
HELLO = auth.hello(NONCE)
CHALLENGE = auth.challenge(KEY, HELLO, NONCE)
RESPONSE = auth.response(KEY, HELLO, CHALLENGE, {"type": "worker"})


def _add_to_response(message: auth.Message) -> None:
    """Sit in between, without the key, and add to what a client says."""
    changed = {**message, **RESPONSE}
    auth.read_response(KEY, HELLO, CHALLENGE, changed)
    auth.welcome(KEY, HELLO, CHALLENGE, changed, {})


STEPS: tuple[Callable[[auth.Message], object], ...] = (
    lambda message: auth.challenge(KEY, message, NONCE),
    lambda message: auth.response(KEY, HELLO, message, {}),
    lambda message: auth.read_response(KEY, HELLO, CHALLENGE, message),
    lambda message: auth.read_welcome(KEY, HELLO, CHALLENGE, RESPONSE, message),
    _add_to_response,
)


def before_handshake(data: bytes) -> int:
    """Feed what a stranger sends; return how many frames that were. Raises only for a defect."""
    return _feed(Decoder(auth_only=True), data, _shake_hands, in_one=True)


def after_handshake(data: bytes) -> int:
    """Feed what a peer sends, in one piece or in many, which its first byte decides.

    That may also ask for a frame to be made of the rest, of the right lengths: a header, and after
    a NUL the raw bytes. So that a change anywhere in a message need not change its lengths, too.
    """
    how, rest = data[:1], data[1:]
    if how in FRAMED:
        header, _, raw = rest.partition(b"\0")
        kind = wire.MESSAGE | (wire.HAS_RAW_BYTES if raw else 0)
        rest = wire.PRELUDE.pack(wire.MAGIC, kind, len(header)) + header + raw
    return _feed(Decoder(), rest, lambda body: None, in_one=how >= b"\x80")


def _feed(decoder: Decoder, data: bytes, use: Callable[[Any], None], *, in_one: bool) -> int:
    frames, size = 0, len(data) if in_one else PIECE_BYTES
    try:
        for frame in frames_of(decoder, data, lambda: size):
            frames += 1
            use(frame.body)
    except ProtocolError as error:
        if len(str(error)) > ERROR_CHARS_MAX:
            raise AssertionError(f"an error of {len(str(error))} characters") from error
        _still_refuses(decoder)
    finally:
        decoder.close()
    return frames


def _shake_hands(body: Any) -> None:
    if type(body) is dict:  # nothing else gets there
        for step in STEPS:
            with contextlib.suppress(AuthenticationError):
                step(body)


def _still_refuses(decoder: Decoder) -> None:
    """A stream that has gone wrong once says so for ever after."""
    try:
        frame: Any = decoder.next_frame()
    except ProtocolError:
        return
    raise AssertionError(f"after an error it returned {frame!r}")


TARGETS = {"before": before_handshake, "after": after_handshake}
