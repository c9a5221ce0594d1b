"""How clusters and nodes look at a prompt and in a notebook."""

import html
import itertools
from collections.abc import Sequence

from miniray.cluster import Cluster
from miniray.crew import Crew


def of_cluster(cluster: Crew) -> str:
    """Return a cluster in one line, from what this process knows of it: nobody is asked."""
    hosts = _hosts(cluster)
    places = ", ".join(f"{len([*some])} on {host}" for host, some in itertools.groupby(hosts))
    ranks = f"{len(hosts)} rank{'s' * (len(hosts) != 1)}{f' ({places})' * bool(places)}"
    return f"<{type(cluster).__name__} of {ranks}: {_state(cluster)}>"


def _hosts(cluster: Crew) -> list[str]:
    """Return where each rank is, or will be; who came by himself is where he says that he is."""
    nodes = getattr(cluster, "nodes", None)
    if nodes is None:
        return [worker.host for worker in cluster.workers]
    return [node.host for node in nodes for _ in range(node.num_workers)]


def _state(cluster: Crew) -> str:
    if not cluster.workers:
        return "not started"
    if cluster.group is not None and cluster.group.culprit is not None:
        return _first_line(cluster.group.culprit)
    ended = [worker for worker in cluster.workers if worker.ended is not None]
    work = cluster.whereabouts()["work"] if isinstance(cluster, Cluster) else ""
    running = "ready for calls" if cluster.answers_calls else f"running {work}".strip()
    if not ended:
        return running
    return f"{running}, but {len(ended)} ended, first {_first_line(ended[0].ended)}"


def _first_line(error: Exception | None) -> str:
    """Return what an error says, in short: its kind if it says nothing."""
    return str(error).partition("\n")[0] or type(error).__name__


def of_cluster_in_html(cluster: Crew) -> str:
    """Return a cluster as a small table, a row for each rank."""
    rows = []
    hosts = _hosts(cluster)
    for rank, (host, worker) in enumerate(itertools.zip_longest(hosts, cluster.workers)):
        state, pid = "not started", ""
        if worker is not None:
            state = "open" if worker.ended is None else _first_line(worker.ended)
            pid = str(worker.pid or "")  # another launcher's has none that is known here
        rows.append((str(rank), host or worker.host, pid, state))
    return _table(of_cluster(cluster)[1:-1], ("rank", "node", "pid", "state"), rows)


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def cells(kind: str, row: Sequence[str]) -> str:
        return "".join(f"<{kind}>{html.escape(one)}</{kind}>" for one in row)

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    title = f"<caption>{html.escape(caption)}</caption>"
    return f"<table>{title}<thead><tr>{cells('th', head)}</tr></thead><tbody>{body}</tbody></table>"
