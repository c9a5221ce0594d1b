"""Run a script as torchrun does, on many machines at once, from the one where you sit.

The script is unmodified: each rank finds torchrun's whole environment.
"""

import argparse
import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from miniray.cli.detach import detach
from miniray.cli.run_attempts import launch
from miniray.cli.run_hosts import parse_ranks
from miniray.cli.run_plan import make_plan
from miniray.cli.run_screen import Screen

USAGE_ERROR = 2
START_S = 120.0

EXAMPLES = """\
examples:
  miniray run --local 4 train.py --lr 3e-4            four ranks here
  miniray run --local 2x4 --fake-gpus train.py        two "nodes", on the CPU
  miniray run -H node1:4,node2:4 -- train.py          two machines, over ssh
  miniray run --hostfile hosts -m package.train       a module
  miniray run -H gpu1,gpu2 --per-node 8 train.py      eight ranks on each
  miniray run --local 4 check:bandwidth --arg mib=64  a function, on each rank
  miniray run train.py                                in Slurm: by srun
  miniray run -H a:8,b:8 --restarts 3 train.py        all anew after a death
  miniray run -H a:8,b:8 --detach train.py            and close the laptop
  miniray run --local 2x4 --dry-run train.py          only say who runs where

What fails first is named last, with its traceback, and its exit status is the
run's: 128 and the number for a signal. Ctrl-C, or closing the terminal, leaves
nothing running on any machine; a detached run goes on, and its first host has
to hold the keys with which ssh gets to the others: no agent is forwarded.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.usage = "%(prog)s [where] [options] [--] SCRIPT|-m MODULE|MODULE:FUNCTION [ARGUMENT ...]"
    parser.epilog = EXAMPLES
    where = parser.add_argument_group("where (in a Slurm allocation, there)")
    where.add_argument("-H", "--hosts", metavar="HOST:N,...", help="N ranks on each, over ssh")
    where.add_argument("--hostfile", metavar="FILE", help="the same, a line each: node1 slots=4")
    where.add_argument("--local", metavar="N|MxN", help="N ranks here, or M nodes of N ranks")
    where.add_argument(
        "--per-node",
        "--nproc-per-node",
        type=int,
        metavar="N",
        help="ranks on each host that names no number",
    )
    how = parser.add_argument_group("how")
    how.add_argument("-m", "--module", action="store_true", help="as python -m: a module's name")
    how.add_argument("--fake-gpus", action="store_true", help="hide the GPUs: gloo on the CPU")
    how.add_argument("--tunnel", action="store_true", help="open no port of ours: go through ssh")
    how.add_argument(
        "--encrypt", "--tls", action="store_true", help="encrypt what goes from here to ranks"
    )
    how.add_argument("--python", help="the nodes' Python: python3, and this one if they are here")
    how.add_argument(
        "--sync", metavar="DIR", help='give each node a copy of it to run in; over ssh: "."'
    )
    how.add_argument("--workdir", metavar="DIR", help="run in this directory of the nodes' own")
    how.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="set it for all ranks; without a value: the one that it has here",
    )
    how.add_argument(
        "--ssh-option", action="append", default=[], metavar="OPTION", help="such as -p2222"
    )
    how.add_argument("--start-timeout", type=float, default=START_S, metavar="SECONDS")
    again = parser.add_argument_group("after a death")
    again.add_argument(
        "--restarts",
        "--max-restarts",
        type=int,
        default=0,
        metavar="N",
        help="begin all ranks anew when one has died or failed, N times at most",
    )
    again.add_argument(
        "--min-nodes",
        type=int,
        metavar="N",
        help="then go on without nodes that are lost, if N are left; else: all are needed",
    )
    alone = parser.add_argument_group("without you (miniray attach finds it again)")
    alone.add_argument(
        "--detach",
        action="store_true",
        help="go on when this terminal has gone: coordinated by the first host, or here if local",
    )
    alone.add_argument(
        "--detach-here", action="store_true", help="the same, coordinated by this machine"
    )
    shown = parser.add_argument_group("what you see")
    shown.add_argument("--only-rank", metavar="0,4-7", help="show the output of these alone")
    shown.add_argument("--log-dir", type=Path, metavar="DIR", help="a file a rank: rank0.log ...")
    shown.add_argument("--merged-log", action="store_true", help="all in one there, merged.log")
    shown.add_argument("--dry-run", action="store_true", help="say what would run where")
    parser.add_argument("target", metavar="SCRIPT", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def run(options: argparse.Namespace, when_up: Callable[[], None] = lambda: None) -> int:
    """Run it; return the exit status of the rank that failed first, or 0.

    `when_up` is called whenever all ranks are up.
    """
    try:
        plan = make_plan(options)
        only = parse_ranks(options.only_rank, plan.num_ranks) if options.only_rank else None
        if options.merged_log and options.log_dir is None:
            raise ValueError("--merged-log needs a place: --log-dir DIR")
        if options.dry_run:
            print(plan.describe())
            return 0
        if options.detach or options.detach_here:
            return detach(options, plan)
        screen = Screen(options.log_dir, merged=options.merged_log, only_ranks=only)
    except (ValueError, OSError) as error:
        print(f"miniray run: {error}", file=sys.stderr)
        return USAGE_ERROR
    with contextlib.closing(screen):
        try:
            with ended_by_signals(screen):
                return launch(
                    plan,
                    screen,
                    options.start_timeout,
                    fake_gpus=options.fake_gpus,
                    when_up=when_up,
                )
        except KeyboardInterrupt as error:
            number = error.number if isinstance(error, Ended) else signal.SIGINT
            if not screen.is_read:  # as by `head`: there this ends any other command
                number = signal.SIGPIPE
            screen.say(f"ended by {signal.Signals(number).name}; nothing was left running")
            return 128 + number


class Ended(KeyboardInterrupt):
    """A signal asks this process to end: as Ctrl-C does, but for the exit status."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def end_by_sigterm() -> None:
    """Interrupt the main thread, whatever it waits for, from any thread."""
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGTERM)


@contextlib.contextmanager
def ended_by_signals(screen: Screen) -> Iterator[None]:
    """Have SIGTERM, a closed terminal and a reader who leaves end a block as Ctrl-C does.

    Whoever ignores a signal, as nohup does SIGHUP, goes on ignoring it.
    """

    def on_signal(number: int, frame: FrameType | None) -> None:
        raise Ended(number)

    before = {
        number: signal.signal(number, on_signal)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is signal.SIG_DFL
    }
    try:
        screen.when_unread = end_by_sigterm
        yield
    finally:
        screen.when_unread = None
        for number, handler in before.items():
            signal.signal(number, handler)
