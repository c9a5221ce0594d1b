"""See how all ranks are without asking them where: what `miniray top` shows, again and again."""

from collections.abc import Mapping, Sequence
from typing import Any

from miniray.looking.look import ask_all, put_together
from miniray.looking.seen import Seen

COLUMNS = ("rank", "node", "pid", "state", "CPU", "memory", "GPU", "sent", "received")
_STATES = {"T": "stopped", "t": "traced", "D": "disk", "Z": "ended"}


class Glances:
    """One cluster, looked at again and again; CPU use is that since the last time."""

    def __init__(self) -> None:
        self._nodes: object = None
        self._before: Sequence[dict[str, Any] | str] = ()

    def take(self, cluster: Mapping[str, Any]) -> list[Seen]:
        """Return how all ranks are now; after a restart its nodes may be others."""
        nodes = cluster["nodes"]
        now = ask_all(nodes, {"look": "facts"})
        seen = put_together(nodes, self._before if nodes == self._nodes else now, now)
        self._nodes, self._before = nodes, now
        return seen


def as_row(one: Seen) -> tuple[str, ...]:
    """Return one rank in words for a table."""
    facts = one.facts
    name = str(one.rank) if one.rank is not None else one.name
    if one.problem:
        return (name, one.node, "-", "lost", *("-",) * 5)
    sent = _transfer(facts.get("sent_bytes"), facts.get("sent_s_ago"))
    received = _transfer(facts.get("received_bytes"), facts.get("received_s_ago"))
    percent = "-" if one.cpu_percent is None else f"{one.cpu_percent:.0f}%"
    memory = in_words(facts.get("memory_bytes"))
    return (
        name,
        one.node,
        str(one.pid),
        state_of(one),
        percent,
        memory,
        _gpu(facts),
        sent,
        received,
    )


def state_of(one: Seen) -> str:
    """Return in a word whether a rank runs, waits, is stopped or has ended."""
    if one.problem:
        return "lost"
    if one.row.get("state") == "ended":
        return "returned" if one.row.get("exit_code") == 0 else "died"
    return _STATES.get(one.facts.get("state", ""), "runs" if one.is_busy else "waits")


def _gpu(facts: Mapping[str, Any]) -> str:
    if gpu := facts.get("gpu"):
        busy = "" if gpu["percent"] is None else f" {gpu['percent']}%"
        used, total = (
            in_words(None if one is None else one << 20)
            for one in (gpu["used_mib"], gpu["total_mib"])
        )
        return f"{gpu['index']}:{busy} {used} of {total}"
    used_bytes, limit_bytes = facts.get("fake_gpu_bytes") or (0, 0)
    return f"fake: {in_words(used_bytes)} of {in_words(limit_bytes)}" if limit_bytes else "-"


def _transfer(nbytes: int | None, ago_s: float | None) -> str:
    if ago_s is None:
        return "-"
    count = "" if nbytes is None else f"{in_words(nbytes)}, "
    return f"{count}{duration(ago_s)} ago"


def in_words(nbytes: int | None) -> str:
    """Return a number of bytes as a person would write it: 312 MiB."""
    if nbytes is None:
        return "-"
    size, units = float(nbytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.0f} {units[0]}" if size >= 10 or units[0] == "B" else f"{size:.1f} {units[0]}"


def duration(seconds: float) -> str:
    """Return a duration as a person would write it: 8 s, 3 min, 5 h."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
