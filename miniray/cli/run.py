"""Run a script as torchrun does, on many machines at once, from the one where you sit.

The script is unmodified: each rank finds torchrun's whole environment.
"""

import argparse
import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TextIO, cast

from miniray import Cluster, MiniRayError, RemoteWorker, WorkerError, WorkerExited, wait
from miniray.cli.run_hosts import parse_ranks
from miniray.cli.run_plan import Plan, make_plan
from miniray.cli.run_screen import Screen
from miniray.cli.run_verdict import Verdict, find_verdict

USAGE_ERROR = 2
START_S = 120.0

EXAMPLES = """\
examples:
  miniray run --local 4 train.py --lr 3e-4            four ranks on this machine
  miniray run --local 2x4 --fake-gpus train.py        two "nodes" of four, on the CPU
  miniray run -H node1:4,node2:4 -- train.py          two machines that ssh reaches
  miniray run --hostfile hosts -m package.train       a module; a line a host: node1 slots=4
  miniray run -H gpu1,gpu2 --per-node 8 train.py      eight ranks on each
  miniray run --local 4 check:bandwidth --arg mib=64  a function of a module, called on each rank
  miniray run train.py                                in a Slurm allocation: srun starts it there
  miniray run --local 2x4 --dry-run train.py          only say which rank would be where

What fails first is named last, with its traceback, and its exit status is the run's: 128 and the
number for a signal. Ctrl-C, or closing the terminal, leaves nothing running on any machine.
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
    how.add_argument("--encrypt", action="store_true", help="encrypt what goes from here to ranks")
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
    shown = parser.add_argument_group("what you see")
    shown.add_argument("--only-rank", metavar="0,4-7", help="show the output of these alone")
    shown.add_argument("--log-dir", type=Path, metavar="DIR", help="a file a rank: rank0.log ...")
    shown.add_argument("--merged-log", action="store_true", help="all in one there, merged.log")
    shown.add_argument("--dry-run", action="store_true", help="say what would run where")
    parser.add_argument("target", metavar="SCRIPT", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def run(options: argparse.Namespace) -> int:
    """Run it; return the exit status of the rank that failed first, or 0."""
    try:
        plan = make_plan(options)
        only = parse_ranks(options.only_rank, plan.num_ranks) if options.only_rank else None
        if options.merged_log and options.log_dir is None:
            raise ValueError("--merged-log needs a place: --log-dir DIR")
        if options.dry_run:
            print(plan.describe())
            return 0
        screen = Screen(options.log_dir, merged=options.merged_log, only_ranks=only)
    except (ValueError, OSError) as error:
        print(f"miniray run: {error}", file=sys.stderr)
        return USAGE_ERROR
    with contextlib.closing(screen):
        try:
            with ended_by_signals():
                return launch(plan, screen, options.start_timeout, fake_gpus=options.fake_gpus)
        except KeyboardInterrupt as error:
            number = error.number if isinstance(error, Ended) else signal.SIGINT
            screen.say(f"ended by {signal.Signals(number).name}; nothing was left running")
            return 128 + number


class Ended(KeyboardInterrupt):
    """A signal asks this process to end: as Ctrl-C does, but for the exit status."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Have SIGTERM, and SIGHUP of a closed terminal, end a block as Ctrl-C does.

    Whoever ignores one of them, as nohup does, goes on ignoring it.
    """

    def on_signal(number: int, frame: FrameType | None) -> None:
        raise Ended(number)

    before = {
        number: signal.signal(number, on_signal)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is signal.SIG_DFL
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def launch(plan: Plan, screen: Screen, start_timeout: float, *, fake_gpus: bool = False) -> int:
    """Start all ranks, wait for their end, leave nothing, and say how it went."""
    began = time.monotonic()
    ranks = f"{plan.num_ranks} ranks" if plan.num_ranks > 1 else "1 rank"
    places = ", ".join(f"{node.num_workers} on {node.host}" for node in plan.nodes)
    verdict: Verdict | None = None
    log = cast(TextIO, screen)  # it is one, as far as a cluster goes
    cluster = Cluster(
        plan.nodes,
        fake_gpus=fake_gpus,
        start_timeout=start_timeout,
        log=log,
        sync=plan.sync,
    )
    try:
        with cluster:
            try:
                with screen.progress(f"starting {ranks}: {places}"):
                    workers = send_tasks(cluster, plan.task)
                screen.say(f"{ranks} up after {time.monotonic() - began:.1f} s: {places}")
                verdict = wait_for_all(workers, screen)
            except KeyboardInterrupt:
                if sys.stderr.isatty():
                    screen.show("")  # after the terminal's own ^C
                screen.say("ending all ranks; once more kills them at once")
                raise
    except (MiniRayError, OSError, ValueError) as error:
        screen.say(str(error), is_bad=True)
        return 1
    seconds = time.monotonic() - began
    if verdict is None:
        screen.say(f"{ranks} ended well after {seconds:.1f} s")
        return 0
    report(verdict, screen)
    return verdict.status


def send_tasks(cluster: Cluster, task: dict[str, Any]) -> list[RemoteWorker]:
    """Start the workers, and tell each its place and what to run."""
    workers = cluster.start("miniray.cli.run_rank.run_rank")
    for worker, config in zip(workers, cluster.nccl_configs(), strict=True):
        worker.send({**task, "config": config.__dict__})
    return workers


def wait_for_all(workers: list[RemoteWorker], screen: Screen) -> Verdict | None:
    """Wait until all ranks have ended; return who failed first, or None if nobody did."""
    running = dict(enumerate(workers))
    while running:
        for worker in wait(running.values()):
            rank = workers.index(worker)
            try:
                message = worker.recv()
                screen.say(f"rank {rank} returned {message['returned']}")
            except WorkerExited:
                del running[rank]
            except WorkerError as error:
                return find_verdict(error, workers)
    return None


def report(verdict: Verdict, screen: Screen) -> None:
    """Say who failed first, of what, and with which status: the last words on the screen."""
    if verdict.traceback:
        screen.show(f"\n{verdict.traceback}\n")
    elif verdict.rank is not None and (tail := screen.last_words(verdict.rank)):
        lines = "\n".join(f"    {line}" for line in tail)
        screen.show(f"\nthe last lines of rank {verdict.rank}:\n{lines}\n")
    if screen.log_dir is not None and verdict.rank is not None:
        screen.say(f"all that it printed is in {screen.log_dir / f'rank{verdict.rank}.log'}")
    screen.say(f"{verdict.summary} (exit status {verdict.status})", is_bad=True)
