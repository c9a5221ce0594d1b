"""What a cluster promises, from stage 4 on.

The nodes are two "nodes" on this machine. To have real ones, name two hosts that ssh reaches
without a password and that see this directory at the same path, and the options for ssh:

MINIRAY_TEST_HOSTS=node1,node2 MINIRAY_TEST_SSH="-p 2222" python -m unittest ...test_cluster
"""

import io
import os
import shlex
import signal
import sys
import unittest
from typing import Any

from .channel import Channel
from .cluster import Cluster, NodeConfig
from .errors import ClusterError, WorkerDied, WorkerFailed
from .test_remote_worker import T
from .test_worker_server import has_ended, until
from .worker import Worker

OBEY = f"{__package__}.test_worker.obey"
TALK = f"{__package__}.test_cluster.talk"
HOSTS = [host for host in os.environ.get("MINIRAY_TEST_HOSTS", "").split(",") if host]


def make_nodes(each: int = 2, **options: Any) -> list[NodeConfig]:
    """Return two nodes."""
    if not HOSTS:
        return [NodeConfig.local(each, host=host, **options) for host in ("node1", "node2")]
    options = {"python": sys.executable, **options}
    options["ssh_options"] = shlex.split(os.environ.get("MINIRAY_TEST_SSH", ""))
    return [NodeConfig(host, each, **options) for host in HOSTS]


def labels() -> list[str]:
    """Return what the two nodes are called."""
    return [config.host for config in make_nodes()]


def talk(channel: Channel) -> None:
    """Print what comes, and answer once it is printed."""
    for message in channel:
        print(message)
        print(message.upper(), file=sys.stderr)
        channel.send("printed")


def pipes() -> set[str]:
    """Return the pipes that this process holds, apart from its standard streams."""
    paths = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd") if int(name) > 2]
    targets = {os.readlink(path) for path in paths if os.path.islink(path)}
    return {target for target in targets if target.startswith("pipe:")}


def grandchildren(channel: Channel) -> None:
    """Start a process that would live on, and wait for the end."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            signal.pause()
    channel.send([os.getpid(), pid])
    for _ in channel:
        pass


class TestStart(unittest.TestCase):
    def test_workers_come_in_rank_order_node_by_node(self) -> None:
        with Cluster(make_nodes(each=2)) as cluster:
            workers = cluster.start(OBEY)
            for worker in workers:
                worker.send("pid")
            pids = [worker.recv(T) for worker in workers]
            assert pids == [worker.pid for worker in workers]
            assert len({*pids, os.getpid()}) == 5
            one, other = labels()
            for rank, label in enumerate([one, one, other, other]):
                assert f"rank {rank} at {label}:" in workers[rank].name

    def test_a_node_is_reached_at_the_address_it_is_given(self) -> None:
        with Cluster([NodeConfig.local(1, address="127.0.0.2")]) as cluster:
            (worker,) = cluster.start(OBEY)
            assert worker.host == "127.0.0.2"

    def test_noise_before_the_ready_line_does_no_harm(self) -> None:
        noisy = ("/bin/sh", "-c", 'echo Welcome; echo \'{"port": 1}\'; eval "$0"')
        with Cluster([NodeConfig.local(1, launcher=noisy)], log=io.StringIO()) as cluster:
            (worker,) = cluster.start(OBEY)
            worker.send("pid")
            assert worker.recv(T) == worker.pid

    def test_all_start_or_none_and_every_fault_is_listed(self) -> None:
        good, other = make_nodes(each=2)
        bad = [
            NodeConfig.local(1, host="no-python", python="/no/such/python"),
            NodeConfig.local(1, host="no-launcher", launcher=("/bin/sh", "-c", "echo gone >&2;")),
        ]
        cluster = Cluster([good, *bad, other], log=io.StringIO())
        with self.assertRaises(ClusterError) as it:
            cluster.start(OBEY)
        assert "no-python: " in str(it.exception)
        assert "/no/such/python" in str(it.exception)
        assert "no-launcher: " in str(it.exception)
        assert f"\n  {good.host}:" not in str(it.exception)
        assert cluster.workers == []

    def test_a_work_function_that_is_not_there_is_said_by_every_node(self) -> None:
        for work_fn, words in {
            f"{__package__}.test_worker.no_such_function": "no_such_function",
            f"{__package__}.no_such_module.work": "no_such_module",
        }.items():
            with self.assertRaises(ClusterError) as it:
                Cluster(make_nodes(each=1), log=io.StringIO()).start(work_fn)
            for label in labels():
                assert f"\n  {label}: " in str(it.exception)
            assert str(it.exception).count(words) >= 2

    def test_bad_configurations_are_refused_at_once(self) -> None:
        for host in ("-oProxyCommand=evil", "", "two words"):
            with self.assertRaisesRegex(ValueError, "is not a name"):
                NodeConfig(host)
        with self.assertRaisesRegex(ValueError, "must be >= 1, got 0"):
            NodeConfig("node1", num_workers=0)
        with self.assertRaisesRegex(ValueError, "at least one node"):
            Cluster([])


class TestRunning(unittest.TestCase):
    def test_output_comes_with_the_name_of_node_and_rank(self) -> None:
        log = io.StringIO()
        with Cluster(make_nodes(each=2), log=log) as cluster:
            for rank, worker in enumerate(cluster.start(TALK)):
                worker.send(f"rank {rank} was here\nand here")
                assert worker.recv(T) == "printed"
        lines = log.getvalue().splitlines()
        one, other = labels()
        for rank, label in enumerate([one, one, other, other]):
            for text in (f"rank {rank} was here", "and here", f"RANK {rank} WAS HERE"):
                assert f"[{label}:rank{rank}] {text}" in lines, (text, lines)

    def test_a_worker_that_dies_is_named_and_the_others_go_on(self) -> None:
        with Cluster(make_nodes(each=2), log=io.StringIO()) as cluster:
            workers = cluster.start(OBEY)
            workers[3].send(int(signal.SIGKILL))
            words = f"rank 3 at {labels()[1]}:.* was killed by SIGKILL"
            with self.assertRaisesRegex(WorkerDied, words):
                workers[3].recv(T)
            workers[1].send("raise")
            with self.assertRaisesRegex(WorkerFailed, "rank 1 at .* no such batch: 7"):
                workers[1].recv(T)
            workers[0].send("pid")
            assert workers[0].recv(T) == workers[0].pid

    def test_stop_leaves_nothing_and_may_be_called_again(self) -> None:
        cluster = Cluster(make_nodes(each=1), log=io.StringIO())
        for _ in range(2):  # it may be started again, too
            workers = cluster.start(OBEY)
            pids = [worker.pid for worker in workers]
            cluster.stop()
            cluster.stop()
            until(lambda: all(map(has_ended, pids)), "the workers to be gone")  # noqa: B023
            with self.assertRaises(ConnectionError):
                workers[0].send("pid")


class TestLosses(unittest.TestCase):
    def test_a_worker_that_is_forked_later_does_not_hold_the_lease(self) -> None:
        before = pipes()
        with Cluster(make_nodes(each=1), log=io.StringIO()) as cluster:
            cluster.start(OBEY)
            ours = pipes() - before
            with Worker(lambda channel: channel.send(sorted(pipes()))) as worker:
                assert ours.isdisjoint(worker.recv(T))

    def test_nothing_is_left_when_the_coordinator_is_killed(self) -> None:
        def coordinate(channel: Channel) -> None:
            cluster = Cluster(make_nodes(each=1), log=io.StringIO())
            workers = cluster.start(f"{__package__}.test_cluster.grandchildren")
            channel.send([pid for worker in workers for pid in worker.recv(T)])
            signal.pause()

        with Worker(coordinate) as coordinator:
            pids = coordinator.recv(T)
            assert len(pids) == 4
            os.kill(coordinator.pid, signal.SIGKILL)
            until(lambda: all(map(has_ended, pids)), "workers and grandchildren to end")


if __name__ == "__main__":
    unittest.main()
