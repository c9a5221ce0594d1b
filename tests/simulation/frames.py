"""A conversation, cut anywhere: what one side says arrives at the other, whole, once, in order."""

import contextlib
import random
from collections.abc import Iterable, Iterator
from typing import Any

from miniray import ProtocolError, decoding, wire
from miniray.decoding import Decoder
from tests.simulation import replaced
from tests.support.decoders import frames_of

TEXTS = ("", "a", "naïve 😀", '"quoted" \\ \n', "$", "x" * 300)
EVERY_CUT_BYTES_MAX = 200  # of a conversation that is cut at every byte, and into single bytes
# Of worlds where small buffers go the large ones' way: received in place, and packed.
SMALL_AHEAD_BYTES, SMALL_PACKED_BYTES = 40, 100


def play(seed: int) -> None:
    """Send some messages through a network that cuts where it likes, and one that was damaged.

    Raises AssertionError unless what was sent has arrived, and whatever is neither a ProtocolError
    nor a message for what was damaged.
    """
    chance = random.Random(seed)
    if seed % 4 != 1:
        _play(chance, every_cut=seed % 8 == 0)
        return
    with replaced(
        (decoding, "AHEAD_BYTES", SMALL_AHEAD_BYTES), (wire, "PACKED_BYTES_MIN", SMALL_PACKED_BYTES)
    ):
        _play(chance, every_cut=seed % 32 == 1)


def _play(chance: random.Random, *, every_cut: bool) -> None:
    messages = [_value(chance, 3) for _ in range(chance.choice((1, 1, 2, 4)))]
    data = b"".join(_to_bytes(message) for message in messages)
    if every_cut and len(data) < EVERY_CUT_BYTES_MAX:
        for cut in range(len(data) + 1):
            assert _arrives((data[:cut], data[cut:])) == messages
    assert _arrives(_cut(data, chance)) == messages
    end = chance.randrange(len(data))
    arrived = _arrives(_cut(data[:end], chance))
    assert arrived == messages[: len(arrived)]
    assert len(arrived) < len(messages)
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
            return chance.randbytes(chance.choice((0, 1, 63, 64, 65, 200)))
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
    if largest == 1 and len(data) > EVERY_CUT_BYTES_MAX:
        largest = 20
    at = 0
    while at < len(data):
        for number in chance.randbytes(16):
            nbytes = 1 + (number * largest >> 8)
            yield data[at : at + nbytes]
            at += nbytes
            if at >= len(data):
                return


def _arrives(pieces: Iterable[bytes]) -> list[Any]:
    """Return the messages that a receiver makes of the pieces, as a channel would."""
    decoder, arrived = Decoder(), []
    for piece in pieces:
        if decoder.memory is not None:
            arrived += [frame.body for frame in frames_of(decoder, piece)]
            continue
        decoder.feed(piece)  # as frames_of does, which takes longer to find that out
        while (frame := decoder.next_frame()) is not None:
            assert frame.kind in wire.KINDS
            arrived.append(frame.body)
    decoder.close()
    return arrived
