"""Nothing is left on a node, whoever is killed, stopped or stuck, from the first moment on."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from miniray import Cluster, ClusterError, NodeConfig, WorkerDied, bootstrap, pacemaker
from tests.support import poll, processes, ssh

pytestmark = pytest.mark.thorough
T = 30.0
REPOSITORY = Path(__file__).parents[1]

COORDINATOR = """
import sys
from miniray import *

node = NodeConfig({host!r}, 2, python=sys.executable, **{options!r})
cluster = Cluster([node], start_timeout=100)
workers = cluster.start({work_fn!r})
for worker in workers:
    worker.send("grandchildren")
pids = [pid for worker in workers for pid in worker.recv(30)]
print(cluster.status()[0]["server"]["pid"], *pids, flush=True)
for line in sys.stdin:
    workers[1].send(line)
    print(workers[1].recv(30), end="", flush=True)
cluster.stop()
"""
SLOW_MODULE = """
import subprocess, time
child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
open({told!r}, "w").write(str(child.pid))
time.sleep(1000)
"""


class Coordinator:
    """A process that has started a node with two workers, each with grandchildren."""

    def __init__(
        self,
        options: dict[str, Any],
        *,
        host: str = "node1",
        work_fn: str = "tests.work.obey",
        folder: Path = REPOSITORY,
    ) -> None:
        text = COORDINATOR.format(host=host, options=options, work_fn=work_fn)
        self.process = subprocess.Popen(
            [sys.executable, "-c", text],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout

    def wait_until_started(self) -> None:
        self.server, *self.workers = map(int, self.stdout.readline().split())
        self.keeper = psutil.Process(self.server).ppid()

    def everything(self) -> list[int]:
        return [self.keeper, self.server, *self.workers]

    def ask(self, line: str) -> str:
        self.stdin.write(line + "\n")
        self.stdin.flush()
        return self.stdout.readline().strip()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.stdin.close()
        self.stdout.close()


@contextlib.contextmanager
def coordinator(options: dict[str, Any], **more: Any) -> Iterator[Coordinator]:
    one = Coordinator(options, **more)
    try:
        yield one
    finally:
        one.close()


LOCAL = {"launcher": ("/bin/sh", "-c")}


def over_ssh(nodes: ssh.LoopbackNodes, **options: Any) -> dict[str, Any]:
    return {"ssh_options": nodes.ssh_options, **options}


@pytest.fixture(params=["local", "ssh", "tunnel"])
def way(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return how to reach a node, in each of the three ways."""
    if request.param == "local":
        return LOCAL
    nodes: ssh.LoopbackNodes = request.getfixturevalue("loopback_sshd")
    return over_ssh(nodes, tunnel=request.param == "tunnel")


def kill_session(coordinator_pid: int) -> None:
    """Kill ssh, or where there is none what runs the node's command in its place."""
    coordinator_process = psutil.Process(coordinator_pid)
    below = coordinator_process.children(recursive=True)
    for process in [one for one in below if one.name() == "ssh"] or coordinator_process.children():
        process.kill()


def signal_it(server: int) -> bool:
    """Send a process some signals; return whether it has ended."""
    with contextlib.suppress(ProcessLookupError):
        for _ in range(100):
            os.kill(server, signal.SIGTERM)
    return not processes.is_running(server)


@pytest.mark.ssh
@pytest.mark.parametrize("victim", ["coordinator", "keeper", "server", "session"])
def test_nothing_is_left_whoever_is_killed(way: dict[str, Any], victim: str) -> None:
    with coordinator(way) as one:
        one.wait_until_started()
        own = psutil.Process(one.process.pid).children(recursive=True)
        if victim == "coordinator":
            one.process.kill()
        elif victim in ("keeper", "server"):
            os.kill(getattr(one, victim), signal.SIGKILL)
        else:
            kill_session(one.process.pid)
        processes.wait_until_gone(one.everything(), timeout_s=15)
        if victim == "coordinator":
            # The pacemaker and ssh, and the folder of the tunnel's socket, which the fixture sees.
            processes.wait_until_gone([process.pid for process in own], timeout_s=15)


def test_a_server_that_clears_up_is_not_broken_off_by_a_signal(way: dict[str, Any]) -> None:
    """The kernel's own, for the keeper's death, may come when stdin has already told of that."""
    with coordinator(way) as one:
        one.wait_until_started()
        os.kill(one.keeper, signal.SIGKILL)
        poll.until(lambda: signal_it(one.server), timeout_s=15)
        processes.wait_until_gone(one.everything(), timeout_s=15)


def test_a_tunnels_socket_is_removed_with_its_folder(tmp_path: Path) -> None:
    """An ssh that was killed leaves both."""
    folder = tmp_path / "tunnel"
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(folder / "socket"))
    for _ in range(2):
        pacemaker.remove(str(folder / "socket"))
        assert not folder.exists()


@pytest.mark.ssh
@pytest.mark.parametrize("victim", ["keeper", "server", "keeper and server"])
def test_a_stopped_process_of_a_node_does_not_keep_it(way: dict[str, Any], victim: str) -> None:
    with coordinator(way) as one:
        one.wait_until_started()
        for name in victim.split(" and "):
            os.kill(getattr(one, name), signal.SIGSTOP)
        begun = time.monotonic()
        one.stdin.close()
        assert one.process.wait(T) == 0
        assert time.monotonic() - begun < 6  # the promise is 4, on a machine that is not busy
        processes.wait_until_gone(one.everything(), timeout_s=T)


@pytest.mark.ssh
@pytest.mark.parametrize("victim", ["keeper", "server"])
def test_a_stopped_process_of_a_node_dies_with_the_coordinator(
    way: dict[str, Any], victim: str
) -> None:
    with coordinator(way) as one:
        one.wait_until_started()
        os.kill(getattr(one, victim), signal.SIGSTOP)
        one.process.kill()
        processes.wait_until_gone(one.everything(), timeout_s=15)


@pytest.mark.ssh
@pytest.mark.slow
def test_a_coordinator_that_is_stopped_for_long_goes_on_afterwards(
    loopback_sshd: ssh.LoopbackNodes,
) -> None:
    ways = [LOCAL, over_ssh(loopback_sshd), over_ssh(loopback_sshd, tunnel=True)]
    with contextlib.ExitStack() as stack:
        everyone = [stack.enter_context(coordinator(way)) for way in ways]
        for one in everyone:
            one.wait_until_started()
            os.killpg(one.process.pid, signal.SIGSTOP)  # as a terminal does at Ctrl-Z
        with pytest.raises(subprocess.TimeoutExpired):
            one.process.wait(35)  # longer than any silence that ends a node
        for one in everyone:
            os.killpg(one.process.pid, signal.SIGCONT)
            assert one.ask("still there") == "still there"
            one.stdin.close()
            assert one.process.wait(T) == 0


@pytest.fixture
def slow_module(tmp_path: Path) -> Iterator[Path]:
    """Yield a file that a module which takes for ever to import fills when it begins."""
    told = tmp_path / "told"
    (tmp_path / "slow_to_import.py").write_text(SLOW_MODULE.format(told=str(told)))
    return told


def begun(told: Path) -> int:
    """Wait until the import has begun; return the process that it has started."""
    return int(poll.until(lambda: told.exists() and told.read_text(), timeout_s=T))


@pytest.mark.ssh
@pytest.mark.parametrize("victim", ["coordinator", "keeper", "session"])
def test_nothing_is_left_of_a_node_that_still_imports(
    way: dict[str, Any], slow_module: Path, victim: str
) -> None:
    with coordinator(way, work_fn="slow_to_import.f", folder=slow_module.parent) as one:
        child = begun(slow_module)
        server = psutil.Process(child).ppid()
        keeper = psutil.Process(server).ppid()
        if victim == "coordinator":
            one.process.kill()
        elif victim == "keeper":
            os.kill(keeper, signal.SIGKILL)
        else:
            kill_session(one.process.pid)
        processes.wait_until_gone([keeper, server, child], timeout_s=15)
        assert one.process.wait(T) != 0


@pytest.mark.ssh
def test_a_node_that_imports_for_too_long_is_ended(
    way: dict[str, Any], slow_module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(slow_module.parent))
    node = NodeConfig("node1", python=sys.executable, **way)
    started = time.monotonic()
    with pytest.raises(ClusterError) as caught:
        Cluster([node], start_timeout=2.0).start("slow_to_import.f")
    assert time.monotonic() - started < 6  # the promise is 4, on a machine that is not busy
    assert "node1: not ready after 2.0s, while it imported slow_to_import" in str(caught.value)
    processes.wait_until_gone([begun(slow_module)], timeout_s=T)


def test_a_stop_while_the_code_is_unpacked_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack, slow = bootstrap.pack, "import time; time.sleep(3); return folder"
    monkeypatch.setattr(
        bootstrap, "pack", lambda text, data: pack(text.replace("return folder", slow), data)
    )
    node = NodeConfig.local(env={"TMPDIR": str(tmp_path)})
    with pytest.raises(ClusterError, match="not ready after 1"):
        Cluster([node], start_timeout=1.0).start("tests.work.echo")
    poll.until(lambda: not list(tmp_path.iterdir()), timeout_s=T)


KEEPER_GOES = """
import {module}, os, signal, time

real = {module}.{name}

def kill_the_keeper_first(*args, **options):
    {module}.{name} = real
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(1)  # we hear of it meanwhile
    return real(*args, **options)

{module}.{name} = kill_the_keeper_first

def work_fn(channel):
    channel.recv()
"""


@pytest.mark.parametrize(("module", "name"), [("gc", "freeze"), ("shutil", "rmtree")])
def test_nothing_is_left_if_the_keeper_goes_while_its_server_does_not_serve(
    module: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Just before it serves, or while it clears up itself."""
    (tmp_path / "goes.py").write_text(KEEPER_GOES.format(module=module, name=name))
    monkeypatch.syspath_prepend(tmp_path)
    with contextlib.suppress(ClusterError, WorkerDied), Cluster([NodeConfig.local()]) as cluster:
        cluster.start("goes.work_fn")
    folders = Path(tempfile.gettempdir())
    poll.until(lambda: not list(folders.glob("miniray-*")), timeout_s=T, what="a clean node")


def test_every_rank_learns_how_its_server_ended() -> None:
    with Cluster([NodeConfig.local(2)]) as cluster:
        workers = cluster.start("tests.work.echo")
        os.kill(cluster.status()[0]["server"]["pid"], signal.SIGKILL)
        for worker in workers:
            with pytest.raises(WorkerDied, match="its server was killed by SIGKILL"):
                worker.recv(T)


@pytest.mark.slow
def test_orphans_that_end_while_the_cluster_runs_are_buried() -> None:
    with Cluster([NodeConfig.local()]) as cluster:
        (worker,) = cluster.start("tests.work.obey")
        worker.send("orphans")
        orphans = [psutil.Process(pid) for pid in worker.recv(T)]
        poll.until(lambda: not any(one.is_running() for one in orphans), timeout_s=T)


def test_zombies_of_strangers_do_not_confuse_the_keeper() -> None:
    """A worker that leaves orphans behind which end while it serves."""
    with Cluster([NodeConfig.local()]) as cluster:
        (worker,) = cluster.start("tests.work.obey")
        worker.send("grandchildren")
        for pid in worker.recv(T)[1:]:
            os.kill(pid, signal.SIGKILL)
        worker.send("still there")
        assert worker.recv(T) == "still there"


FORKS = """
import os, sys, time
from miniray import *

cluster = Cluster([NodeConfig("node1", python=sys.executable, **{options!r})])
(worker,) = cluster.start("tests.work.obey")
child = os.fork()
if child == 0:
    time.sleep(1000)
print(cluster.status()[0]["server"]["pid"], child, flush=True)
worker.recv()
"""


@pytest.mark.ssh
def test_a_forked_child_of_the_coordinator_holds_no_node(way: dict[str, Any]) -> None:
    one = subprocess.Popen(
        [sys.executable, "-c", FORKS.format(options=way)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert one.stdout is not None
    server, child = map(int, one.stdout.readline().split())
    one.kill()
    try:
        processes.wait_until_gone([server], timeout_s=15)
    finally:
        os.kill(child, signal.SIGKILL)
        one.communicate()
