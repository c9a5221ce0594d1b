"""RayCluster, on a Ray of its own: where ranks are, how they end, and that examples run on it.

What a worker does, on Ray as elsewhere, is in test_every_worker.py.
"""

import functools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from miniray import ClusterError, NodeConfig, RemoteWorker, WorkerDied, WorkerFailed, errors
from tests.contracts import test_clusters
from tests.support import poll, processes
from tests.test_cells import Notebook
from tools.site import blocks as site

pytestmark = pytest.mark.ray
ray = pytest.importorskip("ray")

from miniray.extras import ray_cluster  # noqa: E402  # it needs Ray
from miniray.extras.hosted import HostedCluster  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[1]
EXAMPLES = REPOSITORY / "examples"
T = 60.0
RayCluster = functools.partial(ray_cluster.RayCluster, start_timeout=240.0)
NODES = [NodeConfig.local(2, host="node1"), NodeConfig.local(1, host="node2")]


def actor_of(worker: RemoteWorker) -> psutil.Process:
    """Return the process of the actor that keeps a rank: its host's parent."""
    actor = psutil.Process(worker.pid).parents()[1]
    assert actor.name().startswith("ray::")
    return actor


def without_log(nodes: Any, *, log: Any, **options: Any) -> ray_cluster.RayCluster:
    """Return a RayCluster as the contracts make a Cluster: the log is Ray's."""
    return RayCluster(nodes, **options)


ON_A_RAY: Any = SimpleNamespace(
    cluster=SimpleNamespace(
        Cluster=lambda nodes, log=None, **more: without_log(nodes, log=log, **more),
        NodeConfig=NodeConfig,
    ),
    errors=errors,
)


@pytest.mark.parametrize(
    "contract",
    [
        test_clusters.test_ranks_over_two_local_nodes,
        test_clusters.test_a_rank_that_hangs_is_ended_with_the_rest,
    ],
)
def test_a_clusters_contract_is_kept(contract: Any) -> None:
    contract(ON_A_RAY)


def test_ranks_are_ordered_over_nodes_and_named_after_them() -> None:
    with RayCluster([*NODES, NODES[0]]) as cluster:
        workers = cluster.start("tests.work.obey")
        assert [worker.name.split(":")[0] for worker in workers] == [
            *("rank 0 at node1#0", "rank 1 at node1#0", "rank 2 at node2"),
            *("rank 3 at node1#2", "rank 4 at node1#2"),
        ]
        assert len({actor_of(worker).pid for worker in workers}) == 5


def test_stop_gives_everything_back_and_the_cluster_can_start_again() -> None:
    cpus = ray.cluster_resources()["CPU"]

    def are_free(count: float) -> bool:
        return bool(ray.available_resources().get("CPU", 0) == count)

    poll.until(lambda: are_free(cpus), timeout_s=T)  # what the test before this one had
    with RayCluster(NODES, cpus_per_worker=2.0) as cluster:
        for _ in range(2):
            workers = cluster.start("tests.work.echo")
            with pytest.raises(RuntimeError, match="has been started"):
                cluster.start("tests.work.echo")
            poll.until(lambda: are_free(cpus - 6), timeout_s=T)
            workers[2].send(1)
            assert workers[2].recv(T) == 1
            cluster.stop()
            cluster.stop()
            processes.wait_until_gone([worker.pid for worker in workers], timeout_s=T)
            poll.until(lambda: are_free(cpus), timeout_s=T)


def test_what_ray_has_no_place_for_is_said_in_numbers() -> None:
    cluster = RayCluster([NodeConfig.local(100)], start_timeout=1.0)
    with pytest.raises(
        ClusterError, match=r"Ray has found no place for 1 node \(PACK\) within 1 s"
    ):
        cluster.start("tests.work.echo")
    with pytest.raises(ClusterError, match="CPU: 100 wanted, 8 there, "):
        cluster.start("tests.work.echo")


def test_ctrl_c_is_heard_while_ray_looks_for_a_place() -> None:
    def start() -> None:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        RayCluster([NodeConfig.local(100)]).start("tests.work.echo")

    with pytest.raises(KeyboardInterrupt):
        start()


def test_an_actor_that_ray_has_not_started_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class Keeper:
        def __init__(self, name: str) -> None:
            import signal

            signal.pause()

        def keep(self, *arguments: Any) -> None: ...

    def gather(cluster: HostedCluster, *arguments: Any) -> None:
        raise ClusterError("rank 0 has not come")

    monkeypatch.setattr(ray_cluster, "make_keeper_class", lambda: ray.remote(Keeper))
    monkeypatch.setattr(HostedCluster, "gather_ranks", gather)
    with pytest.raises(ClusterError) as caught:
        RayCluster(NODES).start("tests.work.echo")
    assert str(caught.value).startswith("rank 0 has not come\n  Ray has not started the actors")
    assert "of these ranks yet: 0, 1, 2" in str(caught.value)


@pytest.mark.parametrize("calls", [False, True])
def test_a_module_that_fails_is_said_with_its_traceback(calls: bool) -> None:
    with pytest.raises(ClusterError) as caught:
        RayCluster(NODES).start("tests.broken_work.work_fn", calls=calls)
    said = str(caught.value)
    assert "of 3 ranks failed to start; nothing is left running" in said
    assert "raised ZeroDivisionError: division by zero" in said
    assert "The traceback of rank" in said


@pytest.mark.parametrize(
    "options",
    [
        {"tunnel": True},
        {"encrypt": True},
        {"address": "10.0.0.1"},
        {"ssh_options": ["-p2222"]},
        {"launcher": ["kubectl"]},
        {"python": "/opt/python"},
    ],
    ids=lambda one: next(iter(one)),
)
def test_what_ray_decides_is_refused(options: Any) -> None:
    with pytest.raises(ValueError, match=f"node1: on Ray there is no {next(iter(options))}"):
        RayCluster([NodeConfig("node1", **options)])


def test_env_and_workdir_are_the_ranks(tmp_path: Path) -> None:
    node = NodeConfig.local(workdir=str(tmp_path), env={"COLOUR": "blue"})
    with RayCluster([node], fake_gpus=True) as cluster:
        (worker,) = cluster.start("tests.work.echo", calls=True)
        assert worker.call("os.getcwd", timeout=T) == str(tmp_path)
        assert worker.call("os.getenv", "COLOUR", timeout=T) == "blue"
        assert worker.call("os.getenv", "MINIRAY_FAKE_GPUS", timeout=T) == "1"


def run_script(folder: Path, text: str) -> "subprocess.Popen[str]":
    """Start a script that connects to Ray by itself."""
    (folder / "script.py").write_text(
        "import functools\nfrom miniray import NodeConfig\nfrom miniray.extras import ray_cluster\n"
        "RayCluster = functools.partial(ray_cluster.RayCluster, start_timeout=240.0)\n" + text
    )
    return subprocess.Popen(
        [sys.executable, str(folder / "script.py")],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_folder_goes_along(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "numbers.txt").write_text("42")
    script = run_script(
        tmp_path,
        f"with RayCluster([NodeConfig('n')], sync={str(data)!r}) as cluster:\n"
        "    print(cluster.run('os.listdir'))\n",
    )
    assert script.communicate(timeout=T)[0] == "[['numbers.txt']]\n"
    with pytest.raises(RuntimeError, match=r"say ray.init\(runtime_env={'working_dir': '.'}\)"):
        RayCluster(NODES, sync=".").start("tests.work.echo")


def test_a_notebooks_function_goes_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = Notebook(monkeypatch)
    notebook.run("N = 2\ndef double(number):\n    return N * number")
    notebook.run("def work(channel):\n    for one in channel:\n        channel.send(double(one))")
    with RayCluster([NodeConfig.local()]) as cluster:
        (worker,) = cluster.start(vars(notebook.here)["work"])
        worker.send(21)
        assert worker.recv(T) == 42
        cluster.stop()
        assert cluster.run(vars(notebook.here)["double"], 3, timeout=T) == [6]


def test_a_script_without_its_guard_is_told_of_it(tmp_path: Path) -> None:
    script = run_script(
        tmp_path,
        "from miniray import ClusterError\ndef work(channel):\n    pass\n"
        "try:\n    RayCluster([NodeConfig('n', 2)]).start(work)\n"
        "except ClusterError as error:\n    print(error)\n",
    )
    said, _ = script.communicate(timeout=T)
    assert said.startswith("2 of 2 ranks failed to start; nothing is left running:\n")
    assert "module script starts a cluster when it is imported" in said
    assert 'what only the coordinator is to do below: if __name__ == "__main__":' in said


def test_a_ray_that_nobody_has_started_is_not_waited_for(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # and nobody listens
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        script = run_script(
            tmp_path,
            f"import os\nos.environ['RAY_ADDRESS'] = {address!r}\n"
            "from miniray import ClusterError\n"
            "try:\n    RayCluster([NodeConfig('n')], start_timeout=0.5).start('tests.work.echo')\n"
            "except ClusterError as error:\n    print(error)\n",
        )
        said, _ = script.communicate(timeout=T)
    problem = f"no Ray answers at {address} (RAY_ADDRESS) within 0.5 s"
    assert said == f"{problem}: Connection refused\n"


def test_an_address_that_is_rays_to_understand_is_left_to_it() -> None:
    for address in ("", "auto", "local", "ray://10.0.0.1:10001"):
        ray_cluster.await_ray(address, 0.0)


def test_after_a_shutdown_of_ray_a_cluster_can_be_stopped_and_started(tmp_path: Path) -> None:
    script = run_script(
        tmp_path,
        "import ray\ncluster = RayCluster([NodeConfig('n')])\n"
        "(worker,) = cluster.start('tests.work.echo')\nray.shutdown()\n"
        "try:\n    worker.recv(60)\nexcept Exception as error:\n    print(error)\n"
        "assert not ray.is_initialized()\ncluster.stop()\n"
        "(worker,) = cluster.start('tests.work.echo')\nworker.send(1)\nprint(worker.recv(60))\n"
        "ray.shutdown()\nray.init()\ncluster.stop()\n",
    )
    said, _ = script.communicate(timeout=5 * T)
    assert script.returncode == 0
    assert re.search(r"^rank 0 at n:\d+ is lost: .*Ray has been shut down", said)
    assert "\n1\n" in said


def test_a_folder_that_is_not_there_is_said_in_words() -> None:
    with pytest.raises(ClusterError, match=r"FileNotFoundError: .*: '/no/such/folder'") as caught:
        RayCluster([NodeConfig.local(workdir="/no/such/folder")]).start("tests.work.echo")
    assert "{" not in str(caught.value)


def test_each_rank_sees_the_gpu_that_ray_gives_it() -> None:
    with RayCluster([NodeConfig.local(2)]) as cluster:
        workers = cluster.start("tests.work.echo", calls=True)
        seen = [worker.call("os.getenv", "CUDA_VISIBLE_DEVICES", timeout=T) for worker in workers]
        assert len(set(seen) & set("01234567")) == 2
    with RayCluster([NodeConfig.local()], gpus_per_worker=0) as cluster:
        (worker,) = cluster.start("tests.work.echo", calls=True)
        assert not worker.call("os.getenv", "CUDA_VISIBLE_DEVICES", timeout=T)


def test_run_map_and_restarts() -> None:
    with RayCluster(NODES) as cluster:
        assert cluster.run("os.getenv", "WORLD_SIZE", timeout=T) == ["3"] * 3
        assert list(cluster.map("math.factorial", [3, 4, 5], timeout=T)) == [6, 24, 120]
        with pytest.raises(WorkerFailed, match="raised ValueError"):
            cluster.run("math.factorial", -1, timeout=T)


def test_a_run_begins_anew_after_a_failure(tmp_path: Path) -> None:
    with RayCluster(NODES) as cluster:
        failed = cluster.run_resilient("tests.work.fail_until", str(tmp_path), 1, restarts=2)
        assert failed == [1, 1, 1]
        with pytest.raises(ValueError, match="drop without_lost"):
            cluster.restart(without_lost=True)
        assert len(cluster.restart(NODES[:1])) == 2
        with pytest.raises(ClusterError, match="no place for 1 node"):
            cluster.restart([NodeConfig.local(100)], timeout=0.5)
        poll.until(lambda: "PENDING" not in states_of_reservations(), timeout_s=T)


def states_of_reservations() -> set[str]:
    return {one["state"] for one in ray.util.placement_group_table().values()}


def test_ranks_are_a_group_and_the_culprit_is_named() -> None:
    with RayCluster(NODES) as cluster:
        workers = cluster.start("tests.work.obey")
        cluster.nccl_configs()
        assert repr(cluster).startswith("<RayCluster of 3 ranks (2 on ")
        assert repr(cluster).endswith("): running>")
        workers[1].send("die")
        for worker in workers:
            with pytest.raises(WorkerDied, match=r"rank 1 at node1:\d+ was killed by SIGKILL"):
                worker.recv(T)
        assert "(2 on node1, 1 on node2): rank 1 at node1:" in repr(cluster)
        assert "was killed by SIGKILL" in repr(cluster)


def test_who_loses_its_actor_is_lost_in_rays_words() -> None:
    with RayCluster([NodeConfig.local(2)]) as cluster:
        worker, other = cluster.start("tests.work.echo")
        actor_of(worker).kill()
        with pytest.raises(WorkerDied, match=r"rank 0 at local:\d+ is lost: .*Ray says: The actor"):
            worker.recv(T)
        processes.wait_until_gone([worker.pid], timeout_s=T)
        other.send("unharmed")
        assert other.recv(T) == "unharmed"


def test_a_killed_host_leaves_no_code() -> None:
    """Ray kills an actor's children when the actor ends, and they may have had no time."""
    with RayCluster([NodeConfig.local()]) as cluster:
        (worker,) = cluster.start("tests.work.echo", calls=True)
        host = psutil.Process(worker.pid).parent()
        assert host is not None
        folder = Path(worker.call("os.getenv", "PYTHONPATH", timeout=T).partition(os.pathsep)[0])
        assert folder.name.startswith("miniray-")
        host.kill()
        with pytest.raises(WorkerDied):
            worker.recv(T)
        poll.until(lambda: not folder.exists(), timeout_s=T)


def test_a_killed_coordinator_leaves_nothing(tmp_path: Path) -> None:
    with run_script(
        tmp_path,
        "workers = RayCluster([NodeConfig('n', 2)]).start('tests.work.echo')\n"
        "print(*(worker.pid for worker in workers), flush=True)\nimport signal; signal.pause()\n",
    ) as coordinator:
        assert coordinator.stdout is not None
        pids = list(map(int, coordinator.stdout.readline().split()))
        assert len(pids) == 2
        assert all(map(processes.is_running, pids))
        coordinator.kill()
    processes.wait_until_gone(pids, timeout_s=T)


def test_nodes_are_placed_as_the_strategy_says() -> None:
    with RayCluster(NODES, strategy="STRICT_PACK") as cluster:
        assert len(cluster.start("tests.work.echo")) == 3
    apart = RayCluster(NODES, strategy="STRICT_SPREAD", start_timeout=1.0)
    with pytest.raises(ClusterError, match=r"no place for 2 nodes \(STRICT_SPREAD\)"):
        apart.start("tests.work.echo")  # there is one machine


class TestExamples:
    """The files in examples/, with one import changed."""

    def on_ray(self, name: str, folder: Path) -> Path:
        """Return a copy of an example in which Cluster is Ray's."""
        text = (EXAMPLES / name).read_text()
        (before,) = re.findall(r"^from miniray import .*\bCluster\b.*$", text, re.MULTILINE)
        after = before.replace(" Cluster,", "")
        ours = "from miniray.extras.ray_cluster import RayCluster as Cluster"
        copy = folder / name
        copy.write_text(text.replace(before, f"{after}\n{ours}"))
        return copy

    def run(self, script: Path, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, script.name, *arguments],
            cwd=script.parent,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            timeout=280,
        )
        print(done.stdout, done.stderr)
        assert done.returncode == 0
        return done.stdout

    def test_parallel_map(self, tmp_path: Path) -> None:
        script = self.on_ray("parallel_map.py", tmp_path)
        said = self.run(script, "--hosts", "a,b", "--workers", "1", "--tasks", "4")
        assert said.endswith("4 of 4 tasks done\n")

    def test_rollouts(self, tmp_path: Path) -> None:
        script = self.on_ray("rollouts.py", tmp_path)
        said = self.run(script, "--hosts", "a,b", "--actors", "1", "--rounds", "2")
        assert "round   2/2  mean score" in said

    def test_training_is_the_same_to_the_last_bit(self, tmp_path: Path) -> None:
        script = self.on_ray("train_distributed_miniray.py", tmp_path)
        where = ("--local", "1x2", "--fake-gpus", "--steps", "2", "--checkpoints")
        ours = self.run(EXAMPLES / script.name, *where, str(tmp_path / "ours"))
        rays = self.run(script, *where, str(tmp_path / "rays"))
        assert "saved step 2 sha256" in rays
        assert rays.splitlines()[1:] == ours.splitlines()[1:]  # the first has the ranks' pids

    def test_the_pages_transcript_is_what_it_prints(self) -> None:
        blocks = site.find(site.DOCS / "guides" / "ray.md", "text")
        (block,) = [one for one in blocks if one.lines[0].startswith("$")]
        printed = [line for line in site.run_console(block) if line.startswith(("$", "step"))]
        assert printed == block.lines
