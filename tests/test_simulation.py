"""The worlds of tests/simulation, and that they would notice."""

import contextlib
import io
import sys
from typing import Any

import pytest

from miniray import Channel, auth, strangers, wire
from miniray import group as groups
from miniray.decoding import Decoder
from miniray.group import SETTLE_S, Group
from miniray.turn import Turn
from miniray.waiting import deadline_after
from tests.simulation import __main__ as simulation
from tests.simulation import frames, group
from tests.simulation import strangers as door
from tests.simulation.__main__ import find_failure, main

SEEDS = [pytest.param(200), pytest.param(5000, marks=pytest.mark.slow)]


@pytest.mark.parametrize("count", SEEDS)
def test_a_conversation_that_is_cut_anywhere_arrives(count: int) -> None:
    for seed in range(count):
        frames.play(seed)


@pytest.mark.parametrize("count", SEEDS)
def test_the_door_lets_in_whoever_has_the_key_and_nobody_else(count: int) -> None:
    for seed in range(count // 4):
        door.play(seed)


@pytest.mark.parametrize("count", SEEDS)
def test_a_group_names_its_first_culprit_however_late_it_is_heard(count: int) -> None:
    causes = [group.play(seed) for seed in range(count // 2)]
    assert set(causes) == set(group.CAUSES)


def test_a_seed_that_fails_is_named(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def play(seed: int) -> None:
        assert seed != 7

    monkeypatch.setitem(simulation.WORLDS, "frames", play)
    monkeypatch.setattr(sys, "argv", ["", "--world", "frames", "--seeds", "7"])
    assert main() == 0
    assert "frames: 7 seeds, " in capfd.readouterr().out
    monkeypatch.setattr(sys, "argv", ["", "--world", "frames", "--seeds", "9"])
    assert main() == 1
    said = capfd.readouterr()
    assert said.out == "again: python -m tests.simulation --world frames --seed 7\n"
    assert "assert seed != 7" in said.err


def test_the_same_seed_is_the_same_world() -> None:
    def said(seed: int) -> list[Any]:
        world = door.World(seed)
        with door._made_up(world):
            door._play(world)
        return [world.said, world.admitted, [one.going for one in world.connections.values()]]

    assert said(3) == said(3) != said(4)


class TestNotices:
    """Each of these breaks something that the worlds are there to watch."""

    def fails(self, play: Any, count: int = 40) -> None:
        with contextlib.redirect_stderr(io.StringIO()):
            assert find_failure(play, range(count)) is not None

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

    def test_a_door_that_waits_as_long_as_somebody_says_something(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hear = strangers.Strangers._hear

        def wait_on(self: Any, stranger: Any) -> None:
            hear(self, stranger)
            stranger.deadline = strangers.time.monotonic() + strangers.STRANGER_S

        monkeypatch.setattr(strangers.Strangers, "_hear", wait_on)
        self.fails(door.play, 100)

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

    def test_a_decoder_that_fills_memory_wrongly(self, monkeypatch: pytest.MonkeyPatch) -> None:
        filled = Decoder.filled
        monkeypatch.setattr(
            Decoder, "filled", lambda self, nbytes: filled(self, min(nbytes + 1, len(self.memory)))
        )
        self.fails(frames.play)

    def test_a_group_that_does_not_tell_causes_from_consequences(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(groups, "_explains", lambda ending: groups.DEATH)
        self.fails(group.play)

    def test_a_group_that_names_whom_it_hears_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(groups, "SETTLE_S", 0.0)
        self.fails(group.play)

    def test_a_group_that_does_not_look_for_lost_nodes(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Group, "_look_for_lost_nodes", lambda self, pending, deadline: None)
        self.fails(group.play)

    def test_a_group_that_does_not_hear_a_rank_somebody_waits_for(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Turn, "is_at_work", lambda self: self.is_mine())
        self.fails(group.play, 400)

    def test_a_group_that_takes_more_time_than_there_is(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read = Channel.read_to_the_end
        monkeypatch.setattr(
            Channel,
            "read_to_the_end",
            lambda self, deadline, *, keep: read(self, deadline_after(SETTLE_S), keep=keep),
        )
        self.fails(group.play, 400)
