"""Chapter 4: the job is stopped, and started again; its servers were never told.

The two machines are this one, twice. The servers are started as one starts them by hand over ssh:
`nohup python -m ... &`.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.stage3_worker_server.remote_worker import RemoteWorker
from stages.stage4_ssh_cluster.channel import Channel
from stages.stage4_ssh_cluster.cluster import Cluster, NodeConfig
from stages.stage4_ssh_cluster.demo import wait_for_end
from stages.stage4_ssh_cluster.worker import Worker

from . import job

EACH, STEPS, PATIENCE_S = 2, 4, 5.0
CODE_ROOT = Path(__file__).parents[2]

WORK = """\
from stages.story import job

def compute(coordinator):
    share = coordinator.recv()
    for weights in coordinator:
        answer = job.compute(weights, share)
        answer["gradient"] = [[{sign}one for one in row] for row in answer["gradient"]]
        coordinator.send(answer)
"""


def dies() -> None:
    """Start servers by hand, kill the job, mend it, and start it again."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MINIRAY_KEY_FILE"] = f"{folder}/key"
        work = Path(folder, "work.py")
        print("Evening. The loss goes up: somebody has lost a minus sign.")
        work.write_text(WORK.format(sign="-"))
        servers = [start_server(folder, f"machine{number}") for number in (1, 2)]
        run_and_kill(lambda: train(connect(servers)))
        print("The job is killed, and the sign is mended. Morning: the same two commands.")
        work.write_text(WORK.format(sign=""))
        for number, server in enumerate(servers, 1):
            start_server(folder, f"machine{number}", server.port)
        train(connect(servers))
        print(f"   servers that run: {[server.pid for server in servers]}, since yesterday")
        for server in servers:
            os.kill(server.pid, signal.SIGTERM)
        wait_for_end([server.pid for server in servers])


@dataclass
class Server:
    """A server that was started by hand."""

    pid: int
    port: int


def start_server(folder: str, name: str, port: int = 0) -> Server:
    """Start a server as one does by hand, and read in its log where it listens."""
    log = Path(folder, f"{name}-{port}.log")
    command = (
        f"cd {folder} && PYTHONPATH={CODE_ROOT} nohup {sys.executable} "
        "-m stages.stage3_worker_server.worker_server "
        f"--port {port} --work-fn work.compute > {log} 2>&1 & echo $!"
    )
    done = subprocess.run(["sh", "-c", command], stdout=subprocess.PIPE, text=True, check=True)
    while not log.exists() or "listen" not in log.read_text():
        time.sleep(0.02)
    said = log.read_text().splitlines()[-1]
    if "cannot" in said:
        print(f"   {name}.log: {said.partition('error: ')[2].partition(';')[0]}")
        return Server(int(done.stdout), port)
    return Server(int(done.stdout), int(said.rpartition(":")[2]))


def connect(servers: list[Server]) -> list[Any]:
    return [RemoteWorker("127.0.0.1", server.port) for server in servers for _ in range(EACH)]


def train(workers: list[Any]) -> None:
    for worker, share in zip(workers, job.read_shares(2 * EACH), strict=True):
        worker.send(share)
    job.train(workers, STEPS, lambda worker: worker.recv(timeout=PATIENCE_S))


def run_and_kill(coordinate: Callable[[], object]) -> None:
    """Run a coordinator in a process of its own, and kill it when it has taken its steps."""

    def run(channel: Channel) -> None:
        coordinate()
        channel.send("done")
        signal.pause()

    with Worker(run, name="the coordinator") as coordinator:
        coordinator.recv(timeout=60.0)
        os.kill(coordinator.pid, signal.SIGKILL)
        coordinator.wait()


def survives() -> None:
    """Do the same with stage 4's cluster."""
    with tempfile.TemporaryDirectory() as folder:
        work, pids = Path(folder, "work.py"), Path(folder, "pids")
        nodes = [NodeConfig.local(EACH, host=host, workdir=folder) for host in ("node1", "node2")]

        def coordinate() -> None:
            cluster = Cluster(nodes)
            workers = cluster.start("work.compute")
            pids.write_text(" ".join(str(worker.pid) for worker in workers))
            train(workers)

        print("Evening. The same lost sign; the job is killed with SIGKILL.")
        work.write_text(WORK.format(sign="-"))
        run_and_kill(coordinate)
        left = wait_for_end([int(pid) for pid in pids.read_text().split()])
        print(f"   ranks that still run, though nobody told them to stop: {left or 'none'}")
        print("Morning. The sign is mended.")
        work.write_text(WORK.format(sign=""))
        with Cluster(nodes) as cluster:
            train(cluster.start("work.compute"))
