"""Watch FSDP over 2 nodes x 4 GPUs.

python -m stages.stage5_nccl_fsdp.demo [--hosts node1,node2] [--gpus]
"""

import argparse
import contextlib
import os
import re
import signal
import sys
from pathlib import Path

try:
    import torch
except ModuleNotFoundError:
    sys.exit(
        "this demo needs torch; make demo, in the clone, puts it into .venv for .venv/bin/python"
    )

from . import wire
from .cluster import Cluster, NodeConfig
from .errors import WorkerError
from .remote_worker import RemoteWorker

WORK = f"{__package__}.train.work"
EACH, STEPS = 4, 12


def show_frame() -> None:
    """Print the parts of the frame that carries a tensor."""
    head, *buffers = wire.encode(wire.MESSAGE, {"weights": torch.tensor([0.5, -1.0])})
    print(f"   header  {head[wire.PRELUDE.size :].decode()}")
    print(
        f"   buffer  {bytes(buffers[0]).hex(' ', 4)}   sent from, and received into, its memory\n"
    )


def make_nodes(hosts: str | None) -> list[NodeConfig]:
    """Return the nodes that ssh reaches under these names, or two on this machine."""
    if hosts is None:
        return [NodeConfig.local(EACH, host=host) for host in ("node1", "node2")]
    return [NodeConfig(host, EACH, python=sys.executable) for host in hosts.split(",")]


def main() -> None:
    """Run the scenes."""
    parser = argparse.ArgumentParser(description="Watch training over two nodes.")
    parser.add_argument("--hosts", help="names for ssh; without them, two nodes on this machine")
    parser.add_argument("--gpus", action="store_true", help="real GPUs and NCCL, not fake ones")
    arguments = parser.parse_args()
    text = torch.frombuffer(bytearray(Path(contextlib.__file__).read_bytes()), dtype=torch.uint8)

    print("1. A tensor is not JSON. Its description is; its bytes follow as they lie in memory:\n")
    show_frame()

    nodes = make_nodes(arguments.hosts)
    print(f"2. Each of {len(nodes)} nodes imports torch once, and then forks {EACH} ranks:\n")
    sys.stdout.flush()
    with Cluster(nodes, fake_gpus=not arguments.gpus, log=sys.stdout) as cluster:
        workers = cluster.start(WORK)
        configs = cluster.nccl_configs()
        for worker, config in zip(workers, configs, strict=True):
            print(f"   {worker.name}: process {worker.pid}, local rank {config.local_rank}")
        print(f"   they meet at {configs[0].master_addr}:{configs[0].master_port}\n")

        print("3. They train one model, of which each holds an eighth:\n")
        order = {"world_size": len(workers), "steps": STEPS, "text": text}
        for worker, config in zip(workers, configs, strict=True):
            worker.send({"config": config.__dict__, **order})
        losses = []
        for step in range(STEPS):
            answers = [worker.recv(timeout=60.0) for worker in workers]
            losses.append(answers[0]["loss"])
            print(f"   step {step:2}  loss {losses[-1]:.4f}", flush=True)
        held = sum(answers[0]["memory"].values())
        whole = workers[0].recv(timeout=60.0)["parameters"]
        for worker in workers[1:]:
            worker.recv(timeout=60.0)
        count = sum(parameter.numel() for parameter in whole.values())
        print(f"\n   {count} parameters, with gradients and AdamW's state {16 * count} bytes")
        print(f"   held by rank 0: {held} bytes, 1/{16 * count / held:.2f} of that\n")

        print("4. The same training in one process has to have the same losses:\n")
        workers[0].send({"config": None, **order})
        alone = [workers[0].recv(timeout=60.0)["loss"] for _ in range(STEPS)]
        workers[0].recv(timeout=60.0)
        difference = max(abs(one - other) for one, other in zip(losses, alone, strict=True))
        print(f"   largest difference of a step's loss: {difference:.1e}\n")
        if difference > 1e-5:
            sys.exit("the sharded training is not the same training")

        print("5. A rank dies in mid-training. Nothing hangs: the others' collectives fail.\n")
        for worker, config in zip(workers, cluster.nccl_configs(), strict=True):
            worker.send({"config": config.__dict__, **order, "steps": 10_000})
        for worker in workers:
            worker.recv(timeout=60.0)
        if arguments.hosts is None:
            os.kill(workers[5].pid, signal.SIGKILL)
            for worker in workers:
                print(f"   {how_it_ends(worker)}")
    left = [worker.pid for worker in workers if os.path.exists(f"/proc/{worker.pid}")]
    print(f"\n   workers left: {left or 'none'}")


def how_it_ends(worker: RemoteWorker) -> str:
    """Receive until there is no more, and return why."""
    try:
        while True:
            worker.recv(timeout=60.0)
    except WorkerError as error:
        words = re.sub(r"\[\S*/\S*\] ", "", str(error).splitlines()[0])  # torch's file and line
        return f"{type(error).__name__}: {words[:80]}"


if __name__ == "__main__":
    main()
