"""A cluster goes on after a death: new ranks, new servers, other nodes, fewer nodes."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from miniray import Cluster, ClusterError, NodeConfig, WorkerDied, WorkerFailed
from miniray.faults import Fault
from miniray.node import Node
from miniray.nodes import Nodes
from tests.support import poll

pytestmark = pytest.mark.thorough
T = 20.0
NODES = [NodeConfig.local(2, host="a"), NodeConfig.local(2, host="b")]
NOWHERE = NodeConfig("nowhere", 2, launcher=("false",))


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(NODES) as running:
        running.start("tests.work.echo")
        yield running


def pids(cluster: Cluster) -> list[int]:
    return [worker.pid for worker in cluster.workers]


def servers(cluster: Cluster) -> list[int]:
    return [status["server"]["pid"] for status in cluster.status()]


def places(cluster: Cluster) -> list[tuple[int, int, int]]:
    return [(one.rank, one.node_rank, one.world_size) for one in cluster.nccl_configs()]


class TestRestart:
    def test_living_servers_stay_and_have_new_ranks(self, cluster: Cluster) -> None:
        old, old_servers, old_workers = pids(cluster), servers(cluster), list(cluster.workers)
        cluster.nccl_configs()
        os.kill(old[3], signal.SIGKILL)
        with pytest.raises(WorkerDied, match=r"rank 3 at b.* was killed by SIGKILL"):
            cluster.workers[0].recv(T)
        new = cluster.restart()
        assert new == cluster.workers
        assert [worker.name.partition(":")[0] for worker in new] == [
            *("rank 0 at a", "rank 1 at a", "rank 2 at b", "rank 3 at b"),
        ]
        assert servers(cluster) == old_servers
        assert not set(old) & set(pids(cluster))
        assert not any(map(psutil.pid_exists, old))
        assert cluster.group is None
        assert places(cluster) == [(0, 0, 4), (1, 0, 4), (2, 1, 4), (3, 1, 4)]
        for worker in new:
            worker.send("a word", timeout=T)
            assert worker.recv(T) == "a word"
        with pytest.raises(WorkerDied, match="rank 3"):  # the old ones stay as they ended
            old_workers[0].recv(T)

    def test_a_rank_that_will_not_end_is_ended(self, cluster: Cluster) -> None:
        old = pids(cluster)
        os.kill(old[1], signal.SIGSTOP)
        cluster.restart()
        assert not psutil.pid_exists(old[1])

    def test_ranks_of_a_server_that_hangs_are_ended_before_there_are_new_ones(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("miniray.node.CONNECT_S", 2.0)
        with Cluster(NODES) as cluster:
            for worker in cluster.start("tests.work.obey"):
                worker.send("hang", T)
                assert worker.recv(T) == "hanging"
            old = pids(cluster)
            os.kill(servers(cluster)[1], signal.SIGSTOP)
            cluster.restart()
            assert not any(map(psutil.pid_exists, old))

    def test_a_lost_server_is_replaced(self, cluster: Cluster) -> None:
        first, second = servers(cluster)
        os.kill(second, signal.SIGKILL)
        with pytest.raises(WorkerDied):
            cluster.workers[2].recv(T)
        cluster.restart()
        assert servers(cluster)[0] == first
        assert servers(cluster)[1] != second
        assert len(cluster.workers) == 4

    def test_another_node_takes_a_lost_ones_place(self, cluster: Cluster) -> None:
        first, second = servers(cluster)
        other = NodeConfig.local(3, host="c")
        cluster.restart([NODES[0], other])
        assert cluster.nodes == [NODES[0], other]
        assert servers(cluster)[0] == first
        assert places(cluster)[-1] == (4, 1, 5)
        assert cluster.workers[4].name.startswith("rank 4 at c:")
        poll.until(lambda: not psutil.pid_exists(second))

    def test_a_node_that_is_gone_for_good_is_left_out_on_request(self, cluster: Cluster) -> None:
        with pytest.raises(ClusterError, match=r"1 of 2 nodes .* no rank runs:\n  nowhere: false"):
            cluster.restart([NODES[0], NOWHERE])
        assert cluster.workers == []
        before = servers(cluster)[:1]
        cluster.restart(without_lost=True)
        assert cluster.nodes == [NODES[0]]
        assert servers(cluster) == before
        assert places(cluster) == [(0, 0, 2), (1, 0, 2)]

    def test_nobody_is_left_out_where_nobody_would_be_left(self) -> None:
        with Cluster(NODES[:1]) as cluster:
            cluster.start("tests.work.echo")
            with pytest.raises(ClusterError, match="1 of 1 nodes"):
                cluster.restart([NOWHERE], without_lost=True)

    def test_a_node_that_hangs_is_left_out_and_the_others_have_time_to_start(self) -> None:
        hanging = NodeConfig("hanging", 2, launcher=("sh", "-c", "sleep 60", "sh"))
        with Cluster(NODES[:1]) as cluster:
            cluster.start("tests.work.echo")
            ranks = cluster.restart([NODES[0], hanging], without_lost=True, timeout=6.0)
            assert len(ranks) == 2
            assert cluster.nodes == NODES[:1]

    def test_no_rank_runs_after_one_that_cannot_start(
        self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fork = Node.fork_ranks

        def fork_on_a(node: Node, first_rank: int, world_size: int, deadline: float) -> None:
            if node.label != "a":
                raise Fault("its server has gone")
            fork(node, first_rank, world_size, deadline)

        monkeypatch.setattr(Node, "fork_ranks", fork_on_a)
        with pytest.raises(
            ClusterError, match=r"1 of 2 .*; no rank runs:\n  b: its server has gone"
        ):
            cluster.restart()
        poll.until(lambda: not any(one["server"]["workers_running"] for one in cluster.status()))

    def test_another_restart_after_ctrl_c_has_all_ranks_once(
        self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fork, begun, may_go_on = Node.fork_ranks, threading.Event(), threading.Event()

        def fork_late(node: Node, first_rank: int, world_size: int, deadline: float) -> None:
            if node.label == "b" and not begun.is_set():
                begun.set()
                os.kill(os.getpid(), signal.SIGINT)
                may_go_on.wait(T)
            fork(node, first_rank, world_size, deadline)

        monkeypatch.setattr(Node, "fork_ranks", fork_late)
        with pytest.raises(KeyboardInterrupt):
            cluster.restart()
        threading.Timer(0.1, may_go_on.set).start()
        workers = cluster.restart()
        assert [worker.name[:6] for worker in workers] == [f"rank {rank}" for rank in range(4)]
        for worker in workers:
            worker.send("a word", timeout=T)
            assert worker.recv(T) == "a word"

    def test_two_nodes_of_one_host_never_have_one_name(self) -> None:
        twice = [NodeConfig.local(1, host="a"), NodeConfig.local(2, host="a")]
        with Cluster(twice) as cluster:
            cluster.start("tests.work.echo")
            cluster.restart([twice[1], NodeConfig.local(3, host="a")])
            labels = [status["server"]["node"] for status in cluster.status()]
            assert labels == ["a#1", "a#0"]
            assert cluster.workers[2].name.startswith("rank 2 at a#0:")

    @pytest.mark.parametrize(
        ("owner", "step"),
        [
            (Nodes, "_leave_out"),  # they are chosen, and nobody has been told
            (Node, "hang_up"),
            (Node, "bring_up"),
            (Node, "fork_ranks"),
        ],
        ids=lambda one: one if isinstance(one, str) else "",
    )
    def test_one_that_a_signal_handler_stops_starts_nothing_more(
        self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, owner: Any, step: str
    ) -> None:
        take, rings = getattr(owner, step), [1]

        def ring(*args: Any, **options: Any) -> Any:
            if rings:
                rings.pop()
                os.kill(os.getpid(), signal.SIGUSR1)
            return take(*args, **options)

        monkeypatch.setattr(owner, step, ring)
        before = signal.signal(signal.SIGUSR1, lambda *_: cluster.stop())
        began = servers(cluster)
        try:
            with pytest.raises(ClusterError, match="was stopped"):
                cluster.restart([NODES[0], NodeConfig.local(3, host="c")])
        finally:
            signal.signal(signal.SIGUSR1, before)
        poll.until(lambda: not any(map(psutil.pid_exists, began)))
        assert cluster.workers == []

    @pytest.mark.parametrize(("timeout", "granted"), [(0.5, 0.5), (100.0, 30.0), (None, 30.0)])
    def test_it_takes_no_longer_than_it_may(
        self, monkeypatch: pytest.MonkeyPatch, timeout: float | None, granted: float
    ) -> None:
        with Cluster(NODES[:1], start_timeout=30.0) as cluster:
            cluster.start("tests.work.echo")
            start, seen = Nodes.start, list[float]()

            def note(nodes: Nodes, configs: Any, timeout: float, **options: Any) -> Any:
                seen.append(timeout)
                return start(nodes, configs, 30.0, **options)

            monkeypatch.setattr(Nodes, "start", note)
            cluster.restart(timeout=timeout)
            assert seen == [granted]

    def test_somebody_has_to_take_part(self, cluster: Cluster) -> None:
        with pytest.raises(ValueError, match="at least one node"):
            cluster.restart([])
        assert len(cluster.workers) == 4

    def test_it_has_to_have_been_started(self) -> None:
        with pytest.raises(RuntimeError, match="has not been started"):
            Cluster(NODES).restart()


class TestRun:
    def test_run_resilient_runs_again(self, tmp_path: Path) -> None:
        with open(tmp_path / "log", "w") as log, Cluster(NODES, log=log) as cluster:
            results = cluster.run_resilient("tests.work.fail_until", str(tmp_path), 3, restarts=3)
            assert results == [3] * 4
        said = (tmp_path / "log").read_text()
        assert said.count("; restart ") == 3
        assert "restart 3 of 3" in said

    def test_run_resilient_goes_on_if_node_0_was_lost_since_the_last_call(self) -> None:
        with Cluster(NODES) as cluster:
            before = cluster.run_resilient("os.getpid")
            os.kill(servers(cluster)[0], signal.SIGKILL)
            poll.until(lambda: not any(map(psutil.pid_exists, before[:2])))
            assert len(set(cluster.run_resilient("os.getpid"))) == 4

    def test_run_resilient_gives_up_in_the_end(self, tmp_path: Path) -> None:
        with Cluster(NODES) as cluster:
            with pytest.raises(WorkerFailed, match="not yet"):
                cluster.run_resilient("tests.work.fail_until", str(tmp_path), 3, restarts=2)
            assert len(list(tmp_path.iterdir())) == 3

    def test_run_resilient_goes_on_when_a_restart_fails(self, tmp_path: Path) -> None:
        lost, log = tmp_path / "lost", tmp_path / "log"
        # The first to come after the loss finds it down, and the next finds it up again.
        line = f'[ -e {lost} ] && ! [ -e {lost}-up ] && touch {lost}-up && exit 1; exec sh -c "$1"'
        back = NodeConfig.local(2, host="b", launcher=("/bin/sh", "-c", line, "launcher"))
        with open(log, "w") as file, Cluster([NODES[0], back], log=file) as cluster:
            with pytest.raises(WorkerDied, match="is lost: its server"):
                cluster.run_resilient("tests.work.lose_node", str(lost), restarts=2)
        said = log.read_text()
        assert "; restart 1 of 2" in said
        assert "  b: sh exited with status 1" in said  # which it was told after the second
        assert "; restart 2 of 2" in said

    def test_the_timeout_of_run_resilient_holds_in_its_restarts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[float] = []

        def restart(cluster: Cluster, *, without_lost: bool, timeout: float) -> None:
            seen.append(timeout)
            raise ClusterError("down")

        monkeypatch.setattr(Cluster, "restart", restart)
        call = ("tests.work.fail_until", str(tmp_path), 9)
        with Cluster(NODES[:1]) as cluster:
            with pytest.raises(ClusterError, match="down"):
                cluster.run_resilient(*call, restarts=1, timeout=1000.0)
        assert len(seen) == 1
        assert 0.0 < seen[0] <= 1000.0

    def test_run_resilient_goes_on_without_a_lost_node(self, tmp_path: Path) -> None:
        lost, log = tmp_path / "lost", tmp_path / "log"
        launcher = ("/bin/sh", "-c", f'[ -e {lost} ] && exit 1; exec sh -c "$1"', "launcher")
        nodes = [NODES[0], NodeConfig.local(2, host="b", launcher=launcher)]
        with open(log, "w") as file, Cluster(nodes, log=file) as cluster:
            results = cluster.run_resilient(
                "tests.work.lose_node", str(lost), without_lost=True, timeout=60.0
            )
            assert results == [2, 2]
            assert cluster.nodes == nodes[:1]
        said = log.read_text()
        assert (
            "[cluster] 1 of 2 nodes failed to start; the others go on:\n  b: sh exited wi" in said
        )


@pytest.mark.slow
def test_twenty_kills_in_one_training_run_change_no_bit(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    steps = 60
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    with Cluster(NODES, fake_gpus=True) as cluster:
        undisturbed = cluster.run("tests.resilient.train", str(alone), steps, [], timeout=120.0)
        kills = [[step, step % 4] for step in range(2, steps, 3)]
        assert len(kills) == 20
        disturbed: list[Any] = cluster.run_resilient(
            "tests.resilient.train", str(killed), steps, kills, restarts=20, timeout=400.0
        )
    assert len(list(killed.glob("killed-*"))) == 20
    assert disturbed == undisturbed
