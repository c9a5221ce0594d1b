"""Start servers on many nodes over ssh, connect to all their workers, and stop them."""

import sys
from collections.abc import Sequence
from typing import Any, TextIO

from miniray import auth, nccl
from miniray.crew import Crew
from miniray.faults import check_start
from miniray.group import Group
from miniray.node_config import NodeConfig
from miniray.nodes import Nodes
from miniray.process import STOP_S
from miniray.remote_worker import RemoteWorker
from miniray.sync import Luggage
from miniray.work_fn import AnyFunction

__all__ = ["Cluster", "NodeConfig"]


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
        # Who takes part: what `restart` was given last, without those that it left out.
        self.nodes = list(nodes)
        self._fake_gpus, self._sync = fake_gpus, sync
        self._start_timeout, self._log = start_timeout, log
        self._running: Nodes | None = None
        super().__init__()

    def start(self, work_fn: str | AnyFunction, *, calls: bool = False) -> list[RemoteWorker]:
        """Start a function, or "module.function", on every node; return the workers, index == rank.

        It goes by name, so it has to be one at the top of a module, or of the running script, or as
        text, from a notebook's cell. With `calls` the workers do not run it, and wait for `run` or
        `worker.call`. The module is sent along if it is found here and is not an installed one;
        else the node's own is imported, from its workdir. Raises ClusterError, with every node's
        fault, and leaves nothing running, if not all ranks start.
        """
        work_fn = check_start(work_fn)
        if self._running is not None:
            raise RuntimeError("it has been started: stop it first, or restart() the same")
        luggage = Luggage(work_fn, self._sync)
        settings = {
            "work_fn": work_fn,
            "calls": calls,
            "key": auth.make_key().decode(),
            "env": {"MINIRAY_FAKE_GPUS": "1"} if self._fake_gpus else {},
        }
        self._running = Nodes(settings, luggage, self._log or sys.stderr)
        try:
            self.workers = self._running.start(self.nodes, self._start_timeout)
            self.answers_calls = calls
            return list(self.workers)
        except BaseException:
            self.stop(0.0)
            raise

    def restart(
        self,
        nodes: Sequence[NodeConfig] | None = None,
        *,
        without_lost: bool = False,
        timeout: float | None = None,
    ) -> list[RemoteWorker]:
        """End all ranks, start new ones, and return their workers.

        Servers that live stay, with all that they have imported; where one is lost a new one is
        started. `nodes` says who takes part from now on. Raises ClusterError if not all ranks
        start, and keeps the servers that live, for another restart; but with `without_lost` a node
        that cannot be brought up is left out. It takes at most `timeout` seconds, if that is less
        than `start_timeout`. The ranks are no group until `nccl_configs`.
        """
        if (running := self._running) is None:
            raise RuntimeError("this cluster has not been started")
        chosen = list(self.nodes if nodes is None else nodes)
        if not chosen:
            raise ValueError("a cluster needs at least one node; to end all of them call stop()")
        self.workers, self.group, self.nodes = [], None, chosen
        seconds = self._start_timeout if timeout is None else min(timeout, self._start_timeout)
        self.workers = running.start(self.nodes, seconds, without_lost=without_lost)
        self.nodes = [node.config for node in running.all]
        return list(self.workers)

    def say(self, text: str) -> None:
        """Write a line to the log."""
        print(f"[cluster] {text}", file=self._log or sys.stderr, flush=True)

    def status(self) -> list[dict[str, Any]]:
        """Return each server's status: what runs, how long it is silent, how each worker ended."""
        if self.group is not None:
            self.group.check()
        return [] if self._running is None else self._running.status()

    def whereabouts(self) -> dict[str, Any]:
        return {"nodes": []} if self._running is None else self._running.whereabouts()

    def nccl_configs(self, backend: str | None = None) -> list[nccl.NCCLConfig]:
        """Return one config a rank, with an address of node 0 and a port that rank 0 holds there.

        From here on the ranks are one process group, `self.group`: when one dies, all end, and
        `recv`, `send` and `wait` on any of them raise the error that names the first culprit.
        """
        if self._running is None or not self.workers:
            raise RuntimeError("start the cluster first: rank 0 says where the ranks meet")
        nodes = self._running.all
        address, port = self.workers[0].rendezvous
        others = [node for node in nodes if not node.address.startswith("127.")]
        if others and address.startswith("127."):
            raise ValueError(
                f"{nodes[0].label} is at {address}, where {others[0].label} cannot reach it; "
                "set its NodeConfig(address=...)"
            )
        self.group = Group(self.workers)
        places = [(node.label, node.config.num_workers) for node in nodes]
        return nccl.create_nccl_configs(address, places, port, backend)

    def stop(self, timeout: float = STOP_S) -> None:
        """End all workers and servers within `timeout` seconds: hang up, SIGTERM, SIGKILL.

        A KeyboardInterrupt while it waits ends them at once.
        """
        try:
            self._stop(timeout)
        finally:
            self._stop(0.0)  # nothing is left to do, but after a Ctrl-C

    def _stop(self, timeout: float) -> None:
        if self._running is not None:
            self._running.stop(timeout)
        self._running, self.workers, self.group = None, [], None
