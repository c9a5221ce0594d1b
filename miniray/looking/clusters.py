"""Find the clusters that are coordinated on this machine, and see where their coordinators are."""

import contextlib
import fcntl
import json
import os
import shlex
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from miniray import window
from miniray.looking.process import of_process, send, why_silent
from miniray.notice import folder_of_notices
from miniray.worker_log import printable

RUN = "miniray.cli.run_rank.run_rank"  # what the ranks of `miniray run` run
# What a notice says, and of each node; one of another MiniRay may say something else.
FACTS = {"host", "pid", "window", "began", "command", "folder", "work", "nodes"}
NODE_FACTS = {"node", "host", "port", "key", "encrypt", "ranks"}
OLD_S = 30 * 24 * 3600.0


def find_clusters() -> list[dict[str, Any]]:
    """Return what the notices of all clusters say that live here, the oldest first.

    A notice that a killed coordinator has left behind is removed.
    """
    found = []
    with contextlib.suppress(RuntimeError):  # this user has no home
        for path in folder_of_notices().glob("*"):
            with contextlib.suppress(OSError):  # gone meanwhile, or not ours to read
                facts = _take_in(path)
                if facts is not None and facts["host"] == socket.gethostname():
                    found.append({**facts, "notice": path.name})
    return sorted(found, key=lambda one: float(one["began"]))


def _take_in(path: Path) -> dict[str, Any] | None:
    """Return what a notice says if its coordinator lives; one that it has replaced does not count.

    It does that after a restart, perhaps just now.
    """
    while True:
        with open(path, "rb") as file:
            facts = _read(file.read())
            if _is_locked(file):
                return facts
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                _remove(path, facts)
                return None


def _read(data: bytes) -> dict[str, Any] | None:
    """Return what a notice says, or None if it is cut off, or another MiniRay's."""
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        facts: dict[str, Any] = json.loads(data)
        if facts.keys() >= FACTS and all(node.keys() >= NODE_FACTS for node in facts["nodes"]):
            return facts
    return None


def _is_locked(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _remove(path: Path, facts: Mapping[str, Any] | None) -> None:
    """Remove a notice that was left behind, and is not just being written.

    Those of another machine, which shares this home and no processes, only after a month.
    """
    is_ours = facts is not None and facts["host"] == socket.gethostname()
    if (is_ours and path.suffix == ".json") or path.stat().st_mtime < time.time() - OLD_S:
        path.unlink()


def by_hand(host: str, port: int, *, encrypt: bool) -> dict[str, Any]:
    """Return a server that was started by hand as a cluster of its own, with the key file's key."""
    name = f"{host}:{port}"
    node = {"node": name, "host": host, "port": port, "key": "", "ranks": 0, "encrypt": encrypt}
    return {"work": "", "nodes": [node], "notice": name}


def describe(cluster: Mapping[str, Any]) -> str:
    """Return a cluster in one line."""
    nodes = cluster["nodes"]
    if "pid" not in cluster:
        return f"the server at {nodes[0]['node']}"
    ranks, work = sum(node["ranks"] for node in nodes), cluster["work"]
    if work == RUN:  # which says nothing: the command line does
        work = printable(shlex.join(["miniray", *_without_values(cluster["command"][1:])]))
    places = ", ".join(f"{node['ranks']} on {node['node']}" for node in nodes)
    plural = "s" * (ranks != 1)
    return f"{work}: {ranks} rank{plural} ({places}), coordinated by pid {cluster['pid']}"


def _without_values(words: Sequence[str]) -> list[str]:
    """Return a command line without what environment variables are to be: tokens, say."""
    shown = list(words)
    for number, word in enumerate(words):
        value = word.removeprefix("--env=")
        is_setting = value != word or (number > 0 and words[number - 1] == "--env")
        if is_setting and "=" in value:
            shown[number] = f"{word.removesuffix(value)}{value.partition('=')[0]}=..."
    return shown


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
                if not why_silent(self.pid, self._through):
                    send(self.pid, window.LOOK_SIGNAL)
        return {"clock_s": time.monotonic(), **of_process(self.pid)}

    def read(self) -> dict[str, Any]:
        """Return the same a little later, with its stacks."""
        facts = {"clock_s": time.monotonic(), **of_process(self.pid)}
        if self._through >= 0:
            facts["stacks"] = window.read_stacks(self._through)
            if not facts["stacks"]:
                facts["why_silent"] = why_silent(self.pid, self._through)
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
            if path.is_file() and path.stat().st_mtime <= cluster.get("began", time.time()):
                return path.read_text().splitlines()[line - 1].strip()
    return ""
