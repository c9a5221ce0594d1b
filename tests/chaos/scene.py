"""Where a round is played: two nodes, the coordinator's folders, and the network between them."""

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from tests.chaos import cgroup
from tests.chaos.promises import Promise
from tests.chaos.rounds import FLOOD_LINES, Round
from tests.support import namespaces, ssh
from tests.support.proxy import Proxy

REPOSITORY = Path(__file__).resolve().parents[2]
DISK_BYTES = 16 << 20
LOSSY = "numgen random mod 100 < 5 drop"
# What arrives is answered by a reset; only so does whoever sends such a thing hear of it, too.
RESET = ("tcp flags & rst == rst accept", "meta l4proto tcp reject with tcp reset")


def missing(one: Round) -> str | None:
    """Say what this machine lacks to play a round, or None."""
    if one.needs_namespaces:
        if shutil.which("nft") is None:
            return "there is no nft command; install nftables"
        return namespaces.missing()
    if one.victim == "disk" and os.geteuid() != 0:
        return "a small disk needs root"
    if one.act == "oom":
        return cgroup.missing()
    return None if one.transport == "local" else ssh.missing()


class Scene:
    """The nodes of one round and what can be done to them; all of it ends with `stack`."""

    def __init__(self, one: Round, directory: Path, stack: contextlib.ExitStack) -> None:
        self.round, self._directory = one, directory
        self.signs, self.disk = directory / "signs", directory / "disk"
        for path in (self.signs, self.disk):
            path.mkdir()
        if one.victim == "disk":
            self._mount(stack)
        self.folders = {name: self.disk / name for name in ("coordinator", "nodes")}
        for path in self.folders.values():
            path.mkdir()
        self.log = self.disk / "log"
        shutil.copy(REPOSITORY / "tests/chaos/work.py", directory / "chaos_work.py")
        self.network: namespaces.Nodes | None = None
        self.proxy: Proxy | None = None
        self.nodes: list[dict[str, Any]] = [self._node(host) for host in ssh.HOSTS]
        with mock.patch.object(tempfile, "tempdir", str(self.folders["nodes"])):  # for sshd's own
            self._connect(stack)

    def start_coordinator(self, promise: Promise) -> subprocess.Popen[Any]:
        """Start the coordinator, in a session of its own."""
        settings = {
            "signs": str(self.signs),
            "moment": self.round.moment,
            "line": self.round.line if self.round.act == "line" else 0,
            "nodes": self.nodes,
            "patience_s": promise.patience_s,
            "start_timeout_s": promise.start_timeout_s,
        }
        argv = [sys.executable, "-m", "tests.chaos.coordinator", json.dumps(settings)]
        environment = {
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(self._directory)]),
            "TMPDIR": str(self.folders["coordinator"]),
        }
        with self.log.open("wb") as log:
            options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            options |= {"cwd": self._directory, "start_new_session": True}
            if self.network is not None:
                return self.network.popen(argv, env=environment, **options)
            return subprocess.Popen(argv, env=os.environ | environment, **options)

    def harm_link(self) -> Callable[[], object]:
        """Do to the node's link what the round says; return what mends it."""
        assert self.network is not None
        host = ssh.HOSTS[self.round.node]
        match self.round.act:
            case "lossy":
                return self._filter(host, input=[LOSSY], output=[LOSSY])
            case "reset":
                return self._filter(host, input=RESET)
        self.network.cut_link(host)
        return functools.partial(self.network.mend, host)

    def fill_disk(self) -> Callable[[], object]:
        """Leave no room where all temporary files are and the log is; return what makes some."""
        full = self.disk / "full"
        with contextlib.suppress(OSError), full.open("wb", buffering=0) as file:
            while file.write(bytes(1 << 16)):
                pass
        return full.unlink

    def _node(self, host: str) -> dict[str, Any]:
        signs = {"SIGNS": str(self.signs), "MOMENT": self.round.moment, "HOST": host}
        signs["FLOOD_LINES"] = str(FLOOD_LINES)
        environment = {f"CHAOS_{name}": value for name, value in signs.items()}
        return {
            "host": host,
            "num_workers": self.round.workers_per_node,
            "python": sys.executable,
            "env": {**environment, "TMPDIR": str(self.folders["nodes"])},
        }

    def _mount(self, stack: contextlib.ExitStack) -> None:
        options = f"size={DISK_BYTES},mode=0700"
        disk = str(self.disk)
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", disk], check=True)
        stack.callback(lambda: subprocess.run(["umount", "--lazy", disk], check=True))

    def _connect(self, stack: contextlib.ExitStack) -> None:
        one = self.round
        if one.transport == "local":
            for fields in self.nodes:
                fields |= {"launcher": ["/bin/sh", "-c"]}
            return
        if one.needs_namespaces:
            self.network = stack.enter_context(
                contextlib.closing(namespaces.Nodes(self._directory))
            )
            options = self.network.ssh_options
        else:
            sshd = stack.enter_context(ssh.loopback_nodes(self._directory))
            options = sshd.ssh_options
        for fields in self.nodes:
            fields |= {"ssh_options": options, "tunnel": one.transport == "tunnel"}
        if one.victim == "session":
            self.proxy = stack.enter_context(Proxy((sshd.address, sshd.port)))
            detour = f"-oPort={self.proxy.port}", f"-oHostKeyAlias=[127.0.0.1]:{sshd.port}"
            self.nodes[one.node]["ssh_options"] = (*options, *detour)

    def _filter(self, host: str, **rules: Any) -> Callable[[], object]:
        """Have the node's kernel do so with packets that come and go on its link."""
        assert self.network is not None
        script = ["add table inet chaos"]
        for hook, lines in rules.items():
            device = {"input": "iifname", "output": "oifname"}[hook]
            chain = f"inet chaos {hook}"
            script.append(f"add chain {chain} {{ type filter hook {hook} priority 0; }}")
            script += [f"add rule {chain} {device} eth0 {line}" for line in lines]
        self._nft(host, "\n".join(script))
        return lambda: self._nft(host, "delete table inet chaos")

    def _nft(self, host: str, script: str) -> None:
        assert self.network is not None
        done = self.network.run(["nft", script], node=host)
        if done.returncode:
            raise OSError(f"nft: {done.stderr}")
