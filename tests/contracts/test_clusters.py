"""Contracts of a cluster of nodes, and of training on one."""

import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.contracts import Implementation, contract
from tests.contracts import slow_import as slow_import_module
from tests.support import poll, processes, ssh

pytestmark = pytest.mark.thorough
T = 30.0
OBEY = "tests.contracts.work.obey"
WORKDIR = os.getcwd()


def local_nodes(its: Implementation, each: int = 1) -> list[Any]:
    return [its.cluster.NodeConfig.local(each, host=host) for host in ("node1", "node2")]


def ssh_nodes(its: Implementation, options: Any, each: int = 1) -> list[Any]:
    return [
        its.cluster.NodeConfig(
            host, each, python=sys.executable, ssh_options=options, workdir=WORKDIR
        )
        for host in ssh.HOSTS
    ]


def check_ranks(workers: list[Any]) -> None:
    for worker in workers:
        worker.send("pid")
    assert [worker.recv(T) for worker in workers] == [worker.pid for worker in workers]


@contract("cluster")
def test_ranks_over_two_local_nodes(its: Implementation) -> None:
    with its.cluster.Cluster(local_nodes(its, each=3)) as cluster:
        workers = cluster.start(OBEY)
        assert len(workers) == 6
        check_ranks(workers)


@pytest.mark.ssh
@contract("cluster")
def test_ranks_over_ssh(its: Implementation, loopback_sshd: ssh.LoopbackNodes) -> None:
    nodes = ssh_nodes(its, loopback_sshd.ssh_options, each=2)
    with its.cluster.Cluster(nodes, log=io.StringIO()) as cluster:
        check_ranks(cluster.start(OBEY))


@pytest.mark.ssh
@contract("cluster")
def test_every_fault_is_told_in_sshs_own_words_and_nothing_is_left(
    its: Implementation, loopback_sshd: ssh.LoopbackNodes
) -> None:
    good, other = ssh_nodes(its, loopback_sshd.ssh_options)
    unknown = its.cluster.NodeConfig("no-such-host.invalid", ssh_options=loopback_sshd.ssh_options)
    broken = its.cluster.NodeConfig(
        other.host, python="/no/such/python", ssh_options=loopback_sshd.ssh_options
    )
    cluster = its.cluster.Cluster([good, unknown, broken], log=io.StringIO())
    with pytest.raises(its.errors.ClusterError) as caught:
        cluster.start(OBEY)
    assert "no-such-host.invalid: " in str(caught.value)
    assert "resolve" in str(caught.value)
    assert "/no/such/python" in str(caught.value)
    assert f"\n  {good.host}: " not in str(caught.value)


@contract("cluster")
@pytest.mark.slow
def test_a_rank_that_hangs_is_ended_with_the_rest(its: Implementation) -> None:
    with its.cluster.Cluster(local_nodes(its), log=io.StringIO()) as cluster:
        workers = cluster.start(OBEY)
        workers[0].send("hang")
        assert workers[0].recv(T) == "hanging"
    processes.wait_until_gone([worker.pid for worker in workers], timeout_s=T)


@contract("logs")
def test_each_line_says_which_rank_of_which_node_printed_it(its: Implementation) -> None:
    log = io.StringIO()
    with its.cluster.Cluster(local_nodes(its, each=2), log=log) as cluster:
        for worker in cluster.start(OBEY):
            worker.send("print")
            assert worker.recv(T) == "printed"
    lines = log.getvalue().splitlines()
    for name in ("node1:rank0", "node1:rank1", "node2:rank2", "node2:rank3"):
        assert f"[{name}] out of rank" in lines
        assert f"[{name}] err of rank" in lines


@contract("lease")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_coordinator_leaves_nothing(its: Implementation, number: int) -> None:
    def coordinate(channel: Any) -> None:
        cluster = its.cluster.Cluster(local_nodes(its), log=io.StringIO())
        workers = cluster.start(OBEY)
        for worker in workers:
            worker.send("double fork")
            worker.recv(T)
        channel.send([worker.pid for worker in workers])
        signal.pause()

    with its.worker.Worker(coordinate) as coordinator:
        pids = coordinator.recv()
        os.kill(coordinator.pid, number)
        processes.wait_until_gone(pids, timeout_s=T)
    poll.until(lambda: not processes.descendants(), timeout_s=T, what="grandchildren to end, too")


@contract("lease")
def test_a_node_that_is_not_ready_in_time_is_left_by_all_even_within_an_import(
    its: Implementation, slow_import: Callable[[], list[int]]
) -> None:
    cluster = its.cluster.Cluster(local_nodes(its), log=io.StringIO(), start_timeout=2.0)
    with pytest.raises(its.errors.ClusterError):
        cluster.start("tests.contracts.slow_import.work")
    processes.wait_until_gone(slow_import(), timeout_s=T)


@contract("lease")
def test_a_coordinator_killed_during_an_import_leaves_nothing(
    its: Implementation, slow_import: Callable[[], list[int]]
) -> None:
    def coordinate(channel: Any) -> None:
        cluster = its.cluster.Cluster(local_nodes(its), log=io.StringIO(), start_timeout=T)
        cluster.start("tests.contracts.slow_import.work")

    with its.worker.Worker(coordinate) as coordinator:
        poll.until(lambda: len(slow_import()) == 2, timeout_s=T, what="both nodes to import")
        os.kill(coordinator.pid, signal.SIGKILL)
        processes.wait_until_gone(slow_import(), timeout_s=T)
    poll.until(lambda: not processes.descendants(), timeout_s=T, what="the nodes to end, too")


@pytest.fixture
def slow_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[int]]:
    """Return a function that says which processes import a module that never is imported."""
    monkeypatch.setenv(slow_import_module.VARIABLE, str(tmp_path))
    return lambda: [int(file.name) for file in tmp_path.iterdir()]


@pytest.mark.ssh
@contract("shells")
@pytest.mark.slow
def test_any_login_shell_will_do(its: Implementation, login_shell_sshd: ssh.LoopbackNodes) -> None:
    nodes = ssh_nodes(its, login_shell_sshd.ssh_options)
    with its.cluster.Cluster(nodes, log=io.StringIO()) as cluster:
        check_ranks(cluster.start(OBEY))


@pytest.mark.ssh
@contract("shells")
def test_start_up_files_may_print(its: Implementation, noisy_sshd: ssh.LoopbackNodes) -> None:
    nodes = ssh_nodes(its, noisy_sshd.ssh_options)
    with its.cluster.Cluster(nodes, log=io.StringIO()) as cluster:
        check_ranks(cluster.start(OBEY))
