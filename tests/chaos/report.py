"""What is written down of rounds and measures, and the tables that are made of it.

python -m tests.chaos.report prints them; --write puts them into docs/guides/faults.md.
"""

import json
import os
import statistics
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.report import describe_machine, machine_line
from tests.chaos.rounds import RUNNING, SIGNALS, STARTING
from tools.count_lines import replace_table

HERE = Path(__file__).parent
ROUNDS, MEASURES = HERE / "rounds.json", HERE / "measures.json"
PAGE = HERE.parents[1] / "docs/guides/faults.md"

PHASES = {"running": RUNNING, "starting": STARTING, "stopping": ("stop",)}
DEADLY = SIGNALS[:-1]
WHO = {
    "worker": "a worker",
    "server": "a node's server",
    "keeper": "a node's keeper",
    "ssh": "the local `ssh`",
    "sshd": "`sshd`'s session",
    "coordinator": "the coordinator",
}
WHAT = {
    "SIGSTOP": "is stopped for good",
    "SIGINT": "gets SIGINT",
    "memory": "may take no more memory than it has (`RLIMIT_AS`)",
    "oom": "is killed by the kernel, out of memory (a cgroup)",
    "heir": "is killed, and a child of its own in a session of its own goes on with its socket",
    "flood": "prints 8 MB",
    "strangers": "gets 3,000 strangers a second for 3 s",
    "line": "gets Ctrl-C at some line of the package",
}
ELSEWHERE = {
    ("session", "reset"): "the connection of `ssh` is reset",
    ("session", "silence"): "the connection of `ssh` goes silent",
    ("link", "down"): "the link is cut for good",
    ("link", "blink"): "the link is down for 5 s",
    ("link", "lossy"): "the link drops 5 % of its packets for 5 s",
    ("link", "reset"): "the link answers every packet by a reset",
    ("disk", "full"): "the disk is full: temporary files, and the log",
}
# Whose words an error's are: the first that fits.
NOTICED = (
    ("while its server ran: Timeout", "ssh's keepalive"),
    ("while its server ran", "the session's end"),
    ("is lost: its server does not answer", "a look at its server"),
    ("is lost: its server", "its keeper"),
    ("machine or the link", "TCP's keepalive"),
    ("was killed by", "its server"),
    ("exited with status", "its server"),
    ("", "itself"),
)


def conditions(jobs: int) -> dict[str, Any]:
    """Return what one must know of a run to compare its figures."""
    return {"machine": describe_machine(), "jobs": jobs, "load": round(os.getloadavg()[0], 2)}


def as_json(conditions: dict[str, Any], results: list[dict[str, Any]]) -> str:
    """Return the text of a results file, with a line for each result."""
    lines = ",\n".join(json.dumps(result) for result in results)
    return f'{{"conditions": {json.dumps(conditions)},\n"results": [\n{lines}\n]}}\n'


def fault(result: dict[str, Any]) -> str:
    """Say what happened to whom, in the words of the page."""
    victim, act = result["victim"], result["act"]
    if (victim, act) in ELSEWHERE:
        return ELSEWHERE[victim, act]
    if act == "pause":
        return f"{WHO[victim]} is stopped for {result['lasts_s']:.0f}\N{NO-BREAK SPACE}s"
    if act in DEADLY and (act != "SIGINT" or victim not in ("worker", "coordinator")):
        return f"{WHO[victim]} is killed"
    return f"{WHO[victim]} {WHAT[act]}"


def noticed_by(result: dict[str, Any]) -> str:
    """Say who noticed."""
    ending = result["ending"]
    if ending == "WorkerDied":
        return next(who for words, who in NOTICED if words in result["text"])
    return {
        "done": "nobody",
        "killed": "its nodes, by the lease",
        "KeyboardInterrupt": "whoever pressed it",
        "WorkerFailed": "itself",
        "WorkerExited": "itself",
        "TimeoutError": "the timeout",
        "ClusterError": "`start`, which names the node",
    }[ending]


def rounds_table(results: list[dict[str, Any]], phase: str) -> str:
    """Return the table of what happened while a cluster was starting, running or stopping."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        if result["moment"] in PHASES[phase]:
            groups.setdefault(fault(result), []).append(result)
    order = [*WHO.values(), *ELSEWHERE.values()]
    rows = [
        "| what happens | rounds | ends in | who noticed | noticed after | clean after | left |",
        "|---|---:|---|---|---:|---:|---:|",
    ]
    for name in sorted(groups, key=lambda one: (_place(one, order), one)):
        group = groups[name]
        ended = [one for one in group if one["ending"] != "done"]
        errors = [one["seconds"] for one in ended if one["ending"] != "killed"]
        cells = (
            name,
            f"{len(group)}",
            _counts(_ending(one["ending"]) for one in group),
            _counts(noticed_by(one) for one in group),
            _spread(errors),
            _spread([one["clean_s"] for one in ended]),
            f"{sum(len(one['left']) for one in group)}",
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def measures_table(results: list[dict[str, Any]]) -> str:
    """Return the table of what was measured by itself."""
    rows = ["| what | measured | how | target | |", "|---|---:|---|---:|---|"]
    for one in results:
        verdict = {True: "ok", False: "missed", None: ""}[one["met"]]
        value, target = _share(one) if "whole" in one else _samples(one)
        rows.append(f"| {one['name']} | {value} | {one['how']} | {target} | {verdict} |")
    return "\n".join(rows)


def summary(results: list[dict[str, Any]]) -> str:
    """Return in a few lines what all rounds together say."""
    named = [one["culprit_is_named"] for one in results if one["culprit_is_named"] is not None]
    left = sum(len(one["left"]) for one in results)
    seeds = ", ".join(sorted({str(one["seed"]) for one in results}))
    went = sum(not one["problems"] for one in results)
    return (
        f"**{went} of {len(results)} rounds** ended as promised (seed {seeds}). "
        f"The culprit was named in {sum(named)} of the {len(named)} errors that have one to name. "
        f"Processes, files and sockets left over: {left}."
    )


def conditions_line(conditions: dict[str, Any], what: str) -> str:
    """Return how the figures came about."""
    return (
        f"{what}: {machine_line(conditions)}; {_number(conditions['jobs'])} at a time, "
        f"load {conditions['load']:.1f} before."
    )


def tables() -> dict[str, str]:
    """Return the page's tables by the names of their places."""
    played, measured = (json.loads(file.read_text()) for file in (ROUNDS, MEASURES))
    found = {phase: rounds_table(played["results"], phase) for phase in PHASES}
    found["measures"] = measures_table(measured["results"])
    found["summary"] = summary(played["results"])
    found["conditions"] = "\n".join(
        [
            conditions_line(measured["conditions"], "The measures"),
            conditions_line(played["conditions"], "The rounds"),
        ]
    )
    return found


def fill_in(page: str) -> str:
    """Return the page's text with the tables in their places."""
    for name, table in tables().items():
        page = replace_table(page, table, name)
    return page


def line(one: dict[str, Any]) -> str:
    """Return a measure in a line, for a terminal."""
    return measures_table([one]).splitlines()[-1]


def _place(name: str, order: list[str]) -> int:
    return max(index for index, begin in enumerate(order) if name.startswith(begin))


def _counts(words: Iterable[str]) -> str:
    counts = Counter(words).most_common()
    if len(counts) == 1:
        return counts[0][0]
    return ", ".join(f"{word} ({count})" for word, count in counts)


def _ending(ending: str) -> str:
    words = {"done": "nothing: it went on", "killed": "the coordinator's death"}
    return words.get(ending, f"`{ending}`")


def _share(one: dict[str, Any]) -> tuple[str, str]:
    target = "" if one["met"] is None else f"all {one['whole']}"
    return f"{one['part']} of {one['whole']}", target


def _samples(one: dict[str, Any]) -> tuple[str, str]:
    """Return what was measured, and the target."""
    which, limit = one["target"]
    limit = f"<=\N{NO-BREAK SPACE}{_time(limit, one['unit'])}"
    if one["number"] == 1:
        return _time(one["worst"], one["unit"]), limit
    shown = ("median", "p99") if which == "p99" else ("median", "worst")
    values = [f"{name} {_time(one[name], one['unit'])}" for name in shown]
    return ", ".join(values), f"{which} {limit}"


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    middle, worst = _time(statistics.median(values)), _time(max(values))
    return middle if len(values) == 1 else f"{middle}, {worst}"


def _time(value: float, unit: str = "s") -> str:
    rounded = f"{value:.1f}" if value >= 1 else f"{value:.2f}" if value >= 0.1 else f"{value:.1g}"
    return f"{rounded}\N{NO-BREAK SPACE}{unit}" if unit else rounded


def _number(jobs: int) -> str:
    return {1: "one", 2: "two", 3: "three"}.get(jobs, str(jobs))


if __name__ == "__main__":
    for name, table in tables().items():
        print(f"\n{name}\n\n{table}")
    if "--write" in sys.argv[1:]:
        PAGE.write_text(fill_in(PAGE.read_text()))
