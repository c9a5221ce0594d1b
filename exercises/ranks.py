"""Train on eight ranks and then in one process; print one JSON line a step.

It is run as a script where the stage's package lies, which is named as its first argument: so what
it imports is the reader's code and nothing else. The text to learn is that code itself.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

EACH, NODES = 4, ("node1", "node2")
PATIENCE_S = 120.0


def main(package: str, steps: int) -> None:
    """Train twice, for so many steps, and say what happens."""
    import torch

    cluster = importlib.import_module(f"{package}.cluster")
    files = sorted(Path(package).glob("*.py"))
    text = bytearray(b"".join(file.read_bytes() for file in files))
    order = {"steps": steps, "text": torch.frombuffer(text, dtype=torch.uint8)}
    say(what="text", nbytes=len(text), files=len(files), torch=torch.__version__, steps=steps)
    nodes = [cluster.NodeConfig.local(EACH, host=host) for host in NODES]
    with cluster.Cluster(nodes, fake_gpus=True, log=sys.stderr) as started:
        train(started, package, order)
    say(what="stopped")


def train(started: Any, package: str, order: dict[str, Any]) -> None:
    """Train on all workers of a cluster, and then on one of them alone."""
    workers = started.start(f"{package}.train.work")
    configs = started.nccl_configs()
    order = {**order, "world_size": len(workers)}
    places = [
        {"rank": one.rank, "node": NODES[one.node_rank], "pid": worker.pid}
        for worker, one in zip(workers, configs, strict=True)
    ]
    say(what="ranks", places=places)
    for worker, config in zip(workers, configs, strict=True):
        worker.send({**order, "config": config.__dict__})
    for step in range(order["steps"]):
        answers = [worker.recv(timeout=PATIENCE_S) for worker in workers]
        held = [sum(answer["memory"].values()) for answer in answers]
        say(what="step", step=step, loss=answers[0]["loss"], held=held)
    parameters = workers[0].recv(timeout=PATIENCE_S)["parameters"]
    for worker in workers[1:]:
        worker.recv(timeout=PATIENCE_S)
    say(what="parameters", count=sum(one.numel() for one in parameters.values()))
    workers[0].send({**order, "config": None})
    for step in range(order["steps"]):
        say(what="alone", step=step, loss=workers[0].recv(timeout=PATIENCE_S)["loss"])
    workers[0].recv(timeout=PATIENCE_S)


def say(**event: object) -> None:
    """Print an event for whoever started this."""
    print(json.dumps(event), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))  # instead of this script's own folder
    main(sys.argv[1], int(sys.argv[2]))
