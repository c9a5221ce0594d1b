"""FSDP steps a second of eight ranks on two local nodes, beside torchrun, and the ranks' memory."""

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import LIMIT, OURS, Figure
from benchmarks.start import (
    DEADLINE_S,
    NODES,
    RANKS_PER_NODE,
    REPOSITORY,
    peers_environment,
    torchrun_command,
)
from miniray import Cluster, NodeConfig

STEPS_TARGET = 1.05
MIB_TARGET = 1.0


def run(quick: bool) -> Iterator[Figure]:
    """Yield one figure in steps a second and one in MiB; torchrun stands where the limit does."""
    steps, repetitions = (5, 1) if quick else (60, 5)
    speeds: dict[str, list[float]] = {OURS: [], LIMIT: []}
    memories: dict[str, list[float]] = {OURS: [], LIMIT: []}
    for _ in range(repetitions):
        for name, measure in ((OURS, train_on_cluster), (LIMIT, train_with_torchrun)):
            speed, mebibytes = measure(steps)
            speeds[name].append(speed)
            memories[name].append(mebibytes)
    yield Figure("FSDP steps, 8 ranks (limit: torchrun)", "/s", speeds, STEPS_TARGET, True)
    yield Figure("memory of 8 idle ranks, PSS (limit: torchrun)", "MiB", memories, MIB_TARGET)


def train_on_cluster(steps: int) -> tuple[float, float]:
    """Return the steps a second, and the MiB that all ranks take together before."""
    nodes = [NodeConfig.local(RANKS_PER_NODE, host=f"node{n}") for n in range(NODES)]
    with Cluster(nodes, fake_gpus=True) as cluster:
        workers = cluster.start("benchmarks.training.work")
        for worker, config in zip(workers, cluster.nccl_configs(), strict=True):
            worker.send({"config": config.__dict__, "steps": steps})
        results = [worker.recv(DEADLINE_S) for worker in workers]
    return results[0][0], sum(mebibytes for _, mebibytes in results)


def train_with_torchrun(steps: int) -> tuple[float, float]:
    """Return the same of ranks that torchrun has started."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        command = torchrun_command("benchmarks.training", str(steps), folder)
        env = peers_environment()
        launchers = [
            stack.enter_context(
                subprocess.Popen(command, cwd=REPOSITORY, env=env, stderr=subprocess.DEVNULL)
            )
            for _ in range(NODES)
        ]
        for launcher in launchers:
            launcher.wait(DEADLINE_S)
        results = [path.read_text().split() for path in sorted(Path(folder).iterdir())]
    if len(results) != NODES * RANKS_PER_NODE:
        raise RuntimeError(f"{len(results)} of torchrun's ranks came to their end")
    return float(results[0][0]), sum(float(mebibytes) for _, mebibytes in results)
