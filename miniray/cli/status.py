"""List the workers of the clusters that run here, or of one server, and how each ended."""

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from miniray.cli import afar
from miniray.cli.common import port_number

STATES = {"T": "stopped", "t": "traced"}
COLUMNS = ("id", "label", "pid", "state", "age", "silent for", "how it ended")

EXAMPLES = """\
examples:
  miniray status                    all nodes of all clusters that run on this machine
  miniray status localhost 10000    a server that was started by hand
  MINIRAY_KEY_FILE=team.key miniray status 10.0.0.5 10000
  miniray status -H node1           all that node1 coordinates, such as a run
                                    that was detached to it

Such a server's key is needed. It takes no worker's place. The status goes in clear, and nobody
can change it on its way, also where a server's workers encrypt.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    add_server(parser)


def add_server(parser: argparse.ArgumentParser) -> None:
    """Add what names one server, or else another host than this, whose clusters it is then."""
    parser.add_argument("host", nargs="?", help="a server's; without it: all clusters here")
    parser.add_argument("port", nargs="?", type=port_number)
    parser.add_argument("--encrypt", "--tls", action="store_true", help="it is one that encrypts")
    afar.add_host(parser)


def find_clusters(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the clusters that run here, or the one server that is named."""
    from miniray.looking import clusters

    if options.host is None:
        return clusters.find_clusters()
    if options.port is None:
        options.command.error("a server is HOST PORT; without both, it is all clusters here")
    return [clusters.by_hand(options.host, options.port, encrypt=options.encrypt)]


def run(options: argparse.Namespace) -> int:
    """Print a table of each server's workers."""
    return afar.show("status", options)


def answer(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a table of each server's workers, and the exit status."""
    from miniray.looking.clusters import describe
    from miniray.looking.look import ask_all

    clusters, problems = find_clusters(options), 0
    if not clusters:
        yield {"say": afar.nobody("status", options), "status": 1}
        return
    for number, cluster in enumerate(clusters):
        if options.host is None:
            yield {"text": "\n" * bool(number) + describe(cluster)}
        # A server that was named and encrypts tells its status in clear, but nothing more.
        request = {"look": "facts"} if options.host is None else {}
        said = ask_all(cluster["nodes"], request)
        for node, status in zip(cluster["nodes"], said, strict=True):
            if isinstance(status, str):
                problems += 1
                place = "" if options.host is not None else f"{node['node']}: "
                yield {"say": f"{place}{status}"}
            else:
                yield {"text": "\n".join(_describe_server(node, status))}
    yield {"status": int(problems > 0)}


def _describe_server(node: Mapping[str, Any], status: Mapping[str, Any]) -> list[str]:
    server = status["server"]
    place = "" if node["node"] == f"{node['host']}:{node['port']}" else f" on {node['node']}"
    at = f"{node['host']}:{node['port']}" if node["port"] else "the end of its tunnel"
    line = (
        f"server{place} at {at}, pid {server['pid']}, "
        f"up for {seconds(server['age_s'])}: {server['workers_running']} of at most "
        f"{server['workers_max']} workers running, {server['workers_started']} started so far"
    )
    workers = [_row(one) for one in status["workers"]]
    return [line, *([format_table([COLUMNS, *workers])] if workers else [])]


def _row(worker: dict[str, Any]) -> tuple[str, ...]:
    return (
        str(worker["id"]),
        worker["name"],
        str(worker["pid"]),
        STATES.get(worker.get("look", {}).get("state"), worker["state"]),
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
