"""The worlds of tests/simulation, and that they would notice."""

import contextlib
import io
from typing import Any

import pytest

from miniray import auth, strangers, wire
from miniray.decoding import Decoder
from tests.simulation import frames
from tests.simulation import strangers as door
from tests.simulation.__main__ import find_failure

SEEDS = [pytest.param(200), pytest.param(5000, marks=pytest.mark.slow)]


@pytest.mark.parametrize("count", SEEDS)
def test_a_conversation_that_is_cut_anywhere_arrives(count: int) -> None:
    for seed in range(count):
        frames.play(seed)


@pytest.mark.parametrize("count", SEEDS)
def test_the_door_lets_in_whoever_has_the_key_and_nobody_else(count: int) -> None:
    for seed in range(count // 4):
        door.play(seed)


def test_the_same_seed_is_the_same_world() -> None:
    def said(seed: int) -> list[Any]:
        world = door.World(seed)
        with door._made_up(world):
            door._play(world)
        return [world.said, world.admitted, [one.going for one in world.connections.values()]]

    assert said(3) == said(3) != said(4)


class TestNotices:
    """Each of these breaks something that the worlds are there to watch."""

    def fails(self, play: Any) -> None:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            assert find_failure(play, range(40)) is not None

    def test_a_door_that_believes_everybody(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(auth, "_check_proof", lambda message, expected: None)
        self.fails(door.play)

    def test_a_door_that_reads_what_is_the_workers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        recv = door.Connection.recv
        monkeypatch.setattr(door.Connection, "recv", lambda line, nbytes: recv(line, 4096))
        self.fails(door.play)

    def test_a_door_that_waits_for_ever(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(strangers.Strangers, "_dismiss_the_late", lambda self: None)
        self.fails(door.play)

    def test_a_door_that_pushes_anybody_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def oldest(self: Any) -> Any:
            return min(self._strangers, key=lambda one: one.sock.number)

        monkeypatch.setattr(strangers.Strangers, "_choose_who_goes", oldest)
        self.fails(door.play)

    def test_a_decoder_that_forgets_what_was_over(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def feed(self: Decoder, data: bytes, descriptors: Any = ()) -> None:
            self._data, self._at, self.may_hold_frame = data, 0, True

        monkeypatch.setattr(Decoder, "feed", feed)
        self.fails(frames.play)

    def test_an_encoder_that_loses_a_type(self, monkeypatch: pytest.MonkeyPatch) -> None:
        encode = wire.encode

        def lists_for_tuples(kind: int, body: Any) -> wire.Encoded:
            return encode(kind, list(body) if type(body) is tuple else body)

        monkeypatch.setattr(wire, "encode", lists_for_tuples)
        self.fails(frames.play)
