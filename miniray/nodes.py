"""All nodes of a cluster: brought up side by side, again after a death, and ended."""

import itertools
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any, TextIO

from miniray.errors import ClusterError
from miniray.faults import list_faults
from miniray.node import Node
from miniray.node_config import NodeConfig
from miniray.notice import Notice
from miniray.remote_worker import RemoteWorker
from miniray.sources import list_modules
from miniray.sync import Luggage
from miniray.waiting import deadline_after, time_left

FAULT_SPREAD_S = 5.0  # what the others get to say what is wrong with them, too
FORK_S = 5.0  # what ranks have at least to start, once the servers are there
ENDING_S = 0.5  # what a session may take to end, after all on its node has


class Nodes:
    """The nodes of a cluster; `all` are those that take part, in the order of their ranks."""

    def __init__(self, settings: dict[str, Any], luggage: Luggage, log: TextIO) -> None:
        self.all: list[Node] = []
        self._settings, self._luggage, self._log = settings, luggage, log
        # Not to be used again: still at a step that nobody waits for, or about to be ended.
        self._given_up: set[Node] = set()
        self._is_stopped = False
        self._notice, self._began = Notice(), time.time()

    def start(
        self, configs: Sequence[NodeConfig], timeout: float, *, without_lost: bool = False
    ) -> list[RemoteWorker]:
        """Start every rank on these nodes; return the workers, index == rank.

        A node that takes part already ends its old ranks, and its server forks new ones. A node
        that is new, or was lost, gets a server first. One that is not named any more ends. Raises
        ClusterError, with every node's fault, if not all ranks start; but with `without_lost` a
        node that cannot be brought up is left out, and the log says why, unless there is no other.
        If `stop` comes in between, from another thread or a signal handler, that is a ClusterError
        as well.
        """
        began, deadline = time.monotonic(), deadline_after(timeout)
        left = "no rank runs" if self.all else "nothing was left running"
        self._choose(configs)
        faults = self._side_by_side(
            lambda node: node.bring_up(self._settings, self._luggage, deadline),
            deadline,
            in_any_case=without_lost,
        )
        self._check()
        if without_lost and len(faults) < len(self.all):
            if faults:
                said = self._sum_up(faults, began, "the others go on")
                print(f"[cluster] {said}", file=self._log, flush=True)
            self._leave_out([*faults], [node for node in self.all if node not in faults])
            deadline = max(deadline, deadline_after(FORK_S))  # a lost one may have taken all of it
        elif faults:
            raise ClusterError(self._sum_up(faults, began, left))
        ranks = itertools.accumulate((node.config.num_workers for node in self.all), initial=0)
        *first, world_size = ranks
        first_ranks = dict(zip(self.all, first, strict=True))
        faults = self._side_by_side(
            lambda node: node.fork_ranks(first_ranks[node], world_size, deadline), deadline
        )
        self._check()
        if faults:
            for node in self.all:  # those that have forked theirs
                node.close_workers()
            raise ClusterError(self._sum_up(faults, began, left))
        self._notice.post(self.whereabouts())
        return [worker for node in self.all for worker in node.workers]

    def status(self) -> list[dict[str, Any]]:
        """Return the status of each server; a node that never came up has none."""
        return [node.status() for node in self.all if node.host]

    def whereabouts(self) -> dict[str, Any]:
        """Return what runs, and where each node's server is: all that it takes to look at it."""
        nodes = [node.whereabouts() for node in self.all if node.host]
        return {"work": self._settings["work_fn"], "nodes": nodes, "began": self._began}

    def _choose(self, configs: Sequence[NodeConfig]) -> None:
        """Have `all` be these nodes, in this order; those that are there already stay.

        But not one that is still at an earlier step: that could end, or fork, ranks among the new.
        """
        there, chosen = list(self.all), list[Node | None]()
        for config in configs:
            if not isinstance(config, NodeConfig):
                raise TypeError(f"a node is a NodeConfig, not {config!r}: [NodeConfig('node1')]")
            same = [node for node in there if node.config == config and node not in self._given_up]
            chosen.append(same[0] if same else None)
            there = [node for node in there if node is not chosen[-1]]
        labels = {node.label for node in chosen if node is not None}
        complete = list[Node]()
        for index, (config, node) in enumerate(zip(configs, chosen, strict=True)):
            label = choose_label(index, configs, labels)
            complete.append(node or Node(config, label, self._log))
            labels.add(complete[-1].label)
        self._leave_out(there, complete)

    def _leave_out(self, nodes: Sequence[Node], rest: Sequence[Node]) -> None:
        """End some nodes, so that `all` are the rest; who interrupts that loses none of them."""
        self._given_up.update(nodes)
        self.all = [*rest, *nodes]
        self._end(nodes, 0.0)
        self.all = list(rest)

    def _side_by_side(
        self, step: Callable[[Node], object], deadline: float, *, in_any_case: bool = False
    ) -> dict[Node, BaseException | None]:
        """Have all nodes take a step; return those that did not, with what they raised.

        After the first fault the others have a short while; `in_any_case` they have all the time.
        """
        # Threads, also because no Ctrl-C comes in the middle of their lines.
        pool = futures.ThreadPoolExecutor(len(self.all))
        self._given_up = set(self.all)
        steps = {pool.submit(self._step_of, step, node): node for node in self.all}
        pool.shutdown(wait=False)
        patience = time_left(deadline + ENDING_S)  # by then each has noticed by itself
        until = futures.ALL_COMPLETED if in_any_case else futures.FIRST_EXCEPTION
        done, _ = futures.wait(steps, patience, until)
        # The order is that of their faults: the first culprit comes first.
        faults = {steps[one]: one.exception() for one in done if one.exception()}
        if faults:
            done, _ = futures.wait(steps, 0.0 if in_any_case else FAULT_SPREAD_S)
            faults |= {steps[one]: one.exception() for one in done if one.exception()}
        return faults | {node: None for one, node in steps.items() if one not in done}

    def _step_of(self, step: Callable[[Node], object], node: Node) -> None:
        try:
            self._check()  # a node that was made meanwhile has not been told
            step(node)
        finally:
            self._given_up.discard(node)

    def _sum_up(
        self, faults: dict[Node, BaseException | None], began: float, what_is_left: str
    ) -> str:
        seconds, modules = time.monotonic() - began, list_modules(self._luggage.code)
        return list_faults(self.all, faults, seconds, modules, what_is_left=what_is_left)

    def _check(self) -> None:
        if self._is_stopped:
            raise ClusterError("the cluster was stopped meanwhile; nothing was left running")

    def stop(self, timeout: float) -> None:
        """End everything on all nodes within `timeout` seconds, and start nothing more."""
        self._is_stopped = True
        self._notice.remove()
        # Goodbyes first: a worker that hears one ends by itself, and in silence.
        for node in self.all:
            node.close_workers()
        self._end(self.all, timeout)

    def _end(self, nodes: Sequence[Node], timeout: float) -> None:
        for node in nodes:
            node.begin_stop(timeout * 0.8)
        deadline = deadline_after(timeout + ENDING_S)
        for node in nodes:
            node.hang_up(deadline)
        for node in nodes:  # what lingers, lingers side by side
            node.end(deadline)


def choose_label(index: int, configs: Sequence[NodeConfig], taken: set[str]) -> str:
    """Return the name of a new node: its host's, with a number if there are, or were, several."""
    hosts = [config.host for config in configs]
    host = hosts[index]
    numbers = itertools.chain([index], itertools.count())
    names = itertools.chain([host] * (hosts.count(host) == 1), (f"{host}#{one}" for one in numbers))
    return next(name for name in names if name not in taken)
