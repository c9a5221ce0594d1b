"""Twenty rounds of chaos, what is drawn, and the page of faults; more: python -m tests.chaos."""

import json
from typing import Any

import pytest

from miniray import NodeConfig
from tests.chaos import play, promises, report, rounds, scene
from tests.chaos.__main__ import run_many

SEED = 3134  # whose first twenty know all victims, and take no longer than they must
NUMBER = 20
PAGE_SEED = 12
JOBS = 3  # mostly they wait


def test_a_round_is_drawn_by_its_seed() -> None:
    drawn = [rounds.draw(SEED, number) for number in range(60)]
    assert drawn == [rounds.draw(SEED, number) for number in range(60)]
    assert drawn != [rounds.draw(SEED + 1, number) for number in range(60)]


def test_three_hundred_rounds_know_every_moment_victim_and_act() -> None:
    drawn = [rounds.draw(PAGE_SEED, number) for number in range(300)]
    assert {one.moment for one in drawn} == set(rounds.MOMENTS)
    everything = {(victim, act) for victim, acts in rounds.ACTS.items() for act in acts}
    assert {(one.victim, one.act) for one in drawn} == everything
    assert {one.workers_per_node for one in drawn if one.moment == "group"} == {4}


def test_every_round_has_a_promise() -> None:
    for number in range(1000):
        promise = promises.promise(rounds.draw(SEED, number))
        assert promise.endings
        assert promise.within_s <= 35


def test_both_ends_of_a_tunnel_are_looked_for() -> None:
    forward = "/tmp/miniray-1/server:/tmp/miniray-2/server"
    command = NodeConfig("node1", tunnel=True).command("", forward)
    assert play.tunnel_ends(command) == {"/tmp/miniray-1", "/tmp/miniray-2"}


@pytest.fixture(scope="module")
def played() -> dict[int, tuple[str, dict[str, Any]]]:
    """Play the rounds, several at a time."""
    return dict(enumerate(run_many(SEED, range(NUMBER), JOBS)))


@pytest.mark.slow
@pytest.mark.ssh
@pytest.mark.netns
@pytest.mark.timeout(900)  # the first waits for all of them
@pytest.mark.parametrize("number", range(NUMBER))
def test_a_round_ends_as_promised_and_leaves_nothing(
    played: dict[int, tuple[str, dict[str, Any]]], number: int
) -> None:
    one = rounds.draw(SEED, number)
    if one.moment == "group":
        pytest.importorskip("torch")
    if reason := scene.missing(one):
        pytest.skip(reason)
    text, result = played[number]
    assert not result["problems"], text


def test_the_page_of_faults_is_what_the_results_say() -> None:
    page = report.PAGE.read_text()
    assert page == report.fill_in(page), "run: python -m tests.chaos.report --write"


def test_the_page_tells_of_three_hundred_rounds_and_all_went_well() -> None:
    results = json.loads(report.ROUNDS.read_text())["results"]
    assert [(one["seed"], one["number"]) for one in results] == [
        (PAGE_SEED, number) for number in range(300)
    ]
    assert not any(one["problems"] or one["left"] for one in results)
