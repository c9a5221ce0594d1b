"""A machine is lost: its link is cut for good, and every way of waiting has to notice."""

import pytest

from tests.chaos import loss
from tests.lost_machine import NOTICED_S, TRAFFIC, WAYS
from tests.support import namespaces

ALLOWANCE_S = 5.0  # all of this happens at once, on a machine that may be busy

pytestmark = [
    *(pytest.mark.netns, pytest.mark.ssh, pytest.mark.slow),
    pytest.mark.timeout(300),  # the first waits for all of it
]


@pytest.fixture(scope="module")
def losses(netns_nodes: namespaces.Nodes) -> tuple[loss.Endings, float]:
    """Cut a link once, with everybody waiting."""
    return loss.lose_node2(netns_nodes)


def test_the_node_is_clean_in_time(losses: tuple[loss.Endings, float]) -> None:
    assert losses[1] <= loss.CLEAN_S + ALLOWANCE_S


@pytest.mark.parametrize("traffic", TRAFFIC)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("transport", ["tcp", "tunnel"])
def test_is_noticed_in_time_and_named(
    losses: tuple[loss.Endings, float], transport: str, way: str, traffic: str
) -> None:
    ending = losses[0].get((transport, way, traffic))
    assert ending is not None, "not noticed"
    assert ending["error"] == "WorkerDied", ending
    assert ending["rank"] in ending["text"], ending
    assert ending["seconds"] <= NOTICED_S + ALLOWANCE_S, ending
