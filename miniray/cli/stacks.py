"""Say where every rank is, however it hangs, and who of them is behind."""

import argparse
import sys
from typing import Any

from miniray.cli.common import port_number

EXAMPLES = """\
examples:
  miniray stacks                    the clusters that run on this machine
  miniray stacks localhost 10000    a server that somebody has started by hand

Ask from another terminal; it works while the coordinator waits, and while a
rank loops, sleeps, is in a collective, or holds Python's lock in C. A stopped
rank is woken for some milliseconds to say where it is; --no-wake leaves it.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("host", nargs="?", help="a server's; else all clusters of this machine")
    parser.add_argument("port", nargs="?", type=port_number)
    parser.add_argument("--no-wake", action="store_true", help="let stopped ranks alone")


def run(options: argparse.Namespace) -> int:
    """Print a verdict and the stacks of each cluster."""
    from miniray.looking.clusters import find_clusters
    from miniray.looking.look import look_at

    if (options.host is None) != (options.port is None):
        options.parser.error("a server is HOST PORT; without both, all clusters here are asked")
    clusters = find_clusters() if options.host is None else [by_hand(options.host, options.port)]
    if not clusters:
        print("miniray stacks: no cluster runs on this machine", file=sys.stderr)
        return 1
    for number, cluster in enumerate(clusters):
        print("\n" * bool(number) + describe(cluster))
        print(look_at(cluster, wake=not options.no_wake))
    return 0


def by_hand(host: str, port: int) -> dict[str, Any]:
    """Return a server that was started by hand as a cluster of its own."""
    node = {"node": f"{host}:{port}", "host": host, "port": port, "key": "", "ranks": 0}
    return {"work": "", "nodes": [node]}


def describe(cluster: dict[str, Any]) -> str:
    """Return a cluster in one line."""
    nodes = cluster["nodes"]
    if not cluster["work"]:
        return f"the server at {nodes[0]['node']}"
    ranks = sum(node["ranks"] for node in nodes)
    places = ", ".join(f"{node['ranks']} on {node['node']}" for node in nodes)
    return f"{cluster['work']}, pid {cluster['pid']}: {ranks} ranks, {places}"
