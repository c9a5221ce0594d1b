"""Start all ranks of a run, again after a death if that is wanted, and say how it went."""

import math
import sys
import time
from collections.abc import Callable
from typing import TextIO, cast

from miniray import (
    Cluster,
    ClusterError,
    MiniRayError,
    NodeConfig,
    RemoteWorker,
    WorkerError,
    WorkerExited,
    WorkerFailed,
    wait,
)
from miniray.cli.run_plan import Plan, name_doctor
from miniray.cli.run_screen import Screen
from miniray.cli.run_verdict import Verdict, explain_start, find_verdict, remedy
from miniray.recovery import attempt_again

# What another attempt would end with again, on its first line.
HOPELESS = ("SyntaxError", "IndentationError", "TabError")


class Hopeless(Exception):
    """A rank failed of what no restart mends."""


def launch(
    plan: Plan,
    screen: Screen,
    start_timeout: float,
    *,
    fake_gpus: bool = False,
    when_up: Callable[[], None] = lambda: None,
) -> int:
    """Start all ranks, wait for their end, leave nothing, and say how it went."""
    log = cast(TextIO, screen)  # it is one, as far as a cluster goes
    cluster = Cluster(
        plan.nodes,
        fake_gpus=fake_gpus,
        start_timeout=start_timeout,
        log=log,
        sync=plan.sync,
    )
    attempts = Attempts(plan, cluster, screen, when_up)
    try:
        with cluster:
            try:
                return attempts.run()
            except KeyboardInterrupt:
                if sys.stderr.isatty():
                    screen.show("")  # after the terminal's own ^C
                why = "" if screen.is_read else "nobody reads what they print any more: "
                screen.say(f"{why}ending all ranks; once more kills them at once")
                raise
    except (WorkerError, Hopeless) as error:
        assert attempts.verdict is not None
        if isinstance(error, Hopeless):
            screen.say("no restart would mend that, so there is none")
        elif plan.restarts:
            attempts.say_last()
        report(attempts.verdict, screen, plan.nodes[0].python)
        return attempts.verdict.status
    except (MiniRayError, OSError, ValueError) as error:
        problem = explain_start(str(error), start_timeout, imports_torch=bool(plan.preload))
        if attempts.restarted and isinstance(error, ClusterError):
            attempts.say_last()
            if plan.min_nodes is None and len(plan.nodes) > 1:
                problem += "\n  to go on without nodes that are lost: --min-nodes 1"
        elif isinstance(error, ClusterError) and (command := name_doctor(plan.nodes)):
            problem += f"\n  to see all that is wrong there: {command}"
        screen.say(problem, is_bad=True)
        return 1


class Attempts:
    """The attempts at one run, each with new ranks; `verdict` is on the last that failed."""

    def __init__(
        self, plan: Plan, cluster: Cluster, screen: Screen, when_up: Callable[[], None]
    ) -> None:
        self.verdict: Verdict | None = None
        self.restarted = 0
        self._plan, self._cluster, self._screen = plan, cluster, screen
        self._when_up = when_up
        self._began = time.monotonic()
        self._nodes = plan.nodes  # but for those that were lost, and not needed

    def run(self) -> int:
        """Attempt it until all ranks have ended well; raises what the last attempt failed of."""
        began, plan = self._began, self._plan
        with self._screen.progress(
            f"starting {describe(self._cluster.nodes)}", plan.what_takes_long
        ):
            self._cluster.start("miniray.cli.run_rank.run_rank")
        attempt_again(
            self,
            self._attempt,
            restarts=plan.restarts,
            tell=self._tell,
            deadline=math.inf,
            without_lost=plan.min_nodes is not None,
        )
        ranks = count_ranks(len(self._cluster.workers))
        self._screen.say(f"{ranks} ended well after {time.monotonic() - began:.1f} s")
        return 0

    def restart(self, *, without_lost: bool = False, timeout: float | None = None) -> None:
        """Start new ranks, on as many nodes as there have to be.

        All are asked again, for a node that reboots comes back. Those that were left out come last:
        the first of the others has the checkpoint.
        """
        self._began = time.monotonic()
        cluster, least = self._cluster, self._plan.min_nodes or 1
        nodes = [*self._nodes, *self._lost()]
        with self._screen.progress(f"starting {describe(nodes)}", self._plan.what_takes_long):
            cluster.restart(nodes, without_lost=without_lost, timeout=timeout)
        if (left := len(cluster.nodes)) < least:
            raise ClusterError(f"only {left} of the {least} nodes that it needs can be brought up")
        self._nodes = cluster.nodes
        if lost := self._lost():
            hosts = ", ".join(node.host for node in lost)
            self._screen.say(f"it goes on without {hosts}, up to a restart that finds it there")

    def _lost(self) -> list[NodeConfig]:
        """Return the nodes that do not take part any more."""
        lost = list(self._plan.nodes)
        for node in self._nodes:
            lost.remove(node)  # one of it: two may be the same
        return lost

    def _attempt(self, restarted: int) -> None:
        """Have the ranks that are there run the script to its end."""
        screen, cluster = self._screen, self._cluster
        workers = list(cluster.workers)
        try:
            task = {**self._plan.task, "restart_count": restarted, "nodes": len(cluster.nodes)}
            for worker, config in zip(workers, cluster.nccl_configs(), strict=True):
                worker.send({**task, "config": config.__dict__})
            ranks, _, places = describe(cluster.nodes).partition(":")
            seconds = time.monotonic() - self._began
            again = " again" if restarted else ""
            screen.say(f"{ranks} up{again} after {seconds:.1f} s:{places}")
            self._when_up()
            wait_for_all(workers, screen)
        except WorkerError as error:
            self.verdict = find_verdict(error, workers)
            if isinstance(error, WorkerFailed) and error.remote_type in HOPELESS:
                raise Hopeless from error
            raise

    def say_last(self) -> None:
        """Say that there will be no other restart."""
        self._screen.say(f"that was restart {self.restarted} of {self.restarted}, the last one")

    def _tell(self, failure: Exception, what_next: str) -> None:
        """Say what has failed, and that it begins anew."""
        if isinstance(failure, WorkerError) and self.verdict is not None:
            report(self.verdict, self._screen, self._plan.nodes[0].python)
        else:
            self._screen.say(str(failure), is_bad=True)
        self.restarted += 1
        self._screen.say(what_next)
        self._screen.begin_again(self.restarted, self._plan.task["run_id"])


def describe(nodes: list[NodeConfig]) -> str:
    """Return how many ranks there are on some nodes, and where."""
    places = ", ".join(f"{node.num_workers} on {node.host}" for node in nodes)
    return f"{count_ranks(sum(node.num_workers for node in nodes))}: {places}"


def count_ranks(count: int) -> str:
    """Return a number of ranks in words."""
    return f"{count} ranks" if count > 1 else "1 rank"


def wait_for_all(workers: list[RemoteWorker], screen: Screen) -> None:
    """Wait until all ranks have ended well; raises who failed first."""
    running = dict(enumerate(workers))
    while running:
        for worker in wait(running.values()):
            rank = workers.index(worker)
            try:
                message = worker.recv()
                screen.say(f"rank {rank} returned {message['returned']}")
            except WorkerExited:
                del running[rank]


def report(verdict: Verdict, screen: Screen, python: str) -> None:
    """Say who failed first, of what, and with which status: the last words on the screen."""
    if verdict.traceback:
        screen.show(f"\n{verdict.traceback}\n")
    elif verdict.rank is not None and (tail := screen.last_words(verdict.rank)):
        lines = "\n".join(f"    {line}" for line in tail)
        screen.show(f"\nthe last lines of rank {verdict.rank}:\n{lines}\n")
    if screen.log_dir is not None and verdict.rank is not None:
        screen.say(f"all that it printed is in {screen.path_of(verdict.rank)}")
    if advice := remedy(verdict, python):
        screen.say(advice)
    screen.say(f"{verdict.summary} (exit status {verdict.status})", is_bad=True)
