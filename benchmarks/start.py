"""Eight ranks on two nodes from nothing to an all_reduce, beside a bare fork and torchrun."""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.measure import LIMIT, OURS, Figure, interleave
from miniray import Cluster, NodeConfig

NODES, RANKS_PER_NODE = 2, 4  # as in ranks.py, which imports torch
TARGET = 1.05
DEADLINE_S = 120
REPOSITORY = Path(__file__).resolve().parents[1]


def run(quick: bool) -> Iterator[Figure]:
    """Yield one figure, in seconds."""
    contestants = {OURS: time_cluster, LIMIT: time_bare_fork, "torchrun": time_torchrun}
    # One round unmeasured has the files in the page cache.
    samples = interleave(contestants, 1 if quick else 5, warm_up=not quick)
    yield Figure("8 ranks on 2 nodes to the first all_reduce", "s", samples, TARGET)


def time_cluster() -> float:
    """Return the seconds from Cluster(...) until all ranks have answered."""
    nodes = [NodeConfig.local(RANKS_PER_NODE, host=f"node{n}") for n in range(NODES)]
    start = time.perf_counter()
    with Cluster(nodes, fake_gpus=True) as cluster:
        workers = cluster.start("benchmarks.ranks.work")
        for worker, config in zip(workers, cluster.nccl_configs(), strict=True):
            worker.send(config.__dict__)
        sums = [worker.recv(DEADLINE_S) for worker in workers]
        elapsed = time.perf_counter() - start
    assert sums == [NODES * RANKS_PER_NODE] * (NODES * RANKS_PER_NODE)
    return elapsed


def time_bare_fork() -> float:
    """Return the seconds for two processes that import torch once and fork four ranks each."""
    port = str(free_port())
    ranks = [sys.executable, "-m", "benchmarks.ranks"]
    return time_commands([[*ranks, "node", str(node), port] for node in range(NODES)])


def time_torchrun() -> float:
    """Return the seconds for one torchrun a node."""
    return time_commands([torchrun_command("benchmarks.ranks", "rank")] * NODES)


def torchrun_command(module: str, *arguments: str) -> list[str]:
    """Return what each node runs to have torchrun start its ranks of a module."""
    return [
        *(sys.executable, "-m", "torch.distributed.run"),
        *("--nnodes", str(NODES), "--nproc-per-node", str(RANKS_PER_NODE)),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}"),
        *("--local-addr", "127.0.0.1", "-m", module, *arguments),
    ]


def peers_environment() -> dict[str, str]:
    """Return the environment of ranks that are not ours.

    The loopback interface is what process_group finds for our ranks as well.
    """
    return {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}


def time_commands(commands: Sequence[Sequence[str]]) -> float:
    """Run the commands side by side; return the seconds until every rank has told it is done."""
    env = peers_environment()
    read, write = os.pipe()
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(os.close, read)
        start = time.perf_counter()
        with os.fdopen(write, "wb") as stdout:
            for command in commands:
                session = subprocess.Popen(
                    command,
                    cwd=REPOSITORY,
                    env=env,
                    stdout=stdout,
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                )
                cleanup.callback(_end, session)
        _read_bytes(read, NODES * RANKS_PER_NODE)
        return time.perf_counter() - start


def _read_bytes(descriptor: int, count: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while count > 0:
        ready, _, _ = select.select([descriptor], [], [], max(deadline - time.monotonic(), 0))
        data = os.read(descriptor, count) if ready else b""
        if not data:
            raise RuntimeError(f"{count} ranks did not come to their all_reduce")
        count -= len(data)


def _end(session: "subprocess.Popen[bytes]") -> None:
    """Give a command a moment to end by itself, then kill its whole session."""
    try:
        session.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        os.killpg(session.pid, signal.SIGKILL)
        session.communicate()


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
