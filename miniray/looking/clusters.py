"""Find the clusters that are coordinated on this machine, and see where their coordinators are."""

import contextlib
import fcntl
import itertools
import json
import os
import shlex
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from miniray import window
from miniray.looking.process import can_be_asked, of_process, send
from miniray.notice import folder_of_notices
from miniray.worker_log import printable

RUN = "miniray.cli.run_rank.run_rank"  # what the ranks of `miniray run` run


def find_clusters() -> list[dict[str, Any]]:
    """Return what the notices of all clusters say that live here, the oldest first.

    A notice that a killed coordinator has left behind is removed.
    """
    found, paths = [], list[Path]()
    with contextlib.suppress(RuntimeError):  # there is no home
        paths += folder_of_notices().glob("*.json")
    for path in paths:
        with contextlib.suppress(OSError, ValueError):  # gone meanwhile, or not ours to read
            with open(path) as file:
                facts = json.load(file)
                if facts["host"] != socket.gethostname():
                    continue  # they share this home, and no processes
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    found.append(facts)
                else:
                    path.unlink()
    return sorted(found, key=lambda one: float(one["posted"]))


def by_hand(host: str, port: int, *, encrypt: bool) -> dict[str, Any]:
    """Return a server that was started by hand as a cluster of its own, with the key file's key."""
    node = {"node": f"{host}:{port}", "host": host, "port": port, "key": "", "ranks": 0}
    return {"work": "", "nodes": [node | {"encrypt": encrypt}]}


def describe(cluster: Mapping[str, Any]) -> str:
    """Return a cluster in one line."""
    nodes = cluster["nodes"]
    if "pid" not in cluster:
        return f"the server at {nodes[0]['node']}"
    ranks, work = sum(node["ranks"] for node in nodes), cluster["work"]
    if work == RUN:  # which says nothing: the command line does
        work = shlex.join(["miniray", *_without_secrets(cluster["command"][1:])])
    places = ", ".join(f"{node['ranks']} on {node['node']}" for node in nodes)
    plural = "s" * (ranks != 1)
    said = f"{work}: {ranks} rank{plural} ({places}), coordinated by pid {cluster['pid']}"
    return printable(said)


def _without_secrets(arguments: Sequence[str]) -> Iterator[str]:
    """Yield a command's arguments, and of --env's variables the names alone."""
    for before, argument in itertools.pairwise(["", *arguments]):
        option, equals, variable = argument.partition("=")
        if before == "--env":
            yield f"{option}=..."
        elif equals and option == "--env":
            yield f"--env={variable.partition('=')[0]}=..."
        else:
            yield argument


class Coordinator:
    """The process that coordinates a cluster, as its notice names it."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self.pid: int = facts.get("pid", -1)
        self._window: int = facts.get("window", -1)
        self._through = -1

    def ask(self) -> dict[str, Any]:
        """Have it write down where it is; return what the kernel says of it."""
        with contextlib.suppress(OSError):  # it has ended, or there is no /proc
            self._through = os.open(f"/proc/{self.pid}/fd/{self._window}", os.O_RDWR)
            if "miniray-window" in os.readlink(f"/proc/self/fd/{self._through}"):
                window.clear(self._through)
                if can_be_asked(self.pid, self._through):
                    send(self.pid, window.LOOK_SIGNAL)
        return {"clock_s": time.monotonic(), **of_process(self.pid)}

    def read(self) -> dict[str, Any]:
        """Return the same a little later, with its stacks."""
        facts = {"clock_s": time.monotonic(), **of_process(self.pid)}
        if self._through >= 0:
            facts["stacks"] = window.read_stacks(self._through)
        return facts

    def close(self) -> None:
        """Look no more."""
        if self._through >= 0:
            os.close(self._through)
            self._through = -1


def source_of(file: str, short_file: str, line: int, cluster: Mapping[str, Any]) -> str:
    """Return the text of a line, if its file is here and as it was when the cluster started."""
    folder = Path(cluster.get("folder", "."))
    command = cluster.get("command") or [""]
    for path in (Path(file), folder / short_file, folder / Path(command[0]).parent / short_file):
        with contextlib.suppress(OSError, IndexError, UnicodeError):
            if path.is_file() and path.stat().st_mtime <= cluster.get("posted", time.time()):
                return path.read_text().splitlines()[line - 1].strip()
    return ""
