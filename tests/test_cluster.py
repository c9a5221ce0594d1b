"""Starting nodes: what is sent along, what is said when they cannot, and every odd shell."""

import io
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from miniray import Cluster, ClusterError, NodeConfig, WorkerDied, WorkerServer
from miniray.node import Node
from miniray.waiting import deadline_after
from miniray.worker_server import load_work_fn
from tests import work
from tests.support import poll, processes, ssh

T = 30.0


def test_ranks_are_ordered_over_nodes_and_logs_say_who_speaks() -> None:
    log = io.StringIO()
    nodes = [NodeConfig.local(2, host="node1"), NodeConfig.local(1, host="node2")]
    with Cluster(nodes, log=log) as cluster:
        workers = cluster.start("tests.work.obey")
        assert [worker.name.split(":")[0] for worker in workers] == [
            *("rank 0 at node1", "rank 1 at node1", "rank 2 at node2"),
        ]
        for worker in workers:
            worker.send(("print", 1))
            assert worker.recv(T) == "printed"
        rows = [row for status in cluster.status() for row in status["workers"]]
        assert [row["pid"] for row in rows] == [worker.pid for worker in workers]
    lines = log.getvalue().splitlines()
    assert sorted(line.partition("]")[0] for line in lines) == [
        *("[node1:rank0", "[node1:rank1", "[node2:rank2"),
    ]


def test_nodes_of_one_host_have_labels_that_tell_them_apart() -> None:
    with Cluster([NodeConfig.local(host=host) for host in ("gpu", "cpu", "gpu")]) as cluster:
        workers = cluster.start("tests.work.echo")
        labels = ["gpu#0", "cpu", "gpu#2"]
        assert [status["server"]["node"] for status in cluster.status()] == labels
        assert [worker.name.split()[3].partition(":")[0] for worker in workers] == labels


def test_stop_is_idempotent_and_a_cluster_can_start_again() -> None:
    cluster = Cluster([NodeConfig.local()])
    for _ in range(2):
        (worker,) = cluster.start("tests.work.echo")
        with pytest.raises(RuntimeError, match="has been started"):
            cluster.start("tests.work.echo")
        worker.send(1)
        assert worker.recv(T) == 1
        cluster.stop()
        cluster.stop()


def test_a_cluster_that_nobody_has_any_more_ends() -> None:
    """As one does whose cell of a notebook is run again."""
    log = io.StringIO()
    cluster = Cluster([NodeConfig.local(host=host) for host in ("a", "b")], log=log)
    workers = cluster.start("tests.work.echo")
    del cluster  # its ranks hold what they need of it
    for worker in workers:
        worker.send(1)
        assert worker.recv(T) == 1
    del workers, worker
    poll.until(lambda: not any(processes.is_running(one.pid) for one in processes.descendants()))
    assert not log.getvalue()


@pytest.mark.parametrize(("last_line", "status"), [("", 0), ("raise ValueError", 1)])
def test_a_script_that_never_stops_its_cluster_ends(
    tmp_path: Path, last_line: str, status: int
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from miniray import Cluster, NodeConfig\n"
        "if __name__ == '__main__':\n"
        "    cluster = Cluster([NodeConfig.local()])\n"
        "    (worker,) = cluster.start('tests.work.echo')\n"
        f"    print(worker.pid)\n    {last_line}\n"
    )
    repository = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        timeout=T,
    )
    assert done.returncode == status
    assert ("ValueError" in done.stderr) == bool(done.stderr) == bool(status)
    processes.wait_until_gone([int(done.stdout)])


def test_a_worker_of_a_stopped_cluster_says_why_nobody_knows_its_end() -> None:
    with Cluster([NodeConfig.local()]) as cluster:
        (worker,) = cluster.start("tests.work.echo")
    with pytest.raises(WorkerDied, match="is lost: its cluster was stopped"):
        worker.wait(T)


def test_env_and_workdir_are_the_nodes(tmp_path: Path) -> None:
    (tmp_path / "there.py").write_text(
        "import os\ndef work_fn(channel):\n"
        "    channel.send([os.getcwd(), os.environ['COLOUR'], os.environ['MINIRAY_FAKE_GPUS']])\n"
    )
    node = NodeConfig(
        "node1",
        launcher=("/bin/sh", "-c"),
        python=sys.executable,
        workdir=str(tmp_path),
        env={"COLOUR": "blue 'n' \"green\""},
    )
    with Cluster([node], fake_gpus=True) as cluster:
        (worker,) = cluster.start("there.work_fn")
        assert worker.recv(T) == [str(tmp_path), "blue 'n' \"green\"", "1"]


@pytest.mark.parametrize(
    ("work_fn", "text"),
    [
        ("no_such_module.work_fn", "No module named 'no_such_module'"),
        ("tests.work.no_such_function", "has no function 'no_such_function'"),
        ("tests.work.ecko", "has no function 'ecko'; did you mean echo?"),
        ("tests.work.not_a_function", "is a int, not a function"),
        ("tests.broken_work.work_fn", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_work_function_that_leads_nowhere_is_a_cluster_error(work_fn: str, text: str) -> None:
    cluster = Cluster([NodeConfig.local(host="node1"), NodeConfig.local(host="node2")])
    with pytest.raises(ClusterError) as caught:
        cluster.start(work_fn)
    assert "2 of 2 nodes failed to start; nothing was left running" in str(caught.value)
    for host in ("node1", "node2"):
        assert f"\n  {host}: " in str(caught.value)
    assert str(caught.value).partition("\n\nThe traceback at node")[0].count(text) == 2


@pytest.mark.parametrize("work_fn", ["work_fn", "__main__.work_fn", ""])
def test_a_name_that_is_no_modules_function_is_refused_at_once(work_fn: str) -> None:
    with pytest.raises(ValueError, match=r"MODULE.FUNCTION"):
        Cluster([NodeConfig.local()]).start(work_fn)


def test_a_node_without_python_or_with_an_old_one_says_so(tmp_path: Path) -> None:
    old = tmp_path / "python"
    # A real interpreter that thinks it is an older one.
    old.write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "import sys; sys.version_info = (3, 9, 1); '
        "sys.version = '3.9.1 (old)'; $2\"\n"
    )
    old.chmod(0o755)
    nodes = [
        NodeConfig("none", launcher=("/bin/sh", "-c"), python="/no/such/python"),
        NodeConfig("old", launcher=("/bin/sh", "-c"), python=str(old)),
        NodeConfig("wrong", launcher=("/no/such/launcher",)),
    ]
    with pytest.raises(ClusterError) as caught:
        Cluster(nodes[:2]).start("tests.work.echo")
    assert "none: sh exited with status 127 before Python answered: " in str(caught.value)
    assert "/no/such/python" in str(caught.value)
    assert "old: python there is 3.9.1, MiniRay needs 3.11" in str(caught.value)
    with pytest.raises(ClusterError, match=r"cannot run /no/such/launcher: No such file"):
        Cluster(nodes).start("tests.work.echo")


def test_a_node_that_takes_no_code_in_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mute = tmp_path / "python"
    mute.write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "${{2%%;exec*}}; import time; time.sleep(600)"\n'
    )
    mute.chmod(0o755)
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "__init__.py").write_text("def work_fn(channel): pass\n")
    (tmp_path / "large" / "data").write_bytes(os.urandom(1 << 20))  # more than pipes hold
    monkeypatch.syspath_prepend(str(tmp_path))
    node = NodeConfig("mute", launcher=("/bin/sh", "-c"), python=str(mute))
    with pytest.raises(ClusterError, match=r"not ready after .*, while it took its code in"):
        Cluster([node], start_timeout=3.0).start("large.work_fn")


def test_a_node_that_was_never_started_can_be_stopped() -> None:
    """So it is if no thread can be had for its start."""
    node = Node(NodeConfig.local(), "node1", io.StringIO())
    node.begin_stop(T)
    node.hang_up(deadline_after(T))
    node.end(deadline_after(T))


def test_all_ranks_or_none() -> None:
    nodes = [NodeConfig.local(2, host="good"), NodeConfig("bad", launcher=("/bin/false",))]
    with pytest.raises(ClusterError, match=r"1 of 2 nodes failed to start.*\n  bad: "):
        Cluster(nodes).start("tests.work.echo")


@pytest.mark.slow
def test_a_node_that_never_gets_ready_is_given_up_after_the_timeout() -> None:
    node = NodeConfig("slow", launcher=("/bin/sh", "-c", "cat >/dev/null; sleep 100"))
    with pytest.raises(ClusterError, match=r"slow: not ready after \d\.\ds"):
        Cluster([node], start_timeout=0.5).start("tests.work.echo")


def test_a_server_that_cannot_be_reached_names_the_remedies() -> None:
    with socket.create_server(("127.0.0.2", 0)) as elsewhere:
        assert elsewhere
        node = NodeConfig("node1", launcher=("/bin/sh", "-c"), address="127.0.0.2.invalid")
        with pytest.raises(ClusterError, match="node1: "):
            Cluster([node]).start("tests.work.echo")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"host": "-oProxyCommand=touch /tmp/x"}, "ssh would take it for an option"),
        ({"host": ""}, "is not a name"),
        ({"host": "a b"}, "is not a name"),
        ({"host": "node1", "num_workers": 0}, "num_workers of node1 must be >= 1, got 0"),
        ({"host": "n", "tunnel": True, "launcher": ("sh",)}, "a tunnel goes through ssh"),
    ],
)
def test_a_node_that_makes_no_sense_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        NodeConfig(**options)


def test_a_cluster_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one node"):
        Cluster([])


def test_a_cluster_of_names_is_refused() -> None:
    names: Any = ["node1"]
    with pytest.raises(TypeError, match=r"NodeConfig, not 'node1': \[NodeConfig\('node1'\)\]"):
        Cluster(names).start("tests.work.echo")


def test_who_has_not_been_started_has_nobody_to_talk_to() -> None:
    for talk in (lambda one: one.gather(), lambda one: one.broadcast(1)):
        with pytest.raises(RuntimeError, match="has no workers: start it first"):
            talk(Cluster([NodeConfig.local(1)]))


def test_port_in_use_is_said() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(OSError, match=r"cannot listen on 127.0.0.1:\d+: .*choose another"),
    ):
        WorkerServer(work.echo, port=taken.getsockname()[1])


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("work_fn", ValueError),
        ("no_such_module.f", ImportError),
        ("tests.work.no_such", ImportError),
        ("tests.work.not_a_function", TypeError),
    ],
)
def test_load_work_fn_says_what_is_wrong(name: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"no_such|not_a_function|MODULE\.FUNCTION"):
        load_work_fn(name)


@pytest.mark.ssh
def test_a_tunnel_opens_no_port(loopback_sshd: ssh.LoopbackNodes) -> None:
    nodes = [
        NodeConfig(
            host, 2, python=sys.executable, ssh_options=loopback_sshd.ssh_options, tunnel=True
        )
        for host in loopback_sshd.hosts
    ]
    with Cluster(nodes) as cluster:
        workers = cluster.start("tests.work.obey")
        for worker in workers:
            worker.send("through")
        assert [worker.recv(T) for worker in workers] == ["through"] * 4
        for status in cluster.status():
            family = [psutil.Process(status["server"]["pid"])]
            family += family[0].children(recursive=True)
            listening = [
                one
                for process in family
                for one in process.net_connections("inet")
                if one.status == psutil.CONN_LISTEN
            ]
            assert listening == []


@pytest.mark.thorough
@pytest.mark.ssh
def test_every_login_shell_will_do(login_shell_sshd: ssh.LoopbackNodes) -> None:
    start_and_echo(login_shell_sshd)


@pytest.mark.ssh
def test_a_noisy_rc_file_does_not_matter(noisy_sshd: ssh.LoopbackNodes) -> None:
    start_and_echo(noisy_sshd)


def start_and_echo(nodes: ssh.LoopbackNodes) -> None:
    config = NodeConfig(
        nodes.hosts[0],
        2,
        python=sys.executable,
        ssh_options=nodes.ssh_options,
        env={"WORDS": 'it\'s "quoted" $HOME `x` \\n !'},
    )
    with Cluster([config], log=io.StringIO()) as cluster:
        for worker in cluster.start("tests.work.echo"):
            worker.send({"a": 1})
            assert worker.recv(T) == {"a": 1}


@pytest.mark.netns
@pytest.mark.ssh
def test_ipv6_nodes_work(netns_nodes: Any) -> None:
    script = (
        "import sys\nfrom miniray import *\n"
        f"options = {netns_nodes.ssh_options!r}\n"
        "node = NodeConfig('node1-v6', 2, python=sys.executable, ssh_options=options)\n"
        "with Cluster([node]) as cluster:\n"
        "    workers = cluster.start('tests.work.echo')\n"
        "    workers[1].send(6)\n"
        "    print(workers[1].recv(30), workers[1].host)\n"
    )
    ended = netns_nodes.python(script)
    assert ended.stdout == f"6 {netns_nodes.addresses_v6['node1']}\n", ended.stderr
    netns_nodes.wait_until_empty()
