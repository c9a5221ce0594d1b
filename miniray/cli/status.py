"""List the workers of the clusters that run here, or of one server, and how each ended."""

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from miniray.cli.common import port_number

COLUMNS = ("id", "label", "pid", "state", "age", "silent for", "how it ended")

EXAMPLES = """\
examples:
  miniray status                    all nodes of all clusters that run on this machine
  miniray status localhost 10000    a server that was started by hand
  MINIRAY_KEY_FILE=team.key miniray status 10.0.0.5 10000

Such a server's key is needed. It takes no worker's place. The status goes in clear, and nobody
can change it on its way, also where a server's workers encrypt.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    add_server(parser)


def add_server(parser: argparse.ArgumentParser) -> None:
    """Add what names one server; without it, it is all clusters of this machine."""
    parser.add_argument("host", nargs="?", help="a server's; without it: all clusters here")
    parser.add_argument("port", nargs="?", type=port_number)
    parser.add_argument("--encrypt", "--tls", action="store_true", help="it is one that encrypts")


def find_clusters(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the clusters that run here, or the one server that is named."""
    from miniray.looking import clusters

    if options.host is None:
        return clusters.find_clusters()
    if options.port is None:
        options.parser.error("a server is HOST PORT; without both, it is all clusters here")
    return [clusters.by_hand(options.host, options.port, encrypt=options.encrypt)]


def run(options: argparse.Namespace) -> int:
    """Print a table of each server's workers."""
    from miniray.looking.clusters import describe
    from miniray.looking.look import ask_all

    clusters, problems = find_clusters(options), 0
    if not clusters:
        print("miniray status: no cluster runs on this machine", file=sys.stderr)
        return 1
    for number, cluster in enumerate(clusters):
        if options.host is None:
            print("\n" * bool(number) + describe(cluster))
        for node, status in zip(cluster["nodes"], ask_all(cluster["nodes"], {}), strict=True):
            if isinstance(status, str):
                problems += 1
                place = "" if options.host is not None else f"{node['node']}: "
                print(f"miniray status: {place}{status}", file=sys.stderr)
            else:
                _print_server(node, status)
    return int(problems > 0)


def _print_server(node: Mapping[str, Any], status: Mapping[str, Any]) -> None:
    server = status["server"]
    place = "" if node["node"] == f"{node['host']}:{node['port']}" else f" on {node['node']}"
    at = f"{node['host']}:{node['port']}" if node["port"] else "the end of its tunnel"
    print(
        f"server{place} at {at}, pid {server['pid']}, "
        f"up for {seconds(server['age_s'])}: {server['workers_running']} of at most "
        f"{server['workers_max']} workers running, {server['workers_started']} started so far"
    )
    if status["workers"]:
        print(format_table([COLUMNS, *map(_row, status["workers"])]))


def _row(worker: dict[str, Any]) -> tuple[str, ...]:
    return (
        str(worker["id"]),
        worker["name"],
        str(worker["pid"]),
        worker["state"],
        seconds(worker["age_s"]),
        seconds(worker["silent_s"]),
        worker["ended"] or "-",
    )


def seconds(duration: float | None) -> str:
    """Write a duration as a person would: 8.2s, 3m 20s, 5h 12m."""
    if duration is None:
        return "-"
    if duration < 60:
        return f"{duration:.1f}s"
    minutes, rest = divmod(int(duration), 60)
    if minutes < 60:
        return f"{minutes}m {rest:02}s"
    return f"{minutes // 60}h {minutes % 60:02}m"


def format_table(rows: list[tuple[str, ...]]) -> str:
    """Return rows with their columns one below the other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)
