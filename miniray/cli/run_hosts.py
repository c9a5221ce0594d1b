"""Which machines a run is on, and how many ranks each has: from the command line or a file."""

import re
from pathlib import Path

Hosts = list[tuple[str, int]]

_SLOTS = re.compile(r"(.+):([^:\]]*)")


def parse_hosts(text: str, per_node: int | None) -> Hosts:
    """Read "node1:4,node2:4"; who names no number has `per_node` ranks.

    An IPv6 address with a number stands in brackets: "[fd77::1]:4".
    """
    hosts = [_parse_host(one.strip(), per_node) for one in text.split(",") if one.strip()]
    if not hosts:
        raise ValueError(f"-H {text!r} names no host; write -H node1:4,node2:4")
    return hosts


def name_host(host: str, count: int) -> str:
    """Return a host as `parse_hosts` reads it."""
    return f"[{host}]:{count}" if ":" in host else f"{host}:{count}"


def _parse_host(text: str, per_node: int | None) -> tuple[str, int]:
    match = _SLOTS.fullmatch(text)
    is_address = text.count(":") > 1 and not text.startswith("[")
    if match is None or is_address:
        return _bare(text), _default(text, per_node)
    return _bare(match[1]), _count(match[2], f"{text!r}")


def _bare(host: str) -> str:
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def _default(host: str, per_node: int | None) -> int:
    if per_node is None:
        raise ValueError(
            f"how many ranks on {host}? write {host}:4, or --per-node 4 for every host"
        )
    return per_node


def _count(text: str, where: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,5}", text):
        raise ValueError(
            f"{where}: the number of ranks must be a whole number from 1 up, got {text!r}"
        )
    return int(text)


def read_hostfile(path: str, per_node: int | None) -> Hosts:
    """Read a file with a host a line, "node1 slots=4", as mpirun's; "#" begins a comment."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError as error:
        raise ValueError(f"cannot read the hostfile {path}: {error.strerror}") from error
    hosts: Hosts = []
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        slots = [word.partition("=")[2] for word in words[1:] if word.startswith("slots=")]
        others = [word for word in words[1:] if not re.match("(slots|max[-_]slots)=", word)]
        if others or len(slots) > 1:
            raise ValueError(f"{path}:{number}: {line.strip()!r} is not like: node1 slots=4")
        if slots:
            hosts.append((_bare(words[0]), _count(slots[0], f"{path}:{number}")))
        else:
            hosts.append(_parse_host(words[0], per_node))
    if not hosts:
        raise ValueError(f"{path} names no host; write a line for each: node1 slots=4")
    return hosts


def parse_local(text: str) -> Hosts:
    """Read "4", which is four ranks here, or "2x4": two "nodes" of four."""
    match = re.fullmatch(r"(?:([^x]*)x)?([^x]*)", text)
    if match is None:
        raise ValueError(
            f"--local is a number of ranks or NODESxRANKS, like 4 or 2x4, not {text!r}"
        )
    count = _count(match[2], f"--local {text}")
    if match[1] is None:
        return [("local", count)]
    nodes = _count(match[1], f"--local {text}")
    return [(f"node{number}", count) for number in range(1, nodes + 1)]


def parse_ranks(text: str, count: int) -> set[int]:
    """Read "0,4-7" as some of `count` ranks."""
    ranks: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ValueError(f"ranks are written like 0,4-7, not {text!r}")
        ranks.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    if max(ranks) >= count:
        raise ValueError(f"there is no rank {max(ranks)}: they are 0 to {count - 1}")
    return ranks
