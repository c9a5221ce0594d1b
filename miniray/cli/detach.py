"""Start a run that goes on without this terminal: its coordinator is on its first host, or here."""

import argparse
import contextlib
import ipaddress
import math
import os
import select
import shlex
import signal
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from miniray import MiniRayError, NodeConfig
from miniray.bootstrap import SILENCE_MAX_S, report
from miniray.cli import detached
from miniray.cli.common import INTERRUPTED
from miniray.cli.elsewhere import remember
from miniray.cli.run_plan import Plan
from miniray.cli.run_screen import Screen
from miniray.faults import Fault
from miniray.node import Node
from miniray.sync import Luggage
from miniray.waiting import deadline_after

ENDING_S = 5.0
NO_OPTIONS = ("run", "parser", "command")  # which every command has, and JSON cannot carry


def detach(options: argparse.Namespace, plan: Plan) -> int:
    """Start the coordinator, and say where it is, and how to see it again, once its ranks are up.

    Returns 0; if it has failed by then, its exit status.
    """
    is_here = options.detach_here or (options.hosts is None and options.hostfile is None)
    host = None if is_here else plan.nodes[0].host
    facts: dict[str, Any] = {"command": describe(options), "options": portable(options)}
    screen, first, last = Screen(), dict[str, Any](), dict[str, Any]()
    with contextlib.ExitStack() as stack:
        try:
            if host is None:
                news = detached.begin(facts, os.getcwd())
            else:
                facts["options"] |= over_there(options, plan)
                news = begin_over_there(host, facts, options, plan.sync, stack)
            first = next(news)
            if host is not None:
                how = {"ssh_option": options.ssh_option, "python": options.python}
                with contextlib.suppress(OSError):  # a full disk: the run goes on all the same
                    remember(host, first["run"], facts["command"], **how)
            with screen.progress(f"run {first['run']} begins, {name_place(host)}"):
                for last in news:
                    if last.get("text"):
                        screen.show(last["text"].removesuffix("\n"))
                    if "is_up" in last:
                        break
        except KeyboardInterrupt:
            if first:
                end = command_line(first["run"], host, options)
                screen.say(f"run {first['run']} goes on; to see it: {end}; to end it: {end} --stop")
            else:
                screen.say(f"interrupted; {which_runs(host, options)}")
            return INTERRUPTED
        except (MiniRayError, Fault, OSError, ValueError) as error:
            screen.say(str(error) if host is None else f"{host}: {error}", is_bad=True)
            if first:
                screen.say(f"how it is there, says: {command_line(first['run'], host, options)}")
            elif isinstance(error, TimeoutError):
                screen.say(which_runs(host, options))
            return 1
    return conclude(first, last, host, options, screen)


def conclude(
    first: dict[str, Any],
    last: dict[str, Any],
    host: str | None,
    options: argparse.Namespace,
    screen: Screen,
) -> int:
    """Say whether a run goes on; return 0 if it does, and else its exit status."""
    name = f"run {first['run']}"
    if not last["is_up"] and last["is_over"]:
        screen.say(f"{name} has ended before its ranks were up", is_bad=True)
        return last["status"] or 1
    if not last["is_up"]:
        screen.say(f"the ranks of {name} are not up yet; nobody waits for them here any longer")
    screen.say(f"{name} goes on by itself, {name_place(host)}")
    screen.say(f"to see it: {command_line(first['run'], host, options)}")
    if first["problem"]:
        screen.say(first["problem"])
    return 0


def which_runs(host: str | None, options: argparse.Namespace) -> str:
    """Say how to find out whether a run goes on of which nobody has said so."""
    return f"whether it has been started tells: {command_line('--list', host, options)}"


def name_place(host: str | None) -> str:
    """Return where a coordinator is."""
    return "here" if host is None else f"on {host}"


def command_line(run_id: str, host: str | None, options: argparse.Namespace) -> str:
    """Return what shows a run again."""
    words = ["miniray", "attach", run_id]
    if host is not None:
        words += ["-H", host, *(f"--ssh-option={one}" for one in options.ssh_option)]
        words += ["--python", options.python] if options.python else []
    return shlex.join(words)


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


def begin_over_there(
    host: str,
    facts: dict[str, Any],
    options: argparse.Namespace,
    sync: str | None,
    stack: contextlib.ExitStack,
) -> Iterator[dict[str, Any]]:
    """Have a run begun on a host, in a copy of the folder; yield what `detached.begin` yields."""
    visit = stack.enter_context(Visit(host, options, workdir=options.workdir))
    yield visit.ask("miniray.cli.detach.begin", facts, options.start_timeout, sync)
    yield from visit.listen()


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

    def listen(self) -> Iterator[dict[str, Any]]:
        """Yield all reports that come after the first."""
        self.session.hold_lease()
        while True:
            yield self.next(math.inf)

    def __enter__(self) -> "Visit":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.node.begin_stop(0.0)
        self.node.end(deadline_after(ENDING_S))


def begin(settings: dict[str, Any]) -> str:
    """On the host: start the coordinator, and tell what comes of it."""
    facts = settings["request"]
    # The address at which ssh came here, as a node is reached at by default.
    with contextlib.suppress(ValueError, IndexError):  # there is none, or it is "UNKNOWN", say
        connection = os.environ.get("SSH_CONNECTION", "").split()
        facts["options"]["own_address"] = str(ipaddress.ip_address(connection[2]))
    cwd = os.path.expanduser(settings["workdir"] or "~")
    news = detached.begin(facts, cwd, settings["folder"])
    report(1, settings, next(news))  # up to here nobody's heart beats
    return tell(settings, news)


def tell(settings: dict[str, Any], news: Iterable[dict[str, Any]]) -> str:
    """On a host: report each of the news, as long as somebody is there to read it."""

    def listen(number: int = 0, frame: object = None) -> None:
        if select.select([0], [], [], 0.0)[0]:
            said = os.read(0, 4096)
            if not said or said.strip():
                sys.exit()  # nobody is there any more
            signal.alarm(SILENCE_MAX_S)  # it was a heartbeat
        elif number:
            sys.exit()  # there was none for so long

    signal.signal(signal.SIGALRM, listen)  # also while it writes, and nobody takes it
    signal.alarm(SILENCE_MAX_S)
    for one in news:
        if one:
            report(1, settings, one)
        listen()
    signal.alarm(0)
    return "has answered"
