"""A coordinator that starts nodes, works, stops, and writes down what it sees, in JSON lines."""

import itertools
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import miniray
from miniray import Cluster, NodeConfig, RemoteWorker, WorkerError, wait
from tests.chaos.rounds import RUNNING, STARTING
from tests.support.interrupts import Interrupter

MESSAGE = bytes(1 << 20)
PACKAGE = {str(path) for path in Path(miniray.__file__).parent.glob("*.py")}


class Coordinator:
    """One run, by `settings`: it ends when the file `go` is there, or in an error."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.signs = Path(settings["signs"])
        self.moment: str = settings["moment"]
        self.patience_s: float = settings["patience_s"]
        self.interrupter = Interrupter(settings["line"], PACKAGE)
        nodes = [NodeConfig(**node) for node in settings["nodes"]]
        self.cluster = Cluster(nodes, fake_gpus=True, start_timeout=settings["start_timeout_s"])

    def say(self, **fields: Any) -> None:
        with (self.signs / "events").open("a") as events:
            events.write(json.dumps({**fields, "time": time.monotonic()}) + "\n")

    def reach(self, stage: str) -> None:
        """Say how far we are, and count the package's lines if this is the round's moment."""
        self.say(**{stage: True})
        moments = {"runs": RUNNING, "stopping": ("stop",)}
        if self.interrupter.at and self.moment in moments.get(stage, STARTING):
            self.interrupter.begin()

    def run(self) -> None:
        """Live a coordinator's life."""
        # The shell that started us in the background may have switched Ctrl-C off.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.end("ended", self.work)
        self.end("stopped", self.stop_cluster)
        self.say(interrupted=self.interrupter.where, when=self.interrupter.time)

    def end(self, name: str, part: Callable[[], None]) -> None:
        """Do a part of a life, and say how it ended."""
        try:
            part()
            self.say(**{name: "done"})
        except BaseException as error:
            self.say(**{name: type(error).__name__, "text": str(error)})

    def work(self) -> None:
        self.reach("starting")
        workers = self.cluster.start("chaos_work.work_fn")
        self.say(pids=[worker.pid for worker in workers])
        getattr(self, self.moment, self.idle)(workers)

    def stop_cluster(self) -> None:
        self.reach("stopping")
        self.cluster.stop()

    def idle(self, workers: list[RemoteWorker]) -> None:
        """Wait for the word that each worker says when it may go."""
        for worker in workers:
            worker.send({"order": "wait"})
        self.reach("runs")
        silent = set(workers)
        while silent:
            ready = wait(silent, self.patience_s)
            if not ready:
                raise TimeoutError(f"{len(silent)} workers say nothing")
            for worker in ready:
                worker.recv()
            silent -= set(ready)

    def traffic(self, workers: list[RemoteWorker]) -> None:
        """Send large messages to and fro."""
        for worker in workers:
            worker.send({"order": "echo"})
        for count in itertools.count():
            for worker in workers:
                worker.send(MESSAGE, self.patience_s)
            for worker in workers:
                worker.recv(self.patience_s)
            if count == 2:
                self.reach("runs")
            if (self.signs / "go").exists():
                return

    def group(self, workers: list[RemoteWorker]) -> None:
        """Sum ones over all ranks, again and again; after an error hear what each rank says."""
        for worker, config in zip(workers, self.cluster.nccl_configs(), strict=True):
            worker.send({"order": "all_reduce", "config": config.__dict__})
        try:
            for count in itertools.count():
                for worker in workers:
                    worker.recv(self.patience_s)
                if count == 2:
                    self.reach("runs")
                if (self.signs / "go").exists():
                    return
                for worker in workers:
                    worker.send("again", self.patience_s)
        except WorkerError as error:
            self.say(noticed=type(error).__name__)
            self.say(ranks=[self.last_word(worker) for worker in workers])
            raise

    def stop(self, workers: list[RemoteWorker]) -> None:
        """Have workers that hear nothing, so that to stop them takes a while."""
        for worker in workers:
            worker.send({"order": "hang"})
        for worker in workers:
            worker.recv(self.patience_s)
        self.reach("runs")

    def last_word(self, worker: RemoteWorker) -> tuple[str, str]:
        """Return the error that a rank's recv raises now."""
        try:
            while True:
                worker.recv(self.patience_s)
        except Exception as error:
            return type(error).__name__, str(error)


if __name__ == "__main__":
    Coordinator(json.loads(sys.argv[1])).run()
