"""A coordinator that starts nodes, works, stops, and writes down what it sees, in JSON lines."""

import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

from miniray import Cluster, NodeConfig, RemoteWorker, wait

MESSAGE = bytes(1 << 20)


class Coordinator:
    """One run, by `settings`: it ends when the file `go` is there, or in an error."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.signs = Path(settings["signs"])
        self.moment: str = settings["moment"]
        self.patience_s: float = settings["patience_s"]
        nodes = [NodeConfig(**node) for node in settings["nodes"]]
        self.cluster = Cluster(nodes, fake_gpus=True, start_timeout=settings["start_timeout_s"])

    def say(self, **fields: Any) -> None:
        with (self.signs / "events").open("a") as events:
            events.write(json.dumps({**fields, "time": time.monotonic()}) + "\n")

    def run(self) -> None:
        """Live a coordinator's life."""
        try:
            try:
                workers = self.cluster.start("chaos_work.work_fn")
                self.say(pids=[worker.pid for worker in workers])
                getattr(self, self.moment, self.idle)(workers)
                self.say(ended="done")
            except BaseException as error:
                self.say(ended=type(error).__name__, text=str(error))
            self.say(stopping=True)
            self.cluster.stop()
            self.say(stopped="done")
        except BaseException as error:
            self.say(stopped=type(error).__name__, text=str(error))

    def idle(self, workers: list[RemoteWorker]) -> None:
        """Wait for the word that each worker says when it may go."""
        for worker in workers:
            worker.send({"order": "wait"})
        self.say(runs=True)
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
                self.say(runs=True)
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
                    self.say(runs=True)
                if (self.signs / "go").exists():
                    return
                for worker in workers:
                    worker.send("again", self.patience_s)
        except Exception as error:
            self.say(noticed=type(error).__name__)
            self.say(ranks=[self.last_word(worker) for worker in workers])
            raise

    def stop(self, workers: list[RemoteWorker]) -> None:
        """Have workers that hear nothing, so that to stop them takes a while."""
        for worker in workers:
            worker.send({"order": "hang"})
        for worker in workers:
            worker.recv(self.patience_s)
        self.say(runs=True)

    def last_word(self, worker: RemoteWorker) -> tuple[str, str]:
        """Return the error that a rank's recv raises now."""
        try:
            while True:
                worker.recv(self.patience_s)
        except Exception as error:
            return type(error).__name__, str(error)


if __name__ == "__main__":
    Coordinator(json.loads(sys.argv[1])).run()
