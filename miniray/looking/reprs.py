"""How clusters and nodes look at a prompt and in a notebook."""

import contextlib
import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from miniray.crew import Crew
    from miniray.node_config import NodeConfig


def of_cluster(cluster: "Crew") -> str:
    """Return a cluster in one line, from what this process knows of it: nobody is asked."""
    return f"<{type(cluster).__name__} {_places(cluster)}: {_state(cluster)}>"


def _nodes(cluster: "Crew") -> "Sequence[NodeConfig]":
    """Return a cluster's nodes; one whose ranks come to it knows of none."""
    return getattr(cluster, "nodes", ())


def _places(cluster: "Crew") -> str:
    nodes = _nodes(cluster)
    ranks = sum(node.num_workers for node in nodes) if nodes else len(cluster.workers)
    places = ", ".join(f"{node.num_workers} on {node.host}" for node in nodes)
    return f"of {ranks} rank{'s' * (ranks != 1)}" + (f" ({places})" if places else "")


def _state(cluster: "Crew") -> str:
    if not cluster.workers:
        return "not started"
    if cluster.group is not None and cluster.group.culprit is not None:
        return str(cluster.group.culprit).partition("\n")[0]
    ended = [worker for worker in cluster.workers if worker.ended is not None]
    work = "ready for calls" if cluster.answers_calls else "running"
    with contextlib.suppress(RuntimeError):  # another launcher's ranks are nowhere to be asked
        work += "" if cluster.answers_calls else f" {cluster.whereabouts()['work']}"
    if not ended:
        return work
    return f"{work}, but {len(ended)} ended, first {_first_line(ended[0].ended)}"


def _first_line(error: BaseException | None) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def of_cluster_in_html(cluster: "Crew") -> str:
    """Return a cluster as a small table, a row for each rank."""
    workers = list(cluster.workers)
    hosts = [node.host for node in _nodes(cluster) for _ in range(node.num_workers)]
    rows = []
    for rank, host in enumerate(hosts or [""] * len(workers)):
        worker = workers[rank] if rank < len(workers) else None
        state = "not started" if worker is None else "open"
        if worker is not None and worker.ended is not None:
            state = _first_line(worker.ended)
        rows.append((str(rank), host, "" if worker is None else str(worker.pid), state))
    return _table(of_cluster(cluster)[1:-1], ("rank", "node", "pid", "state"), rows)


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def cells(kind: str, row: Sequence[str]) -> str:
        return "".join(f"<{kind}>{html.escape(one)}</{kind}>" for one in row)

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    title = f"<caption>{html.escape(caption)}</caption>"
    return f"<table>{title}<thead><tr>{cells('th', head)}</tr></thead><tbody>{body}</tbody></table>"
