"""A conversation, cut anywhere: what one side says arrives at the other, whole, once, in order."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

from miniray import ProtocolError, wire
from miniray.decoding import Decoder
from tests.support.decoders import frames_of

TEXTS = ("", "a", "naïve 😀", '"quoted" \\ \n', "$", "x" * 300)


def play(seed: int) -> None:
    """Send some messages through a network that cuts where it likes, and one that was damaged.

    Raises AssertionError unless what was sent has arrived, and whatever is neither a ProtocolError
    nor a message for what was damaged.
    """
    chance = random.Random(seed)
    messages = [_value(chance, 4) for _ in range(chance.randint(1, 4))]
    data = b"".join(_to_bytes(message) for message in messages)
    if seed % 4 == 0 and len(data) < 200:
        for cut in range(len(data) + 1):
            assert _arrives([data[:cut], data[cut:]]) == messages
    assert _arrives(_cut(data, chance)) == messages
    end = chance.randrange(len(data))
    assert len(_arrives(_cut(data[:end], chance))) <= len(messages)
    damaged = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        damaged[chance.randrange(len(damaged))] = chance.randrange(256)
    with contextlib.suppress(ProtocolError):
        _arrives(_cut(bytes(damaged), chance))


def _value(chance: random.Random, depth: int) -> Any:
    kind = chance.randrange(12 if depth else 8)
    match kind:
        case 0:
            return None
        case 1:
            return chance.random() < 0.5
        case 2:
            return chance.randint(-(2**70), 2**70)
        case 3:
            return chance.uniform(-1e300, 1e300)
        case 4 | 5:
            return chance.choice(TEXTS)
        case 6:
            return chance.randbytes(chance.choice((0, 1, 63, 64, 65, 500)))
        case 7:
            return bytearray(chance.randbytes(chance.choice((0, 1, 70))))
        case 8:
            return tuple(_value(chance, depth - 1) for _ in range(chance.randrange(4)))
        case 9 | 10:
            return [_value(chance, depth - 1) for _ in range(chance.randrange(4))]
        case _:
            keys = chance.sample(TEXTS, chance.randrange(4))
            return {key: _value(chance, depth - 1) for key in keys}


def _to_bytes(message: Any) -> bytes:
    frame = wire.encode(wire.MESSAGE, message)
    return b"".join([frame.head, *frame.parts])


def _cut(data: bytes, chance: random.Random) -> Iterator[bytes]:
    """Yield pieces: mostly large ones, sometimes one byte after the other."""
    largest = chance.choice((1, 3, 50, 1000))
    at = 0
    while at < len(data):
        nbytes = chance.randint(1, largest)
        yield data[at : at + nbytes]
        at += nbytes


def _arrives(pieces: Any) -> list[Any]:
    """Return the messages that a receiver makes of the pieces, as a channel would."""
    decoder, arrived = Decoder(), []
    for piece in pieces:
        for frame in frames_of(decoder, piece):
            assert frame.kind in wire.KINDS
            arrived.append(frame.body)
    decoder.close()
    return arrived
