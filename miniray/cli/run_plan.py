"""What a run is: which nodes, which ranks on them, and what each rank runs, from the options."""

import argparse
import ast
import dataclasses
import os
import re
import shlex
import shutil
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from miniray import ClusterError, NodeConfig
from miniray.cli import run_slurm
from miniray.cli.run_hosts import Hosts, name_host, parse_hosts, parse_local, read_hostfile
from miniray.cli.run_imports import ALWAYS, find_torch_imports
from miniray.cli.run_rank import PRELOAD
from miniray.node_config import LOCAL_LAUNCHER
from miniray.sync import Folder

HOSTS_SHOWN_MAX = 8
# Of the variables that a run is given, those at which doctor looks; others' values are nobody's
# business, and not shown.
LOOKED_AT = (
    *("HOME", "PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "TMPDIR", "XDG_CACHE_HOME"),
    *("CUDA_VISIBLE_DEVICES", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"),
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The nodes of a run, and the task that every rank gets beside its place."""

    nodes: list[NodeConfig]
    task: dict[str, Any]
    preload: list[str]
    sync: str | None  # the folder of which every node that is not here gets a copy
    restarts: int = 0
    min_nodes: int | None = None  # without any of them, if None, there is no going on

    @property
    def num_ranks(self) -> int:
        """How many ranks all nodes have together."""
        return sum(node.num_workers for node in self.nodes)

    @property
    def what_takes_long(self) -> str:
        """Say what a start goes through on each node, as far as one may wonder where it is."""
        is_far = any(node.launcher is None for node in self.nodes)
        steps = [*(["ssh"] if is_far else []), *(["the import of torch"] if self.preload else [])]
        return f"on each node: {', then '.join(steps)}" if steps else ""

    def describe(self) -> str:
        """Return a table of the ranks, and what they would run."""
        lines, rank = [], 0
        for node_rank, node in enumerate(self.nodes):
            last = rank + node.num_workers - 1
            ranks = f"rank {rank}" if last == rank else f"ranks {rank}-{last}"
            how = " ".join(node.launcher[:1]) if node.launcher else "ssh"
            place = node.workdir or f"a copy of {os.path.abspath(self.sync or '.')}"
            lines.append(f"node {node_rank}: {node.host}, by {how}, {ranks}, in {place}")
            rank = last + 1
        words = [self.task["target"], *self.task["arguments"]]
        words += [f"{name}={value!r}" for name, value in self.task["keywords"].items()]
        lines.append(
            f"each of the {self.num_ranks} runs the {self.task['kind']}: {' '.join(words)}"
        )
        if self.preload:
            lines.append("what that imports of torch, each node imports once, before the fork")
        if self.restarts:
            lines.append(f"when a rank has died or failed, all begin anew: {self.restarts} times")
        return "\n".join(lines)


def name_doctor(nodes: Sequence[NodeConfig]) -> str:
    """Return the command that looks at some nodes; "" for those here, at which one can look."""
    far = [node for node in nodes if not node.is_local()]
    words = ["miniray", "doctor"]
    if not far:
        return ""
    if len(far) > HOSTS_SHOWN_MAX:
        return f"{shlex.join(words)}, with the same hosts and options"
    if far[0].launcher is None:  # else it finds the allocation by itself
        words.append(",".join(name_host(node.host, node.num_workers) for node in far))
    if far[0].python != ("python3" if far[0].launcher is None else sys.executable):
        words += ["--python", far[0].python]
    words += [f"--ssh-option={option}" for option in far[0].ssh_options]
    words += ["--tunnel"] * far[0].tunnel
    words += [] if far[0].workdir is None else ["--workdir", far[0].workdir]
    for name in filter(far[0].env.__contains__, LOOKED_AT):
        words += ["--env", f"{name}={far[0].env[name]}"]
    return shlex.join(words)


def make_plan(options: argparse.Namespace) -> Plan:
    """Return what the options ask for; raises ValueError with what is wrong and what to write."""
    task = make_task(options)
    hosts = find_hosts(options)
    is_here = options.hosts is None and options.hostfile is None
    sync, workdir = options.sync, options.workdir
    if sync is not None and workdir is not None:
        raise ValueError("--sync brings a folder to work in, and --workdir names another: drop one")
    if sync is None and workdir is None and not is_here:
        sync = "."  # else the script would not be there
    elif sync is None and is_here:
        workdir = os.path.abspath(os.path.expanduser(workdir or "."))
    preload = list(ALWAYS)  # of what is only over there nothing is known
    if folder := sync or (is_here and workdir):
        script = find_target(task, Path(os.path.abspath(os.path.expanduser(folder))), sync)
        preload = find_torch_imports(script, Path(folder))
    nodes = make_nodes(hosts, options, workdir, preload)
    if address := getattr(options, "own_address", None):
        nodes[0] = make_own_node(nodes[0], address)
    check_restarts(options, len(nodes))
    task |= {"run_id": str(uuid.uuid4()), "max_restarts": options.restarts}
    return Plan(nodes, task, preload, sync, options.restarts, options.min_nodes)


def check_restarts(options: argparse.Namespace, num_nodes: int) -> None:
    """Raise ValueError for numbers of restarts and of nodes that make no sense."""
    if options.restarts < 0:
        raise ValueError(f"--restarts is a number from 0 up, not {options.restarts}")
    if options.min_nodes is not None and not options.restarts:
        raise ValueError("--min-nodes is for what begins anew: add --restarts 3")
    if options.min_nodes is not None and options.min_nodes not in range(1, num_nodes + 1):
        raise ValueError(
            f"--min-nodes is a number from 1 to {num_nodes}, for that many nodes there are, "
            f"not {options.min_nodes}"
        )


def find_hosts(options: argparse.Namespace) -> Hosts:
    """Return where the ranks will be; raises ValueError if that is not said, or said twice."""
    given = {"-H": options.hosts, "--hostfile": options.hostfile, "--local": options.local}
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise ValueError(f"{' and '.join(named)} both say where to run; name one of them")
    if options.per_node is not None and options.per_node < 1:
        raise ValueError(f"--per-node is a number from 1 up, not {options.per_node}")
    if options.local is not None:
        return parse_local(options.local)
    if options.hosts is not None:
        return parse_hosts(options.hosts, options.per_node)
    if options.hostfile is not None:
        return read_hostfile(options.hostfile, options.per_node)
    if run_slurm.is_allocated(os.environ):
        if shutil.which("srun") is None:
            raise ValueError(
                "this is a Slurm allocation, but there is no srun on PATH to start anything with; "
                "name the hosts for ssh: -H node1:4,node2:4"
            )
        return run_slurm.read_allocation(os.environ, options.per_node)
    target = getattr(options, "target", None) or ""
    if re.fullmatch(r".+:\d+", target):  # as doctor, which runs no script, takes them
        raise ValueError(f"{target} is no script; if these are hosts: -H {target}")
    raise ValueError(
        "no hosts given: name them with -H node1:4,node2:4 or --hostfile FILE, stay here with "
        "--local 4, or run it inside a Slurm allocation"
    )


def make_task(options: argparse.Namespace) -> dict[str, Any]:
    """Return what each rank is to run."""
    target, arguments = options.target, list(options.arguments)
    keywords: dict[str, Any] = {}
    if options.module:
        kind = "module"
    elif re.fullmatch(r"[A-Za-z_][\w.]*(?<!\.py):[A-Za-z_][\w.]*", target):
        kind, keywords, arguments = "function", read_keywords(arguments), []
    elif file := re.fullmatch(r"(.+)\.py(:[A-Za-z_][\w.]*)", target):
        module = file[1].strip("./").replace("/", ".")
        raise ValueError(f"a function is named by its module, not its file: {module}{file[2]}")
    else:
        kind = "script"
    return {"kind": kind, "target": target, "arguments": arguments, "keywords": keywords}


def read_keywords(words: list[str]) -> dict[str, Any]:
    """Read "--arg x=1 --arg name=text"; a value that is no Python literal is text."""
    keywords: dict[str, Any] = {}
    while words:
        option, *words = words
        if option.startswith("--arg="):
            option, words = "--arg", [option.removeprefix("--arg="), *words]
        word = words[0] if words else ""
        name, equals, value = word.partition("=")
        if option != "--arg" or not equals or not name.isidentifier():
            given = f"{option} {word}".rstrip()
            raise ValueError(f"a function gets arguments as --arg NAME=VALUE, not {given!r}")
        try:
            keywords[name] = value if value.strip() == "..." else ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError):  # the last is that of {[]: 1}
            keywords[name] = value
        words = words[1:]
    return keywords


def find_target(task: dict[str, Any], workdir: Path, sync: str | None) -> Path:
    """Return the file that the target is in, as far as that can be known; refuse a missing one.

    What is copied is named as in the copy from then on.
    """
    target = str(task["target"])
    if not workdir.is_dir():
        raise ValueError(f"{'--sync' if sync else '--workdir'}: there is no directory {workdir}")
    if task["kind"] == "script" and sync and Path(target).is_file():
        target = task["target"] = os.path.relpath(target, workdir)
        if target.startswith(".."):
            raise ValueError(
                f"{Path(workdir, target).resolve()} is not in {workdir}, of which the nodes get a "
                "copy; name a folder that has it: --sync DIR"
            )
    if task["kind"] != "script":
        beside = workdir / target.partition(":")[0].replace(".", "/")
        beside = beside / "__main__.py" if beside.is_dir() else beside.with_suffix(".py")
        check_goes_along(beside, workdir, sync)
        return beside
    script = workdir / target
    if script.is_file():
        check_goes_along(script, workdir, sync)
        return script
    hint = ""
    if script.is_dir():
        hint = "; that is a directory"
    elif Path(target).is_file():
        hint = f"; it is in {os.getcwd()}: give its whole path, or another --workdir"
    elif not target.endswith(".py") and "/" not in target:
        hint = f"; for a module: -m {target}"
    raise ValueError(f"there is no script {target} in {workdir}{hint}")


def check_goes_along(file: Path, workdir: Path, sync: str | None) -> None:
    """Raise ValueError if a file is here and would not be in the copies of its folder."""
    if sync is None or not file.is_file():
        return
    try:
        copied = Folder(workdir, {}).files
    except ClusterError as error:
        raise ValueError(str(error)) from error
    name = Path(os.path.relpath(file, workdir))
    if not any(one.as_posix() in copied for one in (name, *name.parents)):  # one may be a link
        raise ValueError(
            f"{name} is not in the copy of {workdir} that the nodes get: git ignores it, or it "
            f"belongs to a virtual environment; git add -f {name} has it go along"
        )


def make_nodes(
    hosts: Hosts, options: argparse.Namespace, workdir: str | None, preload: list[str]
) -> list[NodeConfig]:
    """Return the nodes of the run; those of an allocation are reached by srun."""
    nodes = [make_node(host, options, workdir, preload) for host in hosts]
    if options.hosts is None and options.hostfile is None and options.local is None:
        found = run_slurm.addresses([name for name, _ in hosts])
        nodes = [
            dataclasses.replace(node, address=address, launcher=run_slurm.launcher(node.host))
            for node, address in zip(nodes, found, strict=True)
        ]
    return nodes


def make_node(
    host: tuple[str, int], options: argparse.Namespace, workdir: str | None, preload: list[str]
) -> NodeConfig:
    """Return one node of the run; that ssh does not reach it is for others to say."""
    name, count = host
    env = dict(map(_read_variable, options.env))
    threads = os.environ.get("OMP_NUM_THREADS", "1" if count > 1 else None)
    if threads is not None:
        env.setdefault("OMP_NUM_THREADS", threads)  # torch reads it when it is imported
    if preload:
        env[PRELOAD] = " ".join(preload)
    if options.fake_gpus:
        env["CUDA_VISIBLE_DEVICES"] = ""
    here = options.hosts is None and options.hostfile is None
    more: dict[str, Any] = {"env": env, "workdir": workdir}
    more |= {"tunnel": options.tunnel, "encrypt": options.encrypt}
    if options.local is not None:
        if options.python:
            more["python"] = options.python
        return NodeConfig.local(count, host=name, **more)
    python = options.python or (sys.executable if here else "python3")
    return NodeConfig(name, count, python=python, ssh_options=tuple(options.ssh_option), **more)


def make_own_node(node: NodeConfig, address: str) -> NodeConfig:
    """Return the node that is this machine, to which no ssh is needed, unless for a tunnel.

    A detached run is coordinated by its first host, at the address where others reach it. Its
    workdir and its Python are the coordinator's own: over ssh their names would begin at home.
    """
    if node.tunnel:
        return node
    workdir = None if node.workdir is None else os.getcwd()
    return dataclasses.replace(
        node, launcher=LOCAL_LAUNCHER, address=address, python=sys.executable, workdir=workdir
    )


def _read_variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name:
        raise ValueError(f"--env sets NAME=VALUE, not {text!r}")
    if not equals:
        if name not in os.environ:
            raise ValueError(f"--env {name}: it has no value here; write --env {name}=VALUE")
        value = os.environ[name]
    return name, value
