"""Train a small byte-level GPT with FSDP2 on 2 x 4 fake GPUs; check it against one process.

Each node is a server process of its own, on this machine or, with --hosts, reached over ssh.
"""

import argparse
import dataclasses
import importlib.util
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from miniray.cli.demo_display import MIB, Display, Rank, Run, make_display
from miniray.cli.demo_plot import sparkline, write_picture
from miniray.cli.demo_settings import Settings, cut_into_slices, read_text
from miniray.cluster import Cluster, NodeConfig
from miniray.errors import MiniRayError
from miniray.remote_worker import RemoteWorker

# The model with its gradients and Adam's state needs more than this; an eighth of it fits.
FAKE_GPU_MEMORY_MIB = 8
TOLERANCE = 1e-5  # nats by which a step's loss may differ between the sharded run and one process
START_S = 60.0
REPLY_S = 120.0
SAMPLE_COLUMNS = 76

EXAMPLES = """\
examples:
  miniray demo                                  two nodes of four fake GPUs, on this machine
  miniray demo --hosts node1,node2              the same on two hosts, over ssh
  miniray demo --hosts node1 --real-gpus        with CUDA and NCCL
  miniray demo --steps 20 --plain | tee log     shorter, and only lines

It leaves a picture of the losses, and the numbers behind it, in miniray-demo/.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("--hosts", type=_names, metavar="A,B", help="run there, over ssh")
    parser.add_argument("--workers-per-node", type=_count, default=4, metavar="N")
    parser.add_argument("--steps", type=_count, default=Settings.steps, metavar="N")
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument(
        "--output", type=Path, default=Path("miniray-demo"), metavar="DIR", help="for the picture"
    )
    parser.add_argument(
        "--ssh-option", action="append", default=[], metavar="OPTION", help="such as -p2222"
    )
    parser.add_argument("--python", default="python3", help="the hosts' python (%(default)s)")
    parser.add_argument("--tunnel", action="store_true", help="open no port: go through ssh")
    parser.add_argument("--real-gpus", action="store_true", help="use CUDA and NCCL")
    parser.add_argument("--plain", action="store_true", help="only lines, no live display")
    parser.add_argument("--quiet", action="store_true", help="only the results")


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"hosts are separated by single commas, not {text!r}")
    return names


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number from 1 up, not {text!r}")
    return int(text)


def run(options: argparse.Namespace) -> int:
    """Run the demo; the exit status says whether both runs' losses are equal."""
    if options.hosts is None and importlib.util.find_spec("torch") is None:
        return _refuse("it trains with torch, which is not installed: pip install 'miniray[torch]'")
    try:
        nodes = make_nodes(options)
        ranks = sum(node.num_workers for node in nodes)
        if ranks < 2 and not options.real_gpus:
            return _refuse("one fake GPU is too small for the model; ask for two or more")
        options.output.mkdir(parents=True, exist_ok=True)
        settings = Settings(steps=options.steps, seed=options.seed, ranks=ranks)
        display = make_display(plain=options.plain, quiet=options.quiet)
        demo = Demo(settings, nodes, display, options.output, options.real_gpus)
        with display:
            demo.train()
        return demo.report()
    except (MiniRayError, OSError, ValueError) as error:
        return _refuse(str(error))


def _refuse(problem: str) -> int:
    print(f"miniray demo: {problem}", file=sys.stderr)
    return 1


def make_nodes(options: argparse.Namespace) -> list[NodeConfig]:
    """Return the hosts asked for, or two nodes on this machine."""
    env = {} if options.real_gpus else {"MINIRAY_FAKE_GPU_MEMORY": f"{FAKE_GPU_MEMORY_MIB}MiB"}
    if options.hosts is None:
        local = (NodeConfig.local(options.workers_per_node, host=f"node{n}") for n in (1, 2))
        return [dataclasses.replace(node, env=env) for node in local]
    return [
        NodeConfig(
            host,
            options.workers_per_node,
            python=options.python,
            env=env,
            ssh_options=tuple(options.ssh_option),
            tunnel=options.tunnel,
        )
        for host in options.hosts
    ]


class Demo:
    """One run of the demo, from starting the nodes to the check."""

    def __init__(
        self,
        settings: Settings,
        nodes: Sequence[NodeConfig],
        display: Display,
        output: Path,
        real_gpus: bool,
    ) -> None:
        self.settings, self.nodes, self.display, self.output = settings, nodes, display, output
        self.kind = "GPU" if real_gpus else "fake GPU"
        self.cluster = Cluster(nodes, fake_gpus=not real_gpus, start_timeout=START_S)
        self.slices = cut_into_slices(read_text(), settings.ranks)
        self.sharded = self._make_run("sharded")
        self.alone = self._make_run("one process")
        self.began = time.monotonic()
        self.ranks: list[Rank] = []
        self.memory: dict[str, int] = {}  # what rank 0 holds, by purpose
        self.gathered_bytes = self.whole_bytes = 0
        self.sample = b""

    def _make_run(self, name: str) -> Run:
        return Run(name, self.settings.steps, self.settings.tokens_per_step)

    def train(self) -> None:
        """Train both ways; leave nothing running, whatever happens."""
        say = self.display.say
        places = " + ".join(f"{node.host} ({node.num_workers} {self.kind}s)" for node in self.nodes)
        size = sum(map(len, self.slices)) / MIB
        say(f"a byte-level GPT learns {size:.1f} MiB of Python's standard library")
        say(f"starting {places}")
        with self.cluster:
            try:
                workers = self.cluster.start("miniray.cli.demo_training.train")
                if self.kind == "fake GPU":
                    self.try_one_gpu(workers[0])
                self.train_sharded(workers)
                self.train_alone(workers[0])
            except KeyboardInterrupt:
                self.cluster.stop(timeout=0.0)  # who presses Ctrl-C wants no more steps
                raise

    def report(self) -> int:
        """Show what came of it; return the exit status."""
        self.report_memory()
        self.report_sample()
        self.write_files()
        equal = self.report_equality()
        self.display.say(f"done in {time.monotonic() - self.began:.0f} s")
        return 0 if equal else 1

    def try_one_gpu(self, worker: RemoteWorker) -> None:
        """Show what the sharding is for: one fake GPU alone has too little memory."""
        config = self.cluster.nccl_configs()[0]
        config = dataclasses.replace(config, world_size=1, local_world_size=1)
        self._begin(worker, config.__dict__, self.slices[:1], steps=1)
        self._expect(worker, "joined")
        error = self._expect(worker, "out of memory")["error"]
        self.display.say(f"one {self.kind} alone: OutOfMemoryError: {error}")

    def train_sharded(self, workers: Sequence[RemoteWorker]) -> None:
        """Train on all ranks at once, and gather what they report."""
        configs = self.cluster.nccl_configs()
        for worker, config in zip(workers, configs, strict=True):
            self._begin(worker, config.__dict__, [self.slices[config.rank]])
        for worker, config in zip(workers, configs, strict=True):
            joined = self._expect(worker, "joined")
            node = self.nodes[config.node_rank].host
            device = "fake GPU" if joined["device"] == "cpu" else joined["device"]
            self.ranks.append(
                Rank(config.rank, node, joined["pid"], f"{device} {config.local_rank}")
            )
        self.display.say(
            f"{len(self.ranks)} ranks train together, each with a shard of every parameter"
        )
        limit_bytes = FAKE_GPU_MEMORY_MIB * MIB if self.kind == "fake GPU" else None
        self.display.show_ranks(self.ranks, limit_bytes)
        self.sharded.began = time.monotonic()
        for _ in range(self.settings.steps):
            reports = [self._expect(worker, "step") for worker in workers]
            for rank, report in zip(self.ranks, reports, strict=True):
                rank.held_bytes = sum(report["memory"].values())
            # The ranks' batches are of one size, so the mean of their means is the mean of all.
            self.sharded.add(sum(report["loss"] for report in reports) / len(reports))
            self.display.show_step(self.sharded)
        self.memory, self.gathered_bytes = reports[0]["memory"], reports[0]["gathered"]
        endings = [self._expect(worker, "done") for worker in workers]
        self.sample = endings[0]["sample"]

    def train_alone(self, worker: RemoteWorker) -> None:
        """Train the same in one process, which is in no group any more."""
        self.display.say("the same training in one process, to compare")
        self._begin(worker, None, self.slices)
        self.alone.began = time.monotonic()
        for _ in range(self.settings.steps):
            report = self._expect(worker, "step")
            self.alone.add(report["loss"])
            self.display.show_step(self.alone)
        self.whole_bytes = sum(report["memory"].values())
        self._expect(worker, "done")

    def _begin(
        self,
        worker: RemoteWorker,
        config: dict[str, Any] | None,
        slices: list[bytes],
        **changes: Any,
    ) -> None:
        settings = dataclasses.asdict(dataclasses.replace(self.settings, **changes))
        worker.send({"config": config, "settings": settings, "slices": slices}, REPLY_S)

    def _expect(self, worker: RemoteWorker, kind: str) -> dict[str, Any]:
        reply: dict[str, Any] = worker.recv(REPLY_S)
        if reply["kind"] != kind:
            problem = reply.get("error", f"sent {reply['kind']!r} instead of {kind!r}")
            raise MiniRayError(f"{worker.name}: {problem}")
        return reply

    def report_memory(self) -> None:
        """Compare what a rank holds with what one GPU would have to."""
        parts = " + ".join(f"{name} {count / MIB:.2f}" for name, count in self.memory.items())
        held = max(rank.held_bytes for rank in self.ranks)
        self.display.say(
            f"memory: each {self.kind} holds {held / MIB:.2f} MiB or less "
            f"(rank 0: {parts})\n"
            f"        one alone would need {self.whole_bytes / MIB:.2f} MiB, "
            f"{self.whole_bytes / held:.1f} times as much\n"
            f"        in mid-step, FSDP gathers up to {self.gathered_bytes / MIB:.2f} MiB on top"
        )

    def report_sample(self) -> None:
        """Show what the model writes."""
        text = self.sample.decode("ascii", "replace").replace("\ufffd", "?")
        printable = "".join(c if c.isprintable() or c == "\n" else " " for c in text)
        written = [line[:SAMPLE_COLUMNS].rstrip() for line in printable.split("\n")]
        lines = "".join(f"\n  | {line}" for line in written if line)
        self.display.say(f"the model writes:{lines}")

    def write_files(self) -> None:
        """Write the picture and the numbers behind it."""
        numbers = self.output / "losses.csv"
        rows = zip(self.sharded.losses, self.alone.losses, strict=True)
        lines = [f"{step},{one!r},{other!r}" for step, (one, other) in enumerate(rows, 1)]
        numbers.write_text("\n".join(["step,sharded,one_process", *lines]) + "\n")
        title = (
            f"GPT on {self.settings.ranks} {self.kind}s with FSDP2: "
            f"loss {self.sharded.losses[0]:.2f} to {self.sharded.losses[-1]:.2f}"
        )
        picture = self.output / "loss.png"
        try:
            write_picture(picture, title, self.sharded.losses, self.alone.losses)
        except ImportError:
            self.display.say("no picture: that needs matplotlib (pip install 'miniray[cli]')")
        else:
            self.display.say(f"picture: {picture}  numbers: {numbers}")

    def report_equality(self) -> bool:
        """Say whether the sharded run equals the one in one process, step by step."""
        losses = self.sharded.losses
        pairs = zip(losses, self.alone.losses, strict=True)
        difference = max(abs(one - other) for one, other in pairs)
        equal = difference <= TOLERANCE
        self.display.say(f"loss: {losses[0]:.4f} {sparkline(losses)} {losses[-1]:.4f}")
        self.display.say(
            f"{'equal' if equal else 'NOT EQUAL'}: over {len(losses)} steps the losses of "
            f"{self.settings.ranks} ranks and of one process differ by at most "
            f"{difference:.1e} (allowed: {TOLERANCE:.0e})"
        )
        return equal
