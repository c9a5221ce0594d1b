"""Lose a machine: cut its link for good while somebody waits for it in every way there is."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil

from tests.support import namespaces, poll

CLEAN_S = 30.0

Endings = dict[tuple[str, str, str], dict[str, Any]]


def lose_node2(nodes: namespaces.Nodes) -> tuple[Endings, float]:
    """Cut its link once; return how each way to wait ended, and after how long it was clean.

    A way is (transport, way, traffic); see `tests.lost_machine`.
    """
    found: Endings = {}
    with contextlib.ExitStack() as stack:
        coordinators = {
            transport: stack.enter_context(_coordinator(nodes, transport == "tunnel"))
            for transport in ("tcp", "tunnel")
        }
        for one in coordinators.values():
            if (said := _hear(one)) != "ready\n":
                raise OSError(f"a coordinator is not ready: {said!r}")
        with _slow_link(nodes), nodes.cut("node2"):
            cut = time.monotonic()
            for one in coordinators.values():
                _tell(one, f"{cut}")
            for transport, one in coordinators.items():
                for ending in json.loads(_hear(one)):
                    found[transport, ending["way"], ending["traffic"]] = ending
            left_s = max(cut + 2 * CLEAN_S - time.monotonic(), 0.0)
            poll.until(lambda: not nodes.pids("node2"), timeout_s=left_s, what="a clean node")
            clean_s = time.monotonic() - cut
    # The sessions' own sshd has not heard of the cut; it would wait for hours.
    for session in psutil.Process(nodes.servers["node2"].process.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it has heard by now
            session.kill()
    nodes.wait_until_empty(timeout_s=CLEAN_S)
    return found, clean_s


@contextlib.contextmanager
def _coordinator(nodes: namespaces.Nodes, tunnel: bool) -> Iterator[subprocess.Popen[str]]:
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
def _slow_link(nodes: namespaces.Nodes) -> Iterator[None]:
    """Let node2 send slowly, so that something is always under way when its link is cut."""
    queue = ["dev", "eth0", "root"]
    limit = ["tbf", "rate", "200mbit", "burst", "64kb", "latency", "50ms"]
    nodes.run(["tc", "qdisc", "add", *queue, *limit], node="node2")
    yield
    nodes.run(["tc", "qdisc", "del", *queue], node="node2")


def _hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def _tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()
