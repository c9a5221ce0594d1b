"""Some rounds of chaos, and what is drawn; many more: python -m tests.chaos --rounds 60."""

from pathlib import Path

import pytest

from tests.chaos import play, rounds
from tests.support import ssh

SEED = 1


def test_a_round_is_drawn_by_its_seed() -> None:
    drawn = [rounds.draw(SEED, number) for number in range(60)]
    assert drawn == [rounds.draw(SEED, number) for number in range(60)]
    assert drawn != [rounds.draw(SEED + 1, number) for number in range(60)]


def test_sixty_rounds_know_every_moment_victim_and_act() -> None:
    drawn = [rounds.draw(SEED, number) for number in range(60)]
    assert {one.moment for one in drawn} == set(rounds.MOMENTS)
    assert {one.act for one in drawn} == {*rounds.SIGNALS, *rounds.CUTS}
    assert {one.victim for one in drawn} == {
        *("coordinator", "server", "keeper", "worker", "ssh", "sshd", "link"),
    }


def test_every_round_has_a_promise() -> None:
    for number in range(1000):
        promise = rounds.promise(rounds.draw(SEED, number))
        assert promise.endings
        assert promise.within_s <= 30


@pytest.mark.slow
@pytest.mark.ssh
@pytest.mark.parametrize("number", range(8))
def test_a_round_ends_as_promised_and_leaves_nothing(number: int, tmp_path: Path) -> None:
    one = rounds.draw(SEED, number)
    if one.moment == "group":
        pytest.importorskip("torch")
    if one.transport != "local" and (reason := ssh.missing()):
        pytest.skip(reason)
    report = play.Player(one, tmp_path).play()
    assert not report.problems, f"{report}\n{report.log}"
