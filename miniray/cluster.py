"""Start servers on many nodes over ssh, connect to all their workers, and stop them."""

import sys
import time
from collections.abc import Sequence
from concurrent import futures
from typing import Any, Self, TextIO

from miniray import auth, nccl
from miniray.crew import Crew
from miniray.errors import ClusterError
from miniray.faults import check_start, list_faults
from miniray.group import Group
from miniray.node import Node
from miniray.node_config import NodeConfig
from miniray.process import STOP_S
from miniray.remote_worker import RemoteWorker
from miniray.sources import list_modules
from miniray.sync import Luggage
from miniray.waiting import deadline_after, time_left
from miniray.work_fn import AnyFunction

__all__ = ["Cluster", "NodeConfig"]

FAULT_SPREAD_S = 5.0  # what the others get to say what is wrong with them, too
ENDING_S = 0.5  # what a session may take to end, after all on its node has


class Cluster(Crew):
    """Workers on many nodes, which all start together and end together.

    With `fake_gpus` every worker has a fake GPU. `start_timeout` bounds `start`, in seconds.
    Workers' output goes to `log`, with the prefix [node:rank]. With `sync`, a folder, each node
    works in a copy of it, which stays there, so that the next start sends what has changed.

    >>> with Cluster([NodeConfig("node1", num_workers=4)]) as cluster:
    ...     for worker in cluster.start("my_module.work_fn"):
    ...         worker.send({"cmd": "hello"})
    """

    def __init__(
        self,
        nodes: Sequence[NodeConfig],
        *,
        fake_gpus: bool = False,
        start_timeout: float = 30.0,
        log: TextIO | None = None,
        sync: str | None = None,
    ) -> None:
        if not nodes:
            raise ValueError("a cluster needs at least one node")
        self._configs, self._fake_gpus = list(nodes), fake_gpus
        self._start_timeout, self._log, self._sync = start_timeout, log, sync
        self._nodes: list[Node] = []
        super().__init__()

    def start(self, work_fn: str | AnyFunction, *, calls: bool = False) -> list[RemoteWorker]:
        """Start a function, or "module.function", on every node; return the workers, index == rank.

        It goes by name, so it has to be one at the top of a module, or of the running script. With
        `calls` the workers do not run it, and wait for `run` or `worker.call`. The module is sent
        along if it is found here and is not an installed one; else the node's own is imported, from
        its workdir. Raises ClusterError, with every node's fault, and leaves nothing running, if
        not all ranks start.
        """
        work_fn = check_start(work_fn)
        if self._nodes:
            raise RuntimeError("this cluster has been started; stop it first")
        luggage = Luggage(work_fn, self._sync)
        settings = {
            "work_fn": work_fn,
            "calls": calls,
            "key": auth.make_key().decode(),
            "env": {"MINIRAY_FAKE_GPUS": "1"} if self._fake_gpus else {},
        }
        try:
            self._start_nodes(settings, luggage)
            self.workers = [worker for node in self._nodes for worker in node.workers]
            self.answers_calls = calls
            return list(self.workers)
        except BaseException:
            self.stop(0.0)
            raise

    def _start_nodes(self, settings: dict[str, Any], luggage: Luggage) -> None:
        """Start all side by side; after the first fault the others have a short while."""
        began, deadline = time.monotonic(), deadline_after(self._start_timeout)
        hosts = [config.host for config in self._configs]
        starts: dict[futures.Future[None], Node] = {}
        # Threads, also because no Ctrl-C comes in the middle of their lines.
        pool = futures.ThreadPoolExecutor(len(hosts))
        rank = 0
        for index, config in enumerate(self._configs):
            label = config.host if hosts.count(config.host) == 1 else f"{config.host}#{index}"
            node = Node(config, label, self._log or sys.stderr)
            self._nodes.append(node)
            starts[pool.submit(node.start, settings, luggage, rank, deadline)] = node
            rank += config.num_workers
        pool.shutdown(wait=False)
        patience = time_left(deadline + ENDING_S)  # by then each has noticed by itself
        done, waiting = futures.wait(starts, patience, futures.FIRST_EXCEPTION)
        first = next((starts[one] for one in done if one.exception()), None)
        if first is not None:
            done, waiting = futures.wait(starts, FAULT_SPREAD_S)
        if first is not None or waiting:
            faults = {node: start.done() and start.exception() for start, node in starts.items()}
            seconds = time.monotonic() - began
            raise ClusterError(list_faults(faults, first, seconds, list_modules(luggage.code)))

    def status(self) -> list[dict[str, Any]]:
        """Return each server's status: what runs, how long it is silent, how each worker ended."""
        if self.group is not None:
            self.group.check()
        return [node.status() for node in self._nodes]

    def nccl_configs(self, backend: str | None = None) -> list[nccl.NCCLConfig]:
        """Return one config a rank, with an address of node 0 and a port that is free there.

        From here on the ranks are one process group, `self.group`: when one dies, all end, and
        `recv`, `send` and `wait` on any of them raise the error that names the first culprit.
        """
        if not self.workers:
            raise RuntimeError("start the cluster first: node 0 is asked for a free port")
        first = self._nodes[0]
        port = first.status(free_port=1)["server"]["free_port"]
        others = [node for node in self._nodes if not node.address.startswith("127.")]
        if others and first.address.startswith("127."):
            raise ValueError(
                f"{first.label} is at {first.address}, where {others[0].label} cannot reach it; "
                "set its NodeConfig(address=...)"
            )
        self.group = Group(self.workers)
        places = [(node.label, node.config.num_workers) for node in self._nodes]
        return nccl.create_nccl_configs(first.address, places, port, backend)

    def stop(self, timeout: float = STOP_S) -> None:
        """End all workers and servers within `timeout` seconds: hang up, SIGTERM, SIGKILL.

        A KeyboardInterrupt while it waits ends them at once.
        """
        try:
            self._stop(timeout)
        finally:
            self._stop(0.0)  # nothing is left to do, but after a Ctrl-C

    def _stop(self, timeout: float) -> None:
        # Goodbyes first: a worker that hears one ends by itself, and in silence.
        for worker in self.workers:
            worker.close(timeout=0.0)  # its server ends it
        for node in self._nodes:
            node.begin_stop(timeout * 0.8)
        deadline = deadline_after(timeout + ENDING_S)
        for node in self._nodes:
            node.hang_up(deadline)
        for node in self._nodes:  # what lingers, lingers side by side
            node.end(deadline)
        self._nodes, self.workers, self.group = [], [], None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()
