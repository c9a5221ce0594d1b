"""Which nodes a Slurm allocation has, and how srun starts something on one of them."""

import re
import socket
from collections.abc import Mapping

from miniray.cli.run_hosts import Hosts

NODES_MAX = 100_000


def is_allocated(environ: Mapping[str, str]) -> bool:
    """Return whether this process runs inside an allocation."""
    return bool(_nodelist(environ))


def read_allocation(environ: Mapping[str, str], per_node: int | None) -> Hosts:
    """Return the allocation's nodes, each with its tasks or with `per_node` ranks."""
    names = expand_nodelist(_nodelist(environ))
    if per_node is not None:
        return [(name, per_node) for name in names]
    variable = next(
        (one for one in ("SLURM_NTASKS_PER_NODE", "SLURM_TASKS_PER_NODE") if environ.get(one)), None
    )
    if variable is None:
        raise ValueError(
            "this allocation does not say how many ranks a node has; ask for --ntasks-per-node, "
            "or name the number here: --per-node 4"
        )
    counts = expand_tasks(environ[variable])
    if len(counts) == 1:
        counts *= len(names)
    if len(counts) != len(names):
        raise ValueError(
            f"{variable}={environ[variable]} is for {len(counts)} nodes, and the allocation has "
            f"{len(names)}; name the number here: --per-node 4"
        )
    return list(zip(names, counts, strict=True))


def _nodelist(environ: Mapping[str, str]) -> str:
    return environ.get("SLURM_JOB_NODELIST") or environ.get("SLURM_NODELIST") or ""


def expand_nodelist(text: str) -> list[str]:
    """Return the names that Slurm abbreviates.

    >>> expand_nodelist("node[1-2,07],login")
    ['node1', 'node2', 'node07', 'login']
    """
    parts = re.findall(r"(?:\[[^\[\]]*\]|[^\[\],])+", text)
    if not parts or ",".join(parts) != text:
        raise ValueError(f"cannot read the node list {text!r}; name the hosts: -H node1:4,node2:4")
    return [name for part in parts for name in _expand(part)]


def _expand(name: str) -> list[str]:
    before, bracket, rest = name.partition("[")
    if not bracket:
        return [name]
    inner, _, after = rest.partition("]")
    names: list[str] = []
    for piece in inner.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", piece)
        if match is None or int(match[2] or match[1]) - int(match[1]) not in range(NODES_MAX):
            raise ValueError(f"cannot read [{inner}] in the node list's {name!r}")
        for number in range(int(match[1]), int(match[2] or match[1]) + 1):
            # 08-11 is as wide in every name.
            names += [f"{before}{number:0{len(match[1])}}{end}" for end in _expand(after)]
    return names


def expand_tasks(text: str) -> list[int]:
    """Return the number of tasks of each node.

    >>> expand_tasks("4(x2),3")
    [4, 4, 3]
    """
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,6})(?:\(x(\d{1,6})\))?", part.strip())
        if match is None or not int(match[1]):
            raise ValueError(
                f"cannot read the tasks per node {text!r}; name the number: --per-node 4"
            )
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def launcher(host: str) -> tuple[str, ...]:
    """Return the command that runs a shell line on one node, beside whatever runs there."""
    return ("srun", "--overlap", "--nodes=1", "--ntasks=1", "-w", host, "sh", "-c")


def addresses(hosts: list[str]) -> list[str]:
    """Return where each node is reached from the others; raises ValueError if that is unknown.

    On some systems a machine knows itself by 127.0.1.1, which is nobody else's way to it.
    """
    found: list[str] = []
    for host in hosts:
        try:
            found.append(socket.gethostbyname(host))
        except OSError as error:
            raise ValueError(
                f"cannot look up the address of {host}, which Slurm names: {error.strerror}"
            ) from error
    others = [address for address in found if not address.startswith("127.")]
    if not others:
        return found
    return [_towards(others[0]) if one.startswith("127.") else one for one in found]


def _towards(address: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))  # sends nothing: it only looks the route up
        return str(probe.getsockname()[0])
