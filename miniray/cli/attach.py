"""Find a detached run again: what it has printed and prints, up to its end.

The exit status is the run's own, and 2 if no run was shown. Ctrl-C leaves the run alone.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from miniray import MiniRayError
from miniray.cli.common import INTERRUPTED
from miniray.cli.detach import Visit, command_line, name_place, tell
from miniray.cli.elsewhere import recall
from miniray.cli.run_hosts import parse_hosts
from miniray.cli.runs import ELSEWHERE, RUNNING, Run, all_runs, find_run
from miniray.faults import Fault

USAGE_ERROR = 2
ASK_S = 60.0
STOP_S = 60.0

EXAMPLES = """\
examples:
  miniray run --detach --local 4 train.py   says which run it is
  miniray attach                            the one that runs, or a list of all
  miniray attach 3 --tail 20                run 3, from its last twenty lines on
  miniray attach 3 -H node1                 one that node1 coordinates, over ssh
  miniray attach --list                     all here, and where others went to
  miniray attach 3 --stop                   end it, as Ctrl-C in front of it would

Without a number it takes the run that is under way. If there is none, or more
than one, it lists them and its exit status is 2; that of --list is 0, and that
of --stop as soon as the run has ended. A run that was killed has no exit
status: this command's is then 1. How a host was reached when a run went there
(--python, --ssh-option) is known from then on, here.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("id", nargs="?", metavar="ID", help="its number; else the one that runs")
    parser.add_argument(
        "-H", "--host", metavar="HOST", help="look there, over ssh; of many, on the first"
    )
    parser.add_argument("--list", action="store_true", help="list the runs, also if only one runs")
    parser.add_argument("--tail", type=_count, metavar="N", help="begin with the last N lines")
    parser.add_argument("--stop", action="store_true", help="end the run, and wait for its end")
    parser.add_argument(
        "--ssh-option", action="append", default=[], metavar="OPTION", help="such as -p2222"
    )
    parser.add_argument("--python", help="that host's Python (python3)")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"a number of lines is 0 or more, not {text!r}")
    return int(text)


def run(options: argparse.Namespace) -> int:
    """Show a run; return its exit status."""
    if options.host is not None:
        try:
            reach(options)
        except ValueError as error:
            print(f"miniray attach: {error}", file=sys.stderr)
            return USAGE_ERROR
    request = {name: getattr(options, name) for name in ("id", "list", "tail", "stop", "host")}
    shown = ""
    with contextlib.ExitStack() as stack:
        if options.host is None:
            news = answer(request)
        else:
            news = ask(options.host, request, options, stack)
        try:
            for one in news:
                shown = one.get("run", shown)
                if "text" in one:
                    sys.stdout.buffer.write(one["text"].encode(errors="surrogateescape"))
                    sys.stdout.flush()
                if "say" in one:
                    print(f"miniray attach: {one['say']}", file=sys.stderr)
                if "status" in one:
                    return int(one["status"])
        except KeyboardInterrupt:
            start = "\n" if sys.stderr.isatty() else ""  # after the terminal's own ^C
            again = command_line(shown, options.host, options)
            goes_on = f"run {shown} goes on; to end it: {again} --stop"
            if options.stop:
                goes_on = f"run {shown} may have been told to end; to see it: {again}"
            say = goes_on if shown else "interrupted"
            print(f"{start}miniray attach: {say}", file=sys.stderr)
            return INTERRUPTED
        except BrokenPipeError:  # whoever reads it, such as `head`, has seen enough
            raise
        except (MiniRayError, Fault, OSError, ValueError) as error:
            where = "" if options.host is None else f"{options.host}: "
            alone = f"; run {shown} itself is left alone" if shown else ""
            print(f"miniray attach: {where}{error}{alone}", file=sys.stderr)
            return 1
    return 1


def reach(options: argparse.Namespace) -> None:
    """Take the first of the hosts, without its ranks; and what is known of how to reach it."""
    options.host = parse_hosts(options.host, 1)[0][0]
    gone = [one for one in recall() if one["host"] == options.host]
    if gone and not (options.ssh_option or options.python):
        options.ssh_option, options.python = gone[-1]["ssh_option"], gone[-1]["python"]


def ask(
    host: str, request: dict[str, Any], options: argparse.Namespace, stack: contextlib.ExitStack
) -> Iterator[dict[str, Any]]:
    """Yield what `answer` yields on a host."""
    visit = stack.enter_context(Visit(host, options))
    yield visit.ask("miniray.cli.attach.serve", request, ASK_S)
    yield from visit.listen()


def serve(settings: dict[str, Any]) -> str:
    """On the host: report what `answer` yields."""
    return tell(settings, answer(settings["request"]))


def answer(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield, for one request, what to print, and in the end the exit status.

    {"text": of the run}, {"say": of ours}, {"run": its id}, {"status": the last}; {} now and then.
    """
    running = [one for one in all_runs() if one.state() == RUNNING]
    host = request["host"]
    if request["list"] and not request["stop"]:
        yield {"text": list_runs(all_runs(), host), "status": 0}
        return
    if request["list"] or (request["id"] is None and len(running) != 1):
        number = f"{len(running)} are" if running else "none is"
        problem = f"{number} under way {name_place(host)}; which one? miniray attach ID"
        if request["stop"]:
            problem = "nothing was ended: say which one, miniray attach ID --stop"
        yield {"text": list_runs(all_runs(), host), "say": problem, "status": USAGE_ERROR}
        return
    try:
        found = running[0] if request["id"] is None else find_run(request["id"])
    except ValueError as error:
        others = [] if host else [one for one in recall() if one["id"] == request["id"]]
        hints = [f"; one of that number has gone to {one['host']}: {see(one)}" for one in others]
        yield {"say": str(error) + "".join(hints), "status": USAGE_ERROR}
        return
    yield {"run": found.id}
    if (state := found.state()).startswith(f"{ELSEWHERE} "):
        host = found.facts()["host"]
        say = f"run {found.id} is {state}, and only there it can be seen and ended: "
        yield {"say": f"{say}miniray attach {found.id} -H {host}", "status": 1}
        return
    yield from (stop(found) if request["stop"] else follow(found, request["tail"]))


def follow(run: Run, tail: int | None) -> Iterator[dict[str, Any]]:
    """Yield what a run prints, and in the end how it ended."""
    for data in run.follow(tail=tail):
        yield {"text": data.decode(errors="surrogateescape")} if data else {}
    status = run.status()
    if status is None:
        yield {"say": f"run {run.id} {run.state()}: it has no exit status"}
    yield {"status": 1 if status is None else status}


def stop(run: Run) -> Iterator[dict[str, Any]]:
    """End a run, and yield what it still prints."""
    if not run.interrupt():
        yield {"say": f"run {run.id} runs no more: {run.state()}", "status": 0}
        return
    began = time.monotonic()
    for data in run.follow(tail=0):
        yield {"text": data.decode(errors="surrogateescape")} if data else {}
        if time.monotonic() - began > STOP_S:
            pid = run.pid()
            yield {"say": f"run {run.id} has not ended in {STOP_S:.0f} s; kill -9 {pid} will do"}
            yield {"status": 1}
            return
    yield {"say": f"run {run.id} has ended: {run.state()}", "status": 0}


def list_runs(runs: list[Run], host: str | None) -> str:
    """Return a table of runs: which, since when, how they are, what they run.

    Here also of those that have gone to other hosts from here, host by host.
    """
    rows = [("id", "began", "state", "command")]
    for one in runs:
        facts = one.facts()
        rows.append((one.id, tell_time(facts["began"]), one.state(), facts["command"]))
    text = format_table(rows) if runs else f"no run is detached {name_place(host)}\n"
    return text if host else text + list_elsewhere()


def list_elsewhere() -> str:
    """Return a table for each host to which runs have gone from here; it alone knows more."""
    text, gone = "", recall()
    for host in dict.fromkeys(one["host"] for one in gone):
        there = [one for one in gone if one["host"] == host]
        ask = command_line("--list", host, argparse.Namespace(**there[-1]))
        rows = [("id", "began", "command")]
        rows += [(one["id"], tell_time(one["began"]), one["command"]) for one in there]
        text += f"\ndetached from here to {host}; how they are, says: {ask}\n{format_table(rows)}"
    return text


def see(gone: dict[str, Any]) -> str:
    """Return what shows a run that has gone to another host."""
    return command_line(gone["id"], gone["host"], argparse.Namespace(**gone))


def tell_time(seconds: float) -> str:
    """Return a time of time.time() as a clock on the wall has it."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def format_table(rows: Sequence[tuple[str, ...]]) -> str:
    """Return rows as lines, one column below the other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join("  ".join(map(str.ljust, row, widths)).rstrip() + "\n" for row in rows)
