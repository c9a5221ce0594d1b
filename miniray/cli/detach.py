"""Start a run that goes on without this terminal: its coordinator is on its first host, or here."""

import argparse
import contextlib
import ipaddress
import os
import shlex
import sys
from typing import Any

from miniray import MiniRayError, NodeConfig
from miniray.bootstrap import report
from miniray.cli import detached
from miniray.cli.run_plan import Plan
from miniray.faults import Fault
from miniray.node import Node
from miniray.sync import Luggage
from miniray.waiting import deadline_after

ENDING_S = 5.0
NO_OPTIONS = ("run", "parser")  # which every command has, and JSON cannot carry


def detach(options: argparse.Namespace, plan: Plan) -> int:
    """Start the coordinator, say where it is and how to see it again; return 0 if it started."""
    is_here = options.detach_here or (options.hosts is None and options.hostfile is None)
    host = None if is_here else plan.nodes[0].host
    facts: dict[str, Any] = {"command": describe(options), "options": portable(options)}
    try:
        if host is None:
            run = detached.start(facts, os.getcwd())
            answer: dict[str, Any] = {"run": run.id, "problem": detached.why_not_for_long()}
        else:
            facts["options"] |= over_there(options, plan)
            answer = start_over_there(host, facts, options, plan.sync)
    except KeyboardInterrupt:
        say(f"interrupted; {which_runs(host)}")
        return 130
    except (MiniRayError, Fault, OSError, ValueError) as error:
        say(str(error) if host is None else f"{host}: {error}")
        if isinstance(error, TimeoutError):
            say(which_runs(host))
        return 1
    say(f"run {answer['run']} goes on by itself, {'here' if host is None else f'on {host}'}")
    say(f"to see it: {command_line(answer['run'], host, options)}")
    if answer["problem"]:
        say(answer["problem"])
    return 0


def which_runs(host: str | None) -> str:
    """Say how to find out whether a run goes on of which nobody has said so."""
    where = "" if host is None else f" -H {host}"
    return f"whether it has been started tells: miniray attach{where} --list"


def command_line(run_id: str, host: str | None, options: argparse.Namespace) -> str:
    """Return what shows a run again."""
    words = ["miniray", "attach", run_id]
    if host is not None:
        words += ["-H", host, *(f"--ssh-option={one}" for one in options.ssh_option)]
        words += ["--python", options.python] if options.python else []
    return shlex.join(words)


def say(text: str) -> None:
    """Print a line of this command's own."""
    print(f"miniray run: {text}", file=sys.stderr)


def describe(options: argparse.Namespace) -> str:
    """Return the command line, as far as it tells one run from another."""
    where = options.hosts or options.hostfile or options.local
    name = "-H" if options.hosts else "--hostfile" if options.hostfile else "--local"
    words = [*([name, where] if where else []), *(["-m"] if options.module else [])]
    return shlex.join([*words, options.target, *options.arguments])


def portable(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options of the run, as JSON can carry them."""
    given = {name: value for name, value in vars(options).items() if name not in NO_OPTIONS}
    folder = options.log_dir and str(options.log_dir)
    return {**given, "log_dir": folder, "detach": False, "detach_here": False}


def over_there(options: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    """Return the options that are others on another machine, in a copy of the folder."""
    hosts = (
        (f"[{node.host}]" if ":" in node.host else node.host, node.num_workers)
        for node in plan.nodes
    )
    # What the ranks have from here, they have there: first, so that an --env of that name wins.
    names = [*(["OMP_NUM_THREADS"] if "OMP_NUM_THREADS" in os.environ else []), *options.env]
    return {
        "hosts": ",".join(f"{host}:{count}" for host, count in hosts),
        "hostfile": None,
        "per_node": None,
        "sync": plan.sync and ".",
        "target": plan.task["target"],
        "env": [one if "=" in one else f"{one}={os.environ[one]}" for one in names],
    }


def start_over_there(
    host: str, facts: dict[str, Any], options: argparse.Namespace, sync: str | None
) -> dict[str, Any]:
    """Have `begin` started on a host, in a copy of the folder; return what it answers."""
    with Visit(host, options, workdir=options.workdir) as visit:
        return visit.ask("miniray.cli.detach.begin", facts, options.start_timeout, sync)


class Visit:
    """An ssh session with a host, in which one function of ours is called there.

    No agent is forwarded: it would leave with us, and what is there would miss it later.
    """

    def __init__(
        self, host: str, options: argparse.Namespace, *, workdir: str | None = None
    ) -> None:
        config = NodeConfig(
            host,
            python=options.python or "python3",
            workdir=workdir,
            ssh_options=(*options.ssh_option, "-a"),
        )
        self.node = Node(config, host, sys.stderr)

    def ask(
        self, function: str, request: Any, timeout: float, sync: str | None = None
    ) -> dict[str, Any]:
        """Call a function there, and return its first report."""
        luggage = Luggage("miniray.cli.run_rank.run_rank", sync)
        settings = {"work_fn": "", "key": "", "env": {}, "keep": function, "request": request}
        deadline = deadline_after(timeout)
        self.session = self.node.start_session(settings, luggage, deadline)
        return self.next(deadline)

    def next(self, deadline: float) -> dict[str, Any]:
        """Return the next report; raises what it says went wrong."""
        answer = self.session.wait_for_report(deadline, "while it was asked")
        if "error" in answer:
            raise OSError(answer["error"])
        return answer

    def __enter__(self) -> "Visit":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.node.begin_stop(0.0)
        self.node.end(deadline_after(ENDING_S))


def begin(settings: dict[str, Any]) -> str:
    """On the host: start the coordinator, and tell which run it is."""
    facts = settings["request"]
    # The address at which ssh came here, as a node is reached at by default.
    with contextlib.suppress(ValueError, IndexError):  # there is none, or it is "UNKNOWN", say
        connection = os.environ.get("SSH_CONNECTION", "").split()
        facts["options"]["own_address"] = str(ipaddress.ip_address(connection[2]))
    cwd = os.path.expanduser(settings["workdir"] or "~")
    run = detached.start(facts, cwd, settings["folder"])
    report(1, settings, {"run": run.id, "problem": detached.why_not_for_long()})
    return "has started it"
