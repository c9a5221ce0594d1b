"""Start servers on many nodes over ssh, connect to all their workers, and stop them."""

import collections
import contextlib
import dataclasses
import json
import os
import secrets
import select
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Self, TextIO

from . import auth, nccl
from .channel import owned
from .errors import ClusterError, MiniRayError
from .process import STOP_S
from .remote_worker import RemoteWorker

CONNECT_S = 8
ENDING_S = 4.0
READY_NOISE_BYTES_MAX = 1024 * 1024
STDERR_TAIL_LINES = 10

# Where `python -m PACKAGE.worker_server` finds this package, here and on every node.
CODE_ROOT = Path(__file__).parents[len(__name__.split(".")) - 1]
SSH = ("ssh", "-T", "-oBatchMode=yes", f"-oConnectTimeout={CONNECT_S}", "-oServerAliveInterval=5")


@dataclasses.dataclass(frozen=True)
class NodeConfig:
    """One machine and how to start workers there.

    `host` is what you would give to ssh. `address` is where the coordinator connects to, by
    default the one that the ssh session arrived at. `workdir` is where the node finds the work
    function's module; both it and this package must lie there at the same path as here.
    `launcher` replaces ssh by any command that runs the shell line it gets as its last argument.
    """

    host: str
    num_workers: int = 1
    address: str | None = None
    python: str = "python3"
    workdir: str | None = None
    ssh_options: Sequence[str] = ()
    launcher: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not self.host or self.host.startswith("-") or any(c.isspace() for c in self.host):
            raise ValueError(f"host {self.host!r} is not a name: ssh would take it for an option")
        if self.num_workers < 1:
            raise ValueError(f"num_workers of {self.host} must be >= 1, got {self.num_workers}")

    @classmethod
    def local(cls, num_workers: int = 1, *, host: str = "local", **options: Any) -> Self:
        """Return a "node" on this machine: the same, without ssh."""
        # Where our own ssh session arrived is not where this node is.
        launcher = ("env", "-u", "SSH_CONNECTION", "/bin/sh", "-c")
        options = {"launcher": launcher, "python": sys.executable, **options}
        return cls(host, num_workers, **options)


class Cluster:
    """Workers on many nodes, which all start together and end together.

    With `fake_gpus` every worker has a fake GPU. `start_timeout` bounds, in seconds, the time
    until all servers are ready. Workers' output goes to `log`, with the prefix [node:rank].

    >>> with Cluster([NodeConfig("node1", num_workers=4)]) as cluster:
    ...     for worker in cluster.start("my_module.work_fn"):
    ...         worker.send({"cmd": "hello"})
    """

    def __init__(
        self,
        nodes: Sequence[NodeConfig],
        *,
        fake_gpus: bool = False,
        start_timeout: float = 30.0,
        log: TextIO | None = None,
    ) -> None:
        if not nodes:
            raise ValueError("a cluster needs at least one node")
        self._configs, self._start_timeout, self._log = list(nodes), start_timeout, log
        self._fake_gpus = fake_gpus
        self._nodes: list[Node] = []
        self.workers: list[RemoteWorker] = []

    def start(self, work_fn: str) -> list[RemoteWorker]:
        """Start "module.function" on every node; return the workers, index == rank.

        Raises ClusterError, with every node's fault, and leaves nothing running, if not all start.
        """
        if self._nodes:
            raise RuntimeError("this cluster has been started; stop it first")
        key = auth.make_key()
        hosts = [config.host for config in self._configs]
        try:
            for index, config in enumerate(self._configs):
                label = config.host if hosts.count(config.host) == 1 else f"{config.host}#{index}"
                self._nodes.append(Node(config, label, self._log or sys.stderr))
                env = {"MINIRAY_FAKE_GPUS": "1"} if self._fake_gpus else {}
                self._nodes[-1].launch({"work_fn": work_fn, "key": key.decode(), "env": env})
            deadline = time.monotonic() + self._start_timeout
            faults = [node.wait_until_ready(deadline) for node in self._nodes]
            if any(faults):
                lines = "".join(f"\n  {fault}" for fault in faults if fault)
                raise ClusterError(f"the cluster did not start; nothing was left running:{lines}")
            for node in self._nodes:
                for _ in range(node.config.num_workers):
                    self.workers.append(node.connect(key, rank=len(self.workers)))
        except BaseException:
            self.stop()
            raise
        return list(self.workers)

    def nccl_configs(self, backend: str | None = None) -> list[nccl.NCCLConfig]:
        """Return one config a rank, with an address of node 0 and a port that is free there.

        The port is free when node 0 looks. Rank 0 takes it a moment later: it may be late.
        """
        if not self.workers:
            raise RuntimeError("start the cluster first: node 0 is asked for a free port")
        places = [(node.label, node.config.num_workers) for node in self._nodes]
        first = self.workers[0]
        return nccl.create_nccl_configs(first.host, places, first.ask_free_port(), backend)

    def stop(self) -> None:
        """End all workers and servers: hang up, SIGTERM after STOP_S / 2, SIGKILL after STOP_S."""
        for worker in self.workers:
            worker.close()
        for node in self._nodes:
            node.begin_stop()
        deadline = time.monotonic() + STOP_S + ENDING_S
        for node in self._nodes:
            node.end(deadline)
        self._nodes, self.workers = [], []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


class Node:
    """The coordinator's side of one node: an ssh session, and its three streams."""

    def __init__(self, config: NodeConfig, label: str, log: TextIO) -> None:
        self.config, self.label, self._log = config, label, log
        self._marker = f"miniray-{secrets.token_hex(16)} "
        self._last_lines: collections.deque[str] = collections.deque(maxlen=STDERR_TAIL_LINES)
        self._session: subprocess.Popen[bytes] | None = None

    def launch(self, settings: dict[str, Any]) -> None:
        """Start the session, and send it the key and the settings: stdin stays open as a lease."""
        try:
            self._session = subprocess.Popen(
                self._command(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,  # Ctrl-C is the coordinator's to handle
            )
        except OSError as error:
            raise ClusterError(
                f"{self.label}: cannot run {error.filename}: {error.strerror}"
            ) from error
        # They were asked for above.
        assert self._session.stdin
        assert self._session.stdout
        assert self._session.stderr
        self._stdin, self._stdout = self._session.stdin, self._session.stdout
        owned.update((self._stdin, self._stdout, self._session.stderr))
        more = {"node": self.label, "marker": self._marker, "host": self.config.address}
        with contextlib.suppress(OSError):  # it has ended already, and stderr says why
            self._stdin.write(json.dumps(settings | more).encode() + b"\n")
        # A thread, because logs come at any time, and a full pipe would stop the node.
        arguments = (self._session.stderr,)
        self._logger = threading.Thread(target=self._copy_log, args=arguments, daemon=True)
        self._logger.start()

    def _command(self) -> list[str]:
        config = self.config
        script = (
            f"cd {shlex.quote(config.workdir or os.getcwd())} && "
            f"PYTHONPATH={shlex.quote(str(CODE_ROOT))} "
            f"exec {shlex.quote(config.python)} -m {__package__}.worker_server --node"
        )
        # One line that every login shell understands: sh takes over from there.
        line = f"exec /bin/sh -c {shlex.quote(script)}"
        if config.launcher is not None:
            return [*config.launcher, line]
        return [*SSH, *config.ssh_options, "--", config.host, line]

    def wait_until_ready(self, deadline: float) -> str | None:
        """Read stdout up to the ready line; return what is wrong, or None."""
        poller = select.poll()
        poller.register(self._stdout, select.POLLIN)
        received = b""
        while poller.poll(max(deadline - time.monotonic(), 0) * 1000):
            data = os.read(self._stdout.fileno(), 1 << 16)
            received += data
            # Whatever a login shell may print comes before the marker.
            _, found, rest = received.partition(self._marker.encode())
            if found and b"\n" in rest:
                report = json.loads(rest.partition(b"\n")[0])
                self._host, self._port = (
                    self.config.address or report.get("host"),
                    report.get("port"),
                )
                return f"{self.label}: {report['error']}" if "error" in report else None
            if not data or len(received) > READY_NOISE_BYTES_MAX:
                break
        self._logger.join(1.0)
        said = "; ".join(self._last_lines) or "it said nothing"
        return f"{self.label}: its server did not get ready; it said: {said}"

    def connect(self, key: bytes, rank: int) -> RemoteWorker:
        """Return a new worker of this node's server."""
        try:
            name = f"rank{rank}"
            worker = RemoteWorker(self._host, self._port, key=key, name=name, timeout=CONNECT_S)
        except (OSError, MiniRayError) as error:
            text = f"{self.label}: its server is ready, but: {error}; set NodeConfig(address=...)"
            raise ClusterError(text) from error
        worker.name = f"rank {rank} at {self.label}:{self._port}"
        return worker

    def begin_stop(self) -> None:
        """Give up the lease: the server ends its workers, and then itself."""
        if self._session is not None:
            with contextlib.suppress(OSError):  # the session has ended
                self._stdin.close()

    def end(self, deadline: float) -> None:
        """Wait for the session's end, and kill it at the deadline."""
        if self._session is None:
            return
        try:
            self._session.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            os.killpg(self._session.pid, signal.SIGKILL)
            self._session.wait()
        self._logger.join(1.0)
        self._stdout.close()

    def _copy_log(self, stderr: IO[bytes]) -> None:
        """Copy the session's stderr to the log, each line with the node's name."""
        with stderr, open(stderr.fileno(), "rb", closefd=False) as lines:
            for raw in lines:
                line = raw.decode(errors="replace").rstrip("\r\n")
                if not line.startswith(f"[{self.label}"):
                    self._last_lines.append(line)
                    line = f"[{self.label}] {line}"
                with contextlib.suppress(OSError, ValueError):  # a full disk or a closed log
                    self._log.write(line + "\n")
                    self._log.flush()
