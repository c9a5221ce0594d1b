"""How clusters and nodes look at a prompt and in a notebook."""

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from miniray.cluster import Cluster
    from miniray.node_config import NodeConfig


def of_cluster(cluster: "Cluster") -> str:
    """Return a cluster in one line, from what this process knows of it: nobody is asked."""
    return f"<{type(cluster).__name__} {_places(cluster.nodes)}: {_state(cluster)}>"


def _places(nodes: "Sequence[NodeConfig]") -> str:
    ranks = sum(node.num_workers for node in nodes)
    places = ", ".join(f"{node.num_workers} on {node.host}" for node in nodes)
    return f"of {ranks} rank{'s' * (ranks != 1)} ({places})"


def _state(cluster: "Cluster") -> str:
    if not cluster.workers:
        return "not started"
    if cluster.group is not None and cluster.group.culprit is not None:
        return str(cluster.group.culprit).partition("\n")[0]
    ended = [worker for worker in cluster.workers if worker.ended is not None]
    work = f"running {cluster.whereabouts()['work']}"
    if not ended:
        return work
    return f"{work}, but {len(ended)} ended, first {ended[0].ended}".partition("\n")[0]


def of_cluster_in_html(cluster: "Cluster") -> str:
    """Return a cluster as a small table, a row for each rank."""
    workers = list(cluster.workers)
    rows, rank = [], 0
    for node in cluster.nodes:
        for _ in range(node.num_workers):
            worker = workers[rank] if rank < len(workers) else None
            state = "not started" if worker is None else str(worker.ended or "open").splitlines()[0]
            pid = "" if worker is None else str(worker.pid)
            rows.append((str(rank), node.host, pid, state))
            rank += 1
    return _table(of_cluster(cluster)[1:-1], ("rank", "node", "pid", "state"), rows)


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def cells(kind: str, row: Sequence[str]) -> str:
        return "".join(f"<{kind}>{html.escape(one)}</{kind}>" for one in row)

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    title = f"<caption>{html.escape(caption)}</caption>"
    return f"<table>{title}<thead><tr>{cells('th', head)}</tr></thead><tbody>{body}</tbody></table>"
