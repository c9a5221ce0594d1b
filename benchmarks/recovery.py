"""From a rank's SIGKILL until eight ranks go on, beside a bare fork and torchrun's restart."""

import contextlib
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks.measure import LIMIT, OURS, Figure
from benchmarks.start import DEADLINE_S, REPOSITORY, free_port, peers_environment, torchrun_command
from miniray import Cluster, NodeConfig

NODES, RANKS_PER_NODE = 2, 4  # as in recovery_ranks.py, which imports torch
EVENTS = {
    "group": "8 ranks: one killed, to the next all_reduce",
    "step": "8 ranks: one killed, to the next step",
}
# A restart of torchrun's takes so long that it gets one a round.
ROUNDS, KILLS, PEERS_KILLS = 5, 4, 1
PAUSE_S = 0.2, 0.5

# Has eight ranks train in a folder; gives what is to be called after each kill.
Contestant = Callable[[Path], AbstractContextManager[Callable[[], None]]]


def run(quick: bool) -> Iterator[Figure]:
    """Yield one figure an event, in seconds; without torchrun if it is to be quick."""
    contestants: dict[str, Contestant] = {OURS: cluster, LIMIT: bare_fork, "torchrun": torchrun}
    if quick:
        del contestants["torchrun"]
    samples: dict[str, dict[str, list[float]]] = {
        event: {name: [] for name in contestants} for event in EVENTS
    }
    chance = random.Random(0)
    for _ in range(1 if quick else ROUNDS):
        for name, contestant in contestants.items():
            kills = 1 if quick else PEERS_KILLS if name == "torchrun" else KILLS
            for after in kill_and_wait(contestant, kills, chance):
                for event, seconds in after.items():
                    samples[event][name].append(seconds)
    for event, title in EVENTS.items():
        yield Figure(title, "s", samples[event])


def kill_and_wait(
    contestant: Contestant, kills: int, chance: random.Random
) -> Iterator[Mapping[str, float]]:
    """Kill a rank so often; yield after how many seconds all had told each event."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        told = Told(folder)
        with contextlib.closing(told), contestant(folder) as restart:
            told.wait(time.perf_counter())
            for _ in range(kills):
                time.sleep(chance.uniform(*PAUSE_S))  # somewhere in a step
                killed_at = time.perf_counter()
                os.kill(told.pids[chance.randrange(NODES * RANKS_PER_NODE)], signal.SIGKILL)
                restart()
                yield told.wait(killed_at)


class Told:
    """What the ranks tell, through a named pipe in their folder, and their pids."""

    def __init__(self, folder: Path) -> None:
        os.mkfifo(folder / "told")
        self._descriptor = os.open(folder / "told", os.O_RDWR)  # so that it never ends
        self.pids: dict[int, int] = {}

    def wait(self, since: float) -> dict[str, float]:
        """Return after how many seconds all ranks had told each event."""
        missing = {event: set(range(NODES * RANKS_PER_NODE)) for event in EVENTS}
        after: dict[str, float] = {}
        while len(after) < len(EVENTS):
            ready, _, _ = select.select([self._descriptor], [], [], DEADLINE_S)
            if not ready:
                raise RuntimeError(f"ranks that did not go on: {missing}")
            # Each line was one write, and short: it comes whole.
            for line in os.read(self._descriptor, 1 << 16).decode().splitlines():
                event, rank, pid = line.split()
                self.pids[int(rank)] = int(pid)
                missing[event].discard(int(rank))
                if not missing[event]:
                    after.setdefault(event, time.perf_counter() - since)
        return after

    def close(self) -> None:
        """Close the pipe."""
        os.close(self._descriptor)


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Callable[[], None]]:
    """Train on a cluster that notices by itself, and starts again."""
    nodes = [NodeConfig.local(RANKS_PER_NODE, host=f"node{n}") for n in range(NODES)]
    with open(os.devnull, "w") as log, Cluster(nodes, fake_gpus=True, log=log) as running:

        def train() -> None:
            running.run_resilient("benchmarks.recovery_ranks.work", str(folder), restarts=KILLS)

        thread = threading.Thread(target=train)
        thread.start()
        yield lambda: None
        (folder / "stop").touch()
        thread.join()


@contextlib.contextmanager
def bare_fork(folder: Path) -> Iterator[Callable[[], None]]:
    """Train on two processes that have imported torch, and fork anew as soon as they are told."""
    command = [sys.executable, "-m", "benchmarks.recovery_ranks", "node"]
    commands = [[*command, str(node), str(folder)] for node in range(NODES)]
    with started(commands, peers_environment()) as nodes:

        def fork() -> None:
            port = free_port()
            for node in nodes:
                assert node.stdin is not None
                node.stdin.write(f"{port}\n".encode())
                node.stdin.flush()

        fork()
        yield fork


@contextlib.contextmanager
def torchrun(folder: Path) -> Iterator[Callable[[], None]]:
    """Train under one torchrun a node, which notices by itself, and starts again.

    By default its ranks meet in the agents' own store, where those that are restarted find the
    addresses of the dead (torch 2.13, gloo): they end with "Connection refused", time and again.
    """
    command = torchrun_command("benchmarks.recovery_ranks", "rank", str(folder))
    at = command.index("--nnodes")
    command[at:at] = ["--max-restarts", str(PEERS_KILLS)]
    environment = {**peers_environment(), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with started([command] * NODES, environment) as agents:
        yield lambda: None
        (folder / "stop").touch()
        for agent in agents:  # its ranks are in sessions of their own
            agent.wait(DEADLINE_S)


@contextlib.contextmanager
def started(
    commands: list[list[str]], environment: dict[str, str]
) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Run commands, each in a session of its own, and kill all of it in the end."""
    with contextlib.ExitStack() as cleanup:
        processes = []
        for command in commands:
            process = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env=environment,
                stdin=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            cleanup.callback(_kill, process)
            processes.append(process)
        yield processes


def _kill(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:  # its pid is its own until then
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
