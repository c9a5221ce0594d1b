"""A machine is lost: its link is cut for good, and every way of waiting has to notice."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.lost_machine import NOTICED_S, TRAFFIC, WAYS
from tests.support import namespaces

ALLOWANCE_S = 5.0  # all of this happens at once, on a machine that may be busy
START_S = 100.0

pytestmark = [pytest.mark.netns, pytest.mark.ssh, pytest.mark.slow]
Endings = dict[tuple[str, str, str], dict[str, Any]]


@pytest.fixture(scope="module")
def endings(netns_nodes: namespaces.Nodes) -> Endings:
    """Cut a link once, with everybody waiting, and return how each way to wait ended."""
    found: Endings = {}
    with contextlib.ExitStack() as stack:
        coordinators = {
            transport: stack.enter_context(coordinator(netns_nodes, transport == "tunnel"))
            for transport in ("tcp", "tunnel")
        }
        for one in coordinators.values():
            assert hear(one) == "ready\n"
        with slow_link(netns_nodes), netns_nodes.cut("node2"):
            for one in coordinators.values():
                tell(one, f"{time.monotonic()}")
            for transport, one in coordinators.items():
                for ending in json.loads(hear(one)):
                    found[transport, ending["way"], ending["traffic"]] = ending
    # The sessions' own sshd has not heard of the cut; it would wait for hours.
    for session in psutil.Process(netns_nodes.servers["node2"].process.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it has heard by now
            session.kill()
    netns_nodes.wait_until_empty(timeout_s=30)
    return found


@contextlib.contextmanager
def coordinator(nodes: namespaces.Nodes, tunnel: bool) -> Iterator[subprocess.Popen[str]]:
    """Run a coordinator that waits in every way, in its namespace."""
    options = json.dumps({"ssh_options": nodes.ssh_options, "tunnel": tunnel})
    process = nodes.popen(
        [sys.executable, "-m", "tests.lost_machine", options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def slow_link(nodes: namespaces.Nodes) -> Iterator[None]:
    """Let node2 send slowly, so that something is always under way when its link is cut."""
    queue = ["dev", "eth0", "root"]
    limit = ["tbf", "rate", "200mbit", "burst", "64kb", "latency", "50ms"]
    nodes.run(["tc", "qdisc", "add", *queue, *limit], node="node2")
    yield
    nodes.run(["tc", "qdisc", "del", *queue], node="node2")


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


@pytest.mark.parametrize("traffic", TRAFFIC)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("transport", ["tcp", "tunnel"])
def test_is_noticed_in_time_and_named(
    endings: Endings, transport: str, way: str, traffic: str
) -> None:
    ending = endings.get((transport, way, traffic))
    assert ending is not None, "not noticed"
    assert ending["error"] == "WorkerDied", ending
    assert ending["rank"] in ending["text"], ending
    assert ending["seconds"] <= NOTICED_S + ALLOWANCE_S, ending
