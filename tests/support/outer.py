"""Stand-ins for launchers that start each rank by themselves: what a rank finds, and no more."""

import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from miniray.cli.outer_place import port_of_step
from tests.support import ports

REPOSITORY = Path(__file__).resolve().parents[2]
DONE_S = 60.0


class Job:
    """One process a rank, each with a file that it prints into."""

    def __init__(self, folder: Path, environments: Sequence[dict[str, str]]) -> None:
        self.folder, self.environments = folder, list(environments)
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, *arguments: str, ranks: Sequence[int] | None = None, **env: str) -> None:
        """Start `miniray run-rank` with these arguments, as some or all ranks."""
        for rank in range(len(self.environments)) if ranks is None else ranks:
            command = [sys.executable, "-m", "miniray", "run-rank", *arguments]
            with self._file(rank).open("wb") as output:
                self.processes[rank] = subprocess.Popen(
                    command,
                    cwd=REPOSITORY,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    env=os.environ | self.environments[rank] | env,
                )

    def _file(self, rank: int) -> Path:
        return self.folder / f"output{rank}"

    def said(self, rank: int = 0) -> str:
        """Return what a rank's process, and all that it started, have printed."""
        return self._file(rank).read_text()

    def wait(self) -> list[int]:
        """Return the exit status of each process, by rank."""
        statuses = {rank: self.processes[rank].wait(DONE_S) for rank in sorted(self.processes)}
        for rank, status in statuses.items():
            print(f"--- rank {rank} exited with {status}:\n{self.said(rank)}")
        return [*statuses.values()]

    def signal(self, number: int) -> None:
        """Send a signal to each process, as launchers do."""
        for process in self.processes.values():
            process.send_signal(number)

    def end(self) -> None:
        """End what is left."""
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()


def _is_free(port: int) -> bool:
    """Return whether a port is free that systems give to nobody by themselves."""
    return ports.is_free("127.0.0.1", port)


def operator_environments(size: int) -> list[dict[str, str]]:
    """Return what a training operator sets in pods of one rank each."""
    port = random.randrange(15_000, 30_000)
    while not _is_free(port):
        port += 1
    common = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [{**common, "RANK": str(rank), "PYTHONUNBUFFERED": "1"} for rank in range(size)]


def slurm_environments(size: int) -> list[dict[str, str]]:
    """Return what srun sets for the tasks of a step on this machine."""
    host = "localhost"
    step = {"SLURM_STEP_ID": "3", "SLURM_JOB_ID": str(random.randrange(10**6))}
    while not _is_free(port_of_step(step)):
        step["SLURM_JOB_ID"] = str(random.randrange(10**6))
    common = {
        **step,
        "SLURM_NTASKS": str(size),
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_JOB_NODELIST": host,
        "SLURM_STEP_NODELIST": host,
        "SLURM_STEP_TASKS_PER_NODE": str(size),
        "SLURM_TASKS_PER_NODE": str(size),
        "SLURMD_NODENAME": host,
    }
    return [
        {**common, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(size)
    ]


LAUNCHERS = {"operator": operator_environments, "srun": slurm_environments}
