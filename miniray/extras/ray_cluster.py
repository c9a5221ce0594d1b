"""A Cluster whose ranks are kept by Ray's actors: Ray says where, and MiniRay the rest.

Each rank is a process of its own below an actor of its own, and what you send goes from this script
to it as it always does: over TCP, and not through Ray's object store. It needs `miniray[ray]`.
"""

import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from miniray import auth, bootstrap, cells
from miniray.crew import Crew
from miniray.errors import ClusterError
from miniray.extras.hosted import HostedCluster
from miniray.extras.rank_host import ANSWERS_CALLS, Place
from miniray.faults import check_start
from miniray.node_config import NodeConfig
from miniray.process import STOP_S
from miniray.remote_worker import RemoteWorker
from miniray.rendezvous import NCCLConfig
from miniray.session import source_of
from miniray.sources import find_code, pack
from miniray.waiting import deadline_after, time_left
from miniray.work_fn import AnyFunction

__all__ = ["RayCluster"]

LAST_WORDS_S = 2.0
HEAR_S = 0.5
ASK_AGAIN_S = 0.2
SHOWN_CHARS = 300


class RayCluster(Crew):
    """Workers on a Ray cluster, which all start together and end together, as a Cluster's do.

    Each NodeConfig is one bundle of a placement group: its ranks are on one machine, which Ray
    chooses by `strategy`. The config's host is what it is called in errors and logs. A rank takes
    `cpus_per_worker` of Ray's CPUs, and a GPU if Ray has any and they are not to be fake. If this
    script has not called ray.init, `start` does, and with `sync`, a folder, ranks work in Ray's
    copy of that. What ranks print goes where Ray's logs go.

    `start_timeout` is for somebody to listen at RAY_ADDRESS, and then for all ranks to come.
    Between the two Ray has a clock of its own: if who listens is not a Ray, or has not come up,
    ray.init tries RAY_NUM_REDIS_GET_RETRIES times, 20 by default, some 40 seconds each.

    >>> with RayCluster([NodeConfig("learner"), NodeConfig("actors", 16)]) as cluster:
    ...     for worker in cluster.start("my_module.work_fn"):
    ...         worker.send({"cmd": "hello"})
    """

    def __init__(
        self,
        nodes: Sequence[NodeConfig],
        *,
        fake_gpus: bool = False,
        start_timeout: float = 60.0,
        sync: str | None = None,
        strategy: str = "PACK",
        cpus_per_worker: float = 1.0,
        gpus_per_worker: float | None = None,
    ) -> None:
        if not nodes:
            raise ValueError("a cluster needs at least one node")
        super().__init__()
        self.nodes = [*map(check_node, nodes)]
        self._fake_gpus, self._start_timeout, self._sync = fake_gpus, start_timeout, sync
        self._strategy, self._cpus, self._gpus = strategy, cpus_per_worker, gpus_per_worker
        self._hosted: HostedCluster | None = None
        self._work_fn, self._calls, self._job = "", False, ""
        self._cells: list[cells.Piece] = []
        self._code: Any = None  # Ray's to keep, from `start` to `stop`
        self._group: PlacementGroup | None = None
        self._keepers: list[Any] = []
        self._up: list[Any] = []  # references that are ready once Ray has started a keeper
        self._kept: list[Any] = []  # and once it is done

    def start(self, work_fn: str | AnyFunction, *, calls: bool = False) -> list[RemoteWorker]:
        """Start a function, or "module.function", on every node; return the workers, index == rank.

        It is as Cluster.start, and raises the same.
        """
        work_fn = check_start(work_fn)
        if self._code is not None:
            raise RuntimeError("it has been started: stop it first, or restart() the same")
        self._cells = cells.collect(work_fn)
        archive = pack(find_code(work_fn, "\n".join(text for *_, text in self._cells)))
        if not ray.is_initialized():
            await_ray(os.environ.get("RAY_ADDRESS", ""), self._start_timeout)
            ray.init(runtime_env={"working_dir": self._sync} if self._sync else None)
        elif self._sync:
            raise RuntimeError(
                "Ray is connected already, and takes a folder only then; leave sync out, and say "
                f"ray.init(runtime_env={{'working_dir': {self._sync!r}}})"
            )
        self._code, self._work_fn, self._calls = ray.put(archive), work_fn, calls
        self._job = ray.get_runtime_context().get_job_id()
        try:
            self._start_ranks(self._start_timeout)
        except BaseException:
            self.stop(0.0)
            raise
        self.answers_calls = calls
        return list(self.workers)

    def restart(
        self,
        nodes: Sequence[NodeConfig] | None = None,
        *,
        without_lost: bool = False,
        timeout: float | None = None,
    ) -> list[RemoteWorker]:
        """End all ranks, start new ones, and return their workers; it is as Cluster.restart.

        But the ranks of a machine that is lost go to another one, as soon as Ray has one, and
        nothing that was imported is kept. So there is nothing to leave out: `without_lost` is
        refused.
        """
        if self._code is None:
            raise RuntimeError("this cluster has not been started")
        if without_lost:
            raise ValueError(
                "on Ray the ranks of a machine that is lost go to another one: drop without_lost"
            )
        chosen = [*map(check_node, self.nodes if nodes is None else nodes)]
        if not chosen:
            raise ValueError("a cluster needs at least one node; to end all of them call stop()")
        self._end_ranks(0.0)
        if chosen != self.nodes:
            self._give_back()
        self.nodes = chosen
        seconds = self._start_timeout if timeout is None else min(timeout, self._start_timeout)
        try:
            self._start_ranks(seconds)
        except BaseException:
            self._end_ranks(0.0)
            self._give_back()
            raise
        return list(self.workers)

    def _reserve(self, deadline: float, timeout: float) -> None:
        """Have Ray set aside what all ranks need, or raise ClusterError."""
        each = {"CPU": self._cpus, "GPU": self._gpus_per_worker()}
        bundles = [
            {name: count * node.num_workers for name, count in each.items() if count}
            for node in self.nodes
        ]
        if self._group is None:
            self._group = placement_group(bundles, strategy=self._strategy)
        while time_left(deadline):
            if self._group.wait(min(time_left(deadline), HEAR_S)):  # Ray hears no Ctrl-C meanwhile
                return
        there, free = ray.cluster_resources(), ray.available_resources()
        lines = [
            f"  {name}: {sum(one.get(name, 0.0) for one in bundles):g} wanted, "
            f"{there.get(name, 0):g} there, {free.get(name, 0):g} of them free"
            for name in bundles[0]
        ]
        if "GPU" in bundles[0] and self._gpus is None:
            lines.append("  Where Ray has GPUs each rank takes one; for none: gpus_per_worker=0")
        count = f"{len(bundles)} nodes" if len(bundles) > 1 else "1 node"
        problem = f"Ray has found no place for {count} ({self._strategy}) within {timeout:g} s"
        raise ClusterError("\n".join([f"{problem}; nothing is left running:", *lines]))

    def _gpus_per_worker(self) -> float:
        if self._gpus is not None:
            return self._gpus
        return 1.0 if ray.cluster_resources().get("GPU") and not self._fake_gpus else 0.0

    def _start_ranks(self, timeout: float) -> None:
        deadline = deadline_after(timeout)
        self._reserve(deadline, timeout)
        places = make_places(self.nodes)
        key = auth.make_key()
        host = ray.util.get_node_ip_address()
        hosted = self._hosted = HostedCluster(len(places), host, 0, key)
        work_fn = ANSWERS_CALLS if self._calls else self._work_fn
        settings = {
            "work_fn": work_fn,
            "also": self._work_fn,
            "cells": self._cells,
            "key": key.decode(),
            "where": [hosted.address, hosted.port],
            "timeout": timeout,
            "keep": "miniray.extras.ray_keeper.keep",
        }
        Keeper = make_keeper_class()
        for config, place in places:
            keeper = Keeper.options(
                num_cpus=self._cpus,
                num_gpus=self._gpus_per_worker(),
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    self._group, placement_group_bundle_index=place.node_rank
                ),
            ).remote(f"{place.node}:rank{place.rank}")
            env = {"MINIRAY_FAKE_GPUS": "1"} if self._fake_gpus else {}
            more = {"place": vars(place), "env": env | dict(config.env), "workdir": config.workdir}
            line = json.dumps({**settings, **more, "copy": None, "marker": secrets.randbits(60)})
            self._keepers.append(keeper)
            self._up.append(keeper.__ray_ready__.remote())
            self._kept.append(keeper.keep.remote(source_of(bootstrap), line, self._code))
        try:
            hosted.gather_ranks(work_fn, time_left(deadline), self._check_keepers)
        except ClusterError as error:
            raise ClusterError(f"{error}{who_is_not_up(self._up)}") from None
        hosted.ask_why_lost(self._why_lost)
        self.workers = list(hosted.workers)

    def _check_keepers(self) -> None:
        """Raise ClusterError if a keeper is gone before its rank has come."""
        done, _ = ray.wait(self._kept, num_returns=len(self._kept), timeout=0)
        for reference in done:
            rank = self._kept.index(reference)
            raise ClusterError(
                f"rank {rank} failed to start; nothing is left running:\n  {self._why_lost(rank)}"
            )

    def _why_lost(self, rank: int) -> str:
        """Return in words what Ray knows of the end of a rank's actor."""
        if not self._is_there():
            return "Ray has been shut down"
        try:
            return str(ray.get(self._kept[rank], timeout=LAST_WORDS_S))
        except ray.exceptions.GetTimeoutError:
            return "Ray knows nothing of that"
        except ray.exceptions.RayError as error:
            words = " ".join(str(error).split())
            return f"Ray says: {words[:SHOWN_CHARS]}"

    def say(self, text: str) -> None:
        """Write a line to the log."""
        print(f"[cluster] {text}", file=sys.stderr, flush=True)

    def nccl_configs(self, backend: str | None = None) -> list[NCCLConfig]:
        """Return one config a rank, as Cluster.nccl_configs does; from now on they are a group."""
        if self._hosted is None:
            raise RuntimeError("start the cluster first: rank 0 says where the ranks meet")
        configs = self._hosted.nccl_configs(backend)
        self.group = self._hosted.group
        return configs

    def stop(self, timeout: float = STOP_S) -> None:
        """End all ranks within `timeout` seconds, and give back what Ray had set aside for them."""
        try:
            self._end_ranks(timeout)
        finally:
            self._give_back()
            self._code = None

    def _end_ranks(self, timeout: float) -> None:
        try:
            if self._hosted is not None:
                self._hosted.stop(timeout)
        finally:
            if self._hosted is not None:
                self._hosted.release()
            keepers, kept = self._keepers, self._kept
            self._hosted, self.group = None, None
            self.workers, self._keepers, self._up, self._kept = [], [], [], []
            if kept and self._is_there():
                ray.wait(kept, num_returns=len(kept), timeout=LAST_WORDS_S)
                for keeper in keepers:
                    ray.kill(keeper)

    def _give_back(self) -> None:
        group, self._group = self._group, None
        if group is not None and self._is_there():
            remove_placement_group(group)

    def _is_there(self) -> bool:
        """Return whether this script is still connected to Ray as it was at the start.

        What has been of an earlier connection Ray has forgotten, and asked for it, raises.
        """
        return bool(ray.is_initialized() and ray.get_runtime_context().get_job_id() == self._job)


def await_ray(address: str, timeout: float) -> None:
    """Wait until somebody listens at HOST:PORT, where ray.init would wait for minutes.

    Other addresses, such as "auto", are Ray's to understand. Raises ClusterError.
    """
    host, _, port = address.rpartition(":")
    if not host or "//" in host or not port.isdecimal():
        return
    deadline = deadline_after(timeout)
    while True:
        try:
            left = max(time_left(deadline), ASK_AGAIN_S)
            socket.create_connection((host.strip("[]"), int(port)), left).close()
            break
        except (OSError, ValueError) as error:  # that is what a label of 64 characters is
            if not time_left(deadline):
                why = getattr(error, "strerror", None) or error
                problem = f"no Ray answers at {address} (RAY_ADDRESS) within {timeout:g} s"
                raise ClusterError(f"{problem}: {why}") from None
            time.sleep(ASK_AGAIN_S)


def check_node(node: NodeConfig) -> NodeConfig:
    """Return a config, or refuse what it asks for and Ray decides by itself."""
    asked = {
        "ssh_options": node.ssh_options,
        "launcher": node.launcher if not node.is_local() else None,
        "address": node.address,
        "tunnel": node.tunnel,
        "encrypt": node.encrypt,
        "python": node.python not in ("python3", sys.executable) and node.python,
    }
    for field, value in asked.items():
        if value:
            raise ValueError(f"{node.host}: on Ray there is no {field}; leave it out")
    return node


def make_places(nodes: Sequence[NodeConfig]) -> list[tuple[NodeConfig, Place]]:
    """Return the place of each rank, in order."""
    world_size = sum(node.num_workers for node in nodes)
    hosts = [node.host for node in nodes]
    places: list[tuple[NodeConfig, Place]] = []
    for node_rank, node in enumerate(nodes):
        label = node.host if hosts.count(node.host) == 1 else f"{node.host}#{node_rank}"
        for local_rank in range(node.num_workers):
            rank = len(places)
            place = Place(rank, world_size, local_rank, node.num_workers, node_rank, label)
            places.append((node, place))
    return places


def who_is_not_up(up: Sequence[Any]) -> str:
    """Return in words whose actors Ray itself has not started yet, of references by rank."""
    _, late = ray.wait(list(up), num_returns=len(up), timeout=0)
    if not late:
        return ""
    ranks = ", ".join(str(up.index(one)) for one in late)
    words = "Ray has not started the actors of these ranks yet"
    return f"\n  {words}: {ranks}; start_timeout= waits longer"


def make_keeper_class() -> Any:
    """Return the class of the actors, which goes to them as a whole: they need no MiniRay."""

    class Keeper:
        """Start a rank's host, and be there as long as it is."""

        def __init__(self, name: str) -> None:
            self._name = name

        def __repr__(self) -> str:
            return self._name  # Ray puts it before each line that the rank prints

        def keep(self, program: str, settings: str, archive: bytes) -> str:
            import json
            import subprocess
            import sys

            payload = settings.encode() + b"\n" + archive
            read = "import sys; exec(sys.stdin.buffer.raw.readline())"
            with subprocess.Popen(
                [sys.executable, "-c", read], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            ) as host:
                assert host.stdin is not None
                assert host.stdout is not None
                host.stdin.write(f"exec({program!a})\n{len(payload)}\n".encode() + payload)
                host.stdin.flush()
                said = host.stdout.read().decode(errors="replace").strip()
            if words := said.partition(" ")[2]:  # bootstrap's report
                return str(*json.loads(words).values())
            return f"its host exited with status {host.returncode}"

    return ray.remote(max_restarts=0)(Keeper)
