"""What a command says, here or on another host over ssh: it is asked there in the same way.

Such a command has a function `answer(options)`, which yields what to do with what it sees:
{"text": to print}, {"say": of ours}, {"lines": of a table}, {"status": the last}; {} now and then.
"""

import argparse
import contextlib
import importlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from miniray.errors import MiniRayError

ASK_S = 60.0
SHOWN_MAX = 8
# The first words of a rank's /proc/PID/stat.
FACTS = r"(?P<pid>\d+) \((?P<title>(miniray )?rank (?P<rank>\d+))\) \S (?P<parent>\d+) "
HOW = ("ssh_option", "python")


def add_host(parser: argparse.ArgumentParser) -> None:
    """Add what names another host, and says how to get there."""
    parser.add_argument(
        "-H", "--on", metavar="HOST", help="look on that host, over ssh, and not here"
    )
    parser.add_argument(
        "--ssh-option", action="append", default=[], metavar="OPTION", help="such as -p2222"
    )
    parser.add_argument("--python", help="that host's Python (python3)")


def ask(
    command: str, options: argparse.Namespace, stack: contextlib.ExitStack
) -> Iterator[dict[str, Any]]:
    """Yield what a command answers, here or on the host that is named."""
    if options.on is None:
        yield from importlib.import_module(f"miniray.cli.{command}").answer(options)
        return
    # Only who goes elsewhere needs what goes there.
    from miniray.cli.attach import reach
    from miniray.cli.detach import NO_OPTIONS, Visit
    from miniray.faults import Fault

    way = argparse.Namespace(host=options.on, **{one: getattr(options, one) for one in HOW})
    reach(way)
    given = {name: value for name, value in vars(options).items() if name not in NO_OPTIONS}
    size, is_seen_so = shutil.get_terminal_size(), sys.stdout.isatty() or "COLUMNS" in os.environ
    request = {"command": command, "options": given, "columns": is_seen_so and size.columns}
    try:
        visit = stack.enter_context(Visit(way.host, way))
        yield visit.ask("miniray.cli.afar.serve", request, ASK_S)
        yield from visit.listen()
    except (Fault, ValueError) as error:
        raise OSError(str(error)) from error


def serve(settings: dict[str, Any]) -> str:
    """On the host: report what a command answers, as wide as the terminal is that asks."""
    from miniray.cli.detach import tell

    request = settings["request"]
    if request["columns"]:
        os.environ["COLUMNS"] = str(request["columns"])
    command = importlib.import_module(f"miniray.cli.{request['command']}")
    return tell(settings, command.answer(argparse.Namespace(**request["options"])))


def show(command: str, options: argparse.Namespace) -> int:
    """Print what a command answers; return its exit status."""
    with contextlib.ExitStack() as stack:
        try:
            for one in ask(command, options, stack):
                if "text" in one:
                    print(one["text"], flush=True)
                if "say" in one:
                    say(command, options, one["say"])
                if "status" in one:
                    return int(one["status"])
        except BrokenPipeError:  # whoever reads it, such as `head`, has seen enough
            raise
        except (OSError, MiniRayError) as error:
            say(command, options, str(error))
    return 1


def say(command: str, options: argparse.Namespace, text: str) -> None:
    """Say something of ours, and of where."""
    where = "" if options.on is None else f"{options.on}: "
    print(f"miniray {command}: {where}{text}", file=sys.stderr, flush=True)


def nobody(command: str, options: argparse.Namespace) -> str:
    """Say that no cluster runs; and if ranks do, or runs have gone elsewhere, how to look there."""
    if options.on is not None:
        return f"no cluster runs there, or it still starts{_say_who_runs()}"
    from miniray.cli.elsewhere import recall

    hosts = dict.fromkeys(one["host"] for one in recall())
    others = " or ".join(f"miniray {command} -H {host}" for host in hosts)
    elsewhere = f"; where runs have gone from here: {others}" if others else ""
    return f"no cluster runs on this machine, or it still starts{elsewhere}{_say_who_runs()}"


def _say_who_runs() -> str:
    """Say which ranks this user has here all the same, and how to see where they are."""
    pids = dict(sorted(find_ranks()))
    if not pids:
        return ""
    ranks = ", ".join(f"pid {pid} (rank {rank})" for pid, rank in [*pids.items()][:SHOWN_MAX])
    more = f" and {len(pids) - SHOWN_MAX} more" if len(pids) > SHOWN_MAX else ""
    return (
        f"\nBut ranks do: {ranks}{more}. A Cluster's are looked at where it is coordinated; "
        f"run-rank's and Ray's have no server to ask: py-spy dump --pid {min(pids)}"
    )


def find_ranks() -> Iterator[tuple[int, int]]:
    """Yield the pid and the rank of each process of this user that is a rank by its title."""
    ranks = dict[int, re.Match[str]]()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            # Not its command line: whoever reads that of a process in trouble waits with it.
            facts = re.match(FACTS, path.read_text(errors="replace"))
            if facts and path.stat().st_uid == os.getuid():
                ranks[int(facts["pid"])] = facts
    for pid, facts in ranks.items():
        above = ranks.get(int(facts["parent"]))
        if above is None or above["title"] != facts["title"]:  # no child that a rank has forked
            yield pid, int(facts["rank"])
