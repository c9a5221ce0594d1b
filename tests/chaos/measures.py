"""Measure what the page of faults promises: how soon each thing is noticed, and by whom."""

import contextlib
import itertools
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from miniray import Cluster, NodeConfig, RemoteWorker, WorkerError
from tests.chaos import loss
from tests.support import namespaces, servers
from tests.support.proxy import Proxy

T = 60.0
DEATHS = 200
DELAY_S = 0.02  # until a death, so that whoever is to notice it waits
NODES = [NodeConfig.local(4, host="node1"), NodeConfig.local(4, host="node2")]
KILLS_IN_A_GROUP = 30
CLIENTS = 12
CLIENT_DELAY_S = 0.05
CLIENT_PAUSE_S = 1.0
FLOODED_S = 30.0
TRAINING_STEPS, TRAINING_KILLS = 60, 20

Measure = dict[str, Any]


def death_seen_by_recv() -> Iterator[Measure]:
    """Kill a worker of a server while somebody waits for its word, 200 times."""
    samples = []
    with servers.serving("tests.work.echo") as server:
        for _ in range(DEATHS):
            with server.worker() as worker:
                worker.send("a word")
                worker.recv(T)
                samples.append(_seconds_to_notice(worker, worker))
    yield _measure(
        "a worker's death, seen by `recv`", samples, "p99", 0.2, f"{DEATHS} workers over TCP"
    )


def silent_link() -> Iterator[Measure]:
    """Cut a node off, and look how soon every way of waiting says so."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
        with contextlib.closing(namespaces.Nodes(Path(directory))) as nodes:
            endings, clean_s = loss.lose_node2(nodes)
    ways = {
        "`recv`, alone": r"recv",
        "`wait`, alone": r"wait",
        "`recv` in a process group": r"group_recv",
        "`wait` in a process group": r"group_wait",
        "`send`": r"send",
    }
    for name, pattern in ways.items():
        ours = [one for way, one in endings.items() if re.match(pattern, way[1])]
        samples = [one["seconds"] if one["error"] == "WorkerDied" else T for one in ours]
        how = f"{len(ours)} ways and kinds of traffic, TCP and tunnel, all at once"
        yield _measure(f"a silent link, seen by {name}", samples, "worst", 20.0, how)
    yield _measure("a node that is cut off is clean", [clean_s], "worst", 30.0, "the same run")


def culprit_in_a_collective() -> Iterator[Measure]:
    """Kill a rank of 2 x 4 in an all_reduce, and read what each rank's error says."""
    dice, samples, right, asked = random.Random(12), [], 0, 0
    with Cluster(NODES, fake_gpus=True) as cluster:
        cluster.start("tests.chaos.reducing.reduce")
        for _ in range(KILLS_IN_A_GROUP):
            for worker, place in zip(cluster.workers, cluster.nccl_configs(), strict=True):
                worker.send(place.__dict__)
            for worker in cluster.workers:
                worker.recv(T)
            victim = dice.choice(cluster.workers)
            threading.Thread(target=_reduce_on, args=(cluster.workers,)).start()
            samples.append(_seconds_to_notice(victim, cluster.workers[0]))
            rank = victim.name.partition(" at ")[0]
            for worker in cluster.workers:
                asked += 1
                right += rank in _last_word(worker)
            cluster.restart()
    how = f"{KILLS_IN_A_GROUP} kills in an all_reduce of 2 x 4 ranks, at random"
    yield _measure("a dead rank, seen in a collective", samples, "median", 0.1, how)
    name = "the culprit is named by each rank's `recv`"
    yield _share(name, right, asked, how)


def flood() -> Iterator[Measure]:
    """Connect from 50 ms away while 3,000 strangers a second come from one address."""
    for source, whose in (("127.0.0.2", "another address"), ("127.0.0.1", "the client's own")):
        with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
            log = Path(directory, "log")
            with servers.serving("tests.work.echo", log=log) as server:
                begin = time.monotonic()
                entered, rate = _enter_during_a_flood(server, source)
                seconds = time.monotonic() - begin
                lines = log.read_text().count("closed ")
        how = f"{rate:,.0f} connections a second from {whose}, each client 50 ms away"
        target = 1.0 if source == "127.0.0.2" else None
        yield _share("an honest client gets in during a flood", entered, CLIENTS, how, target)
        name = "lines on the log, a second of it"
        yield _measure(name, [lines / seconds], "worst", 1.0 + 1 / seconds, how, unit="")


def training() -> Iterator[Measure]:
    """Kill a rank at 20 random steps of a training run that goes on from its checkpoints."""
    dice = random.Random(12)
    steps = sorted(dice.sample(range(2, TRAINING_STEPS), TRAINING_KILLS))
    kills = [[step, dice.randrange(8)] for step in steps]
    with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
        alone, killed = Path(directory, "alone"), Path(directory, "killed")
        with Cluster(NODES, fake_gpus=True, log=open(os.devnull, "w")) as cluster:
            train = "tests.resilient.train"
            undisturbed = cluster.run(train, str(alone), TRAINING_STEPS, [], timeout=10 * T)
            disturbed: list[Any] = cluster.run_resilient(
                train, str(killed), TRAINING_STEPS, kills, restarts=TRAINING_KILLS, timeout=20 * T
            )
        usual_s = statistics.median(_step_seconds(alone))
        died = {step: (killed / f"killed-{step}").stat().st_mtime for step in steps}
        back = {step: (killed / f"done-{step + 1}").stat().st_mtime for step in steps}
    how = f"2 x 4 ranks (FSDP on fake GPUs), {TRAINING_KILLS} kills in {TRAINING_STEPS} steps"
    lost = [back[step] - died[step] - usual_s for step in steps]
    yield _share(
        "a training run that is killed ends bitwise equal", undisturbed == disturbed, 1, how
    )
    yield _measure("what a kill costs until its step is done", lost, "median", 2.0, how)


MEASURES: dict[str, Callable[[], Iterator[Measure]]] = {
    "death": death_seen_by_recv,
    "link": silent_link,
    "culprit": culprit_in_a_collective,
    "flood": flood,
    "training": training,
}


def _measure(
    name: str, samples: list[float], which: str, target: float, how: str, unit: str = "s"
) -> Measure:
    samples = sorted(samples)
    value = {
        "median": statistics.median(samples),
        "p99": samples[min(len(samples) * 99 // 100, len(samples) - 1)],
        "worst": samples[-1],
    }
    return {
        "name": name,
        "how": how,
        "unit": unit,
        "number": len(samples),
        **{field: float(f"{seconds:.3g}") for field, seconds in value.items()},
        "target": [which, round(target, 2)],
        "met": value[which] <= target,
    }


def _share(name: str, part: int, whole: int, how: str, target: float | None = 1.0) -> Measure:
    met = None if target is None else part / whole >= target
    return {"name": name, "how": how, "part": int(part), "whole": whole, "met": met}


def _seconds_to_notice(victim: RemoteWorker, waits: RemoteWorker) -> float:
    """Kill a worker while somebody waits, and return when the error comes."""
    killed = []

    def kill() -> None:
        killed.append(time.monotonic())
        os.kill(victim.pid, signal.SIGKILL)

    timer = threading.Timer(DELAY_S, kill)
    timer.start()
    try:
        while True:
            waits.recv(T)
    except WorkerError:
        return time.monotonic() - killed[0]
    finally:
        timer.join()


def _reduce_on(workers: list[RemoteWorker]) -> None:
    """Have all ranks go on for as long as there are all."""
    with contextlib.suppress(WorkerError):
        while True:
            for worker in workers:
                worker.send("again", T)
            for worker in workers[1:]:  # the first is listened to elsewhere
                worker.recv(T)


def _last_word(worker: RemoteWorker) -> str:
    try:
        while True:
            worker.recv(T)
    except WorkerError as error:
        return str(error)


def _enter_during_a_flood(server: servers.Server, source: str) -> tuple[int, float]:
    """Return how many of the clients got in, and how many strangers came a second."""
    command = [sys.executable, "-m", "tests.support.strangers", server.host, str(server.port)]
    options = [f"--source={source}", f"--seconds={FLOODED_S}"]
    entered = 0
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as strangers:
        assert strangers.stdout is not None
        strangers.stdout.readline()
        address = server.host, server.port
        with Proxy(address, delay_s=CLIENT_DELAY_S, brings_words=True) as distant:
            for _ in range(CLIENTS):
                entered += _enters(distant, server.key)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    strangers.wait(CLIENT_PAUSE_S)
                    raise TimeoutError("the flood was over too soon")
        count = int(strangers.stdout.read())
    return entered, count / FLOODED_S


def _enters(distant: Proxy, key: bytes) -> bool:
    try:
        with RemoteWorker("127.0.0.1", distant.port, key=key) as worker:
            worker.send("in")
            return bool(worker.recv(T) == "in")
    except (ConnectionError, TimeoutError):
        return False


def _step_seconds(folder: Path) -> list[float]:
    done = sorted(path.stat().st_mtime for path in folder.glob("done-*"))
    return [after - before for before, after in itertools.pairwise(done)]
