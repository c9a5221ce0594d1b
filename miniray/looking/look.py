"""Look at all ranks of a cluster at once: ask each node's server, and put together what it says."""

import contextlib
import os
import re
import shutil
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent import futures
from typing import Any

from miniray.connection import server_status
from miniray.errors import MiniRayError
from miniray.looking import show
from miniray.looking.activity import ASKS, LOST, Activity, find_activity
from miniray.looking.clusters import Coordinator, source_of
from miniray.looking.seen import Seen
from miniray.looking.stacks import Frame, users_place
from miniray.looking.verdict import judge

ASK_AGAIN_S = 0.1
WINDOW_S = 0.5  # from the first look to the last, at least: so long CPU use is measured
ANSWER_S = 5.0  # what a process has to write its stacks down, on a busy machine
SERVER_S = 4.0  # what a server has to answer
_RANK = re.compile(r"rank ?(\d+)(?: \(\d+\))?")


class Look:
    """A cluster as it was seen at one moment: print it."""

    def __init__(self, work: str, ranks: list[Seen], coordinator: Seen | None) -> None:
        self.work, self.ranks, self.coordinator = work, ranks, coordinator
        verdict = judge(ranks, coordinator)
        # Who is behind, and why: in one sentence, and their names, "rank 3" or "coordinator".
        self.verdict = f"{verdict.text[0].upper()}{verdict.text[1:]}."
        self.behind = verdict.behind

    @property
    def everybody(self) -> list[Seen]:
        """The ranks, and the coordinator if it was looked at."""
        return [*self.ranks, *([] if self.coordinator is None else [self.coordinator])]

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.verdict}>"

    def __str__(self) -> str:
        columns = shutil.get_terminal_size().columns
        is_seen_so = sys.stdout.isatty() or "COLUMNS" in os.environ
        limit = columns if is_seen_so else show.NO_LIMIT
        return show.as_text(self.verdict, self.everybody, columns, limit)

    def _repr_html_(self) -> str:
        return show.as_html(self.verdict, self.everybody)


def look_here(cluster: Mapping[str, Any], *, wake: bool = True) -> Look:
    """Look at a cluster that this process coordinates, and at this process itself."""
    here = {"folder": os.getcwd(), "command": sys.argv, "work": "", **cluster}
    return _look(here, _this_process, wake=wake)


def look_at(cluster: Mapping[str, Any], *, wake: bool = True) -> Look:
    """Look at a cluster of another process's, of which a notice says where its servers are.

    It takes half a second if all answer, and asks nothing of the ranks' own code. A stopped one is
    woken for the moment that it takes to say where it is, and stopped again, but only with `wake`.
    """
    if "pid" not in cluster:
        return _look(cluster, lambda: None, wake=wake)
    with contextlib.closing(Coordinator(cluster)) as process:
        before = process.ask()

        def coordinator() -> Seen:
            row = {"state": "running", "look": process.read()}
            seen = Seen("coordinator", cluster["host"], pid=process.pid, row=row)
            seen.measure({"look": before})
            seen.conclude(cluster["folder"])
            return seen

        return _look(cluster, coordinator, wake=wake)


def _look(
    cluster: Mapping[str, Any], coordinator: Callable[[], Seen | None], *, wake: bool
) -> Look:
    nodes, began = cluster["nodes"], time.monotonic()
    first = last = ask_all(nodes, {"look": "ask", "wake": int(wake)})
    while True:
        time.sleep(ASK_AGAIN_S)
        before, last = last, ask_all(nodes, {"look": "read"}, last)
        passed = time.monotonic() - began
        is_settled = _written(last) is not None and _written(last) == _written(before)
        if passed >= (WINDOW_S if is_settled else ANSWER_S):
            break
    ranks, process = put_together(nodes, first, last, cluster.get("folder", "")), coordinator()
    for one in (*ranks, *([] if process is None else [process])):
        if place := one.does.place:
            one.source = source_of(place.file, place.short_file, place.line, cluster)
    return Look(cluster["work"], ranks, process)


def _this_process() -> Seen:
    """Return where this process is, the thread that asks last."""
    frames = sys._current_frames()
    main, own = threading.main_thread().ident, threading.get_ident()
    order = sorted(frames, key=lambda one: (one == own, one != main))
    seen = Seen("coordinator", socket.gethostname(), pid=os.getpid(), row={"state": "running"})
    seen.stacks = [
        tuple(
            Frame(_name_of(frame.f_code.co_filename), line, frame.f_code.co_name, os.getcwd())
            for frame, line in traceback.walk_stack(frames[one])
        )
        for one in order
    ]
    seen.does = find_activity(seen.stacks, is_busy=False)
    if own == main:
        seen.does = Activity(ASKS, "", users_place(seen.stacks[-1]))
    return seen


def _name_of(file: str) -> str:
    """Return a file's name; of a notebook's cell, what IPython's tracebacks call that."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    cells = getattr(getattr(shell, "compile", None), "_filename_map", {})
    return f"<In[{cells[file]}]>" if file in cells else file


def ask_all(
    nodes: Sequence[Mapping[str, Any]],
    request: Mapping[str, Any],
    before: Sequence[dict[str, Any] | str] = (),
) -> list[dict[str, Any] | str]:
    """Ask all servers side by side; return what each says, or why it does not.

    Who has not answered `before` is not asked again.
    """

    def ask(node: Mapping[str, Any], said: dict[str, Any] | str) -> dict[str, Any] | str:
        if isinstance(said, str):
            return said
        key = node["key"].encode() if node["key"] else None
        options = {"key": key, "timeout": SERVER_S, "encrypt": int(node["encrypt"]), **request}
        try:
            return server_status(node["host"], node["port"], **options)
        except (OSError, ValueError, MiniRayError) as error:
            return str(error)

    if not nodes:
        return []
    with futures.ThreadPoolExecutor(len(nodes)) as pool:
        return list(pool.map(ask, nodes, before or [{}] * len(nodes)))


def _written(answers: Iterable[dict[str, Any] | str]) -> list[str] | None:
    """Return what all have written so far, or None if somebody who could has not begun."""
    rows = [row for one in answers if not isinstance(one, str) for row in one["workers"]]
    looks = [row["look"] for row in rows if row["state"] == "running"]
    able = [one for one in looks if one["state"] in ("R", "S") and not one.get("why_silent")]
    if not all(one.get("stacks") for one in able):
        return None
    return [one.get("stacks", "") for one in looks]


def put_together(
    nodes: Sequence[Mapping[str, Any]],
    first: Sequence[dict[str, Any] | str],
    last: Sequence[dict[str, Any] | str],
    root: str = "",
) -> list[Seen]:
    """Return every rank that there is, or should be, from what the servers have said twice."""
    everybody, first_rank = list[Seen](), 0
    for node, before, after in zip(nodes, first, last, strict=True):
        expected = range(first_rank, first_rank + node["ranks"])
        first_rank = expected.stop
        if isinstance(after, str):
            everybody += _lost(node, expected, after)
            continue
        earlier = {} if isinstance(before, str) else {row["id"]: row for row in before["workers"]}
        newest: dict[int, Seen] = {}  # of each rank: those before a restart have the same name
        for row in after["workers"]:
            match = _RANK.fullmatch(row["name"]) if expected else None
            rank = int(match[1]) if match else None
            if expected and rank not in expected:  # of a restart with more ranks, or others
                continue
            name = row["name"] if rank is None else f"rank {rank}"
            seen = Seen(name, node["node"], rank, row["pid"], row=row)
            seen.measure(earlier.get(row["id"], {}))
            seen.conclude(root)
            newest[row["id"] if rank is None else rank] = seen
        everybody += newest.values()
    return sorted(everybody, key=lambda one: one.rank or 0)


def _lost(node: Mapping[str, Any], expected: Iterable[int], problem: str) -> list[Seen]:
    """Return the ranks of a node whose server does not answer, or what stands for them."""
    lost, where = Activity(LOST), node["node"]
    ranks = [Seen(f"rank {one}", where, one, problem=problem, does=lost) for one in expected]
    return ranks or [Seen(f"the server at {where}", where, problem=problem, does=lost)]
