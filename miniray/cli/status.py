"""Ask a server which workers it runs, and how those that are gone ended."""

import argparse
import sys
from typing import Any

from miniray.cli.common import port_number

COLUMNS = ("id", "label", "pid", "state", "age", "silent for", "how it ended")

EXAMPLES = """\
examples:
  miniray status localhost 10000
  MINIRAY_KEY_FILE=team.key miniray status 10.0.0.5 10000

It needs the server's key, and takes no worker's place. It goes in clear, and nobody can change
it on its way, also where a server's workers encrypt.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("host")
    parser.add_argument("port", type=port_number)


def run(options: argparse.Namespace) -> int:
    """Print a table of the server's workers."""
    from miniray.connection import server_status
    from miniray.errors import MiniRayError

    try:
        status = server_status(options.host, options.port)
    except (OSError, ValueError, MiniRayError) as error:
        print(f"miniray status: {error}", file=sys.stderr)
        return 1
    server = status["server"]
    print(
        f"server at {options.host}:{options.port}, pid {server['pid']}, "
        f"up for {_seconds(server['age_s'])}: {server['workers_running']} of at most "
        f"{server['workers_max']} workers running, {server['workers_started']} started so far"
    )
    if status["workers"]:
        print(_format_table([COLUMNS, *map(_row, status["workers"])]))
    return 0


def _row(worker: dict[str, Any]) -> tuple[str, ...]:
    return (
        str(worker["id"]),
        worker["name"],
        str(worker["pid"]),
        worker["state"],
        _seconds(worker["age_s"]),
        _seconds(worker["silent_s"]),
        worker["ended"] or "-",
    )


def _seconds(seconds: float | None) -> str:
    """Write a duration as a person would: 8.2s, 3m 20s, 5h 12m."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest:02}s"
    return f"{minutes // 60}h {minutes % 60:02}m"


def _format_table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)
