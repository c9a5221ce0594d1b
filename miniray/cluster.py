"""Start servers on many nodes over ssh, connect to all their workers, and stop them."""

import collections
import contextlib
import dataclasses
import importlib.machinery
import importlib.util
import json
import os
import secrets
import select
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self, TextIO

from miniray import auth, nccl
from miniray.waiting import wait
from miniray.errors import ClusterError, MiniRayError, WorkerDied, WorkerError, WorkerFailed

GRACE_S = 1.5
from miniray.connection import open_connection, server_status
from miniray.remote_worker import RemoteWorker

CONNECT_S = 8
FAULT_SPREAD_S = 5.0
BEAT_S = 5.0
READY_NOISE_BYTES_MAX = 1024 * 1024
SOURCES_BYTES_MAX = 16 * 1024 * 1024
STDERR_TAIL_LINES = 10
ENDING_S = 4.0
HURRY_S = 1.0
SETTLE_S = 2.0

SSH = (
    "ssh", "-T", "-oBatchMode=yes", "-oControlMaster=no", "-oControlPath=none",
    f"-oConnectTimeout={CONNECT_S}", "-oServerAliveInterval=5", "-oServerAliveCountMax=3",
    "-oExitOnForwardFailure=yes",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class NodeConfig:
    """One machine and how to start workers there.

    `host` is what you would give to ssh. `address` is where the coordinator connects to, by
    default the one that the ssh session arrived at. `python` and `workdir` may begin with ~/.
    `launcher` replaces ssh by any command that runs the shell line it gets as its last argument,
    with stdin, stdout and stderr attached: ("kubectl", "exec", "-i", "pod", "--", "sh", "-c").
    `tunnel` carries the connections through ssh, so that no port is open on the node.
    """

    host: str
    num_workers: int = 1
    address: str | None = None
    python: str = "python3"
    workdir: str | None = None
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ssh_options: Sequence[str] = ()
    launcher: Sequence[str] | None = None
    tunnel: bool = False

    def __post_init__(self) -> None:
        if not self.host or self.host.startswith("-") or any(c.isspace() for c in self.host):
            raise ValueError(f"host {self.host!r} is not a name: ssh would take it for an option")
        if self.num_workers < 1:
            raise ValueError(f"num_workers of {self.host} must be >= 1, got {self.num_workers}")
        if self.tunnel and self.launcher is not None:
            raise ValueError(f"{self.host}: a tunnel goes through ssh, not through a launcher")

    @classmethod
    def local(cls, num_workers: int = 1, *, host: str = "local", **options: Any) -> Self:
        """Return a "node" on this machine: the same, without ssh."""
        options = {"launcher": ("/bin/sh", "-c"), "python": sys.executable, **options}
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
        self._configs, self._fake_gpus = list(nodes), fake_gpus
        self._start_timeout, self._log = start_timeout, log
        self._nodes: list[Node] = []
        self.workers: list[RemoteWorker] = []

    def start(self, work_fn: str) -> list[RemoteWorker]:
        """Start "module.function" on every node; return the workers, index == rank.

        The module is sent along if it is found here and is not an installed one; else the node's
        own is imported, from its workdir. Raises ClusterError, with every node's fault, and
        leaves nothing running, if not all ranks start.
        """
        if self._nodes:
            raise RuntimeError("this cluster has been started; stop it first")
        sources = collect_sources(work_fn)
        key = auth.make_key()
        try:
            for index, config in enumerate(self._configs):
                label = config.host
                if sum(one.host == label for one in self._configs) > 1:
                    label = f"{label}#{index}"
                env = {"MINIRAY_FAKE_GPUS": "1"} if self._fake_gpus else {}
                settings = {"work_fn": work_fn, "sources": sources, "key": key.decode()}
                settings["env"] = {**env, **config.env}
                self._nodes.append(Node(config, label, self._log or sys.stderr))
                self._nodes[-1].launch(settings)
            self._wait_until_ready()
            self._connect(key)
        except BaseException:
            self.stop(grace=0.0)
            raise
        return list(self.workers)

    def _wait_until_ready(self) -> None:
        """Read every node's ready line; after the first fault the others have a short while."""
        deadline = time.monotonic() + self._start_timeout
        waiting = list(self._nodes)
        with selectors.DefaultSelector() as selector:
            for node in waiting:
                selector.register(node.stdout, selectors.EVENT_READ, node)
            while waiting and time.monotonic() < deadline:
                for key, _ in selector.select(deadline - time.monotonic()):
                    node = key.data
                    if node.read_ready_line():
                        selector.unregister(node.stdout)
                        waiting.remove(node)
                        if node.fault:
                            deadline = min(deadline, time.monotonic() + FAULT_SPREAD_S)
        for node in waiting:
            node.fault = node.last_words(f"not ready after {self._start_timeout}s")
        self._raise_faults("start")

    def _connect(self, key: bytes) -> None:
        for node in self._nodes:
            try:
                node.hold_lease()
                for _ in range(node.config.num_workers):
                    rank = len(self.workers)
                    worker = RemoteWorker(
                        node.host, node.port, key=key, name=f"rank{rank}", timeout=CONNECT_S
                    )
                    node.workers.append(worker)
                    worker.name = f"rank {rank} at {node.label}:{node.port or 'tunnel'}"
                    self.workers.append(worker)
            except (OSError, MiniRayError) as error:
                node.fault = (
                    f"its server is ready, but: {error}; set NodeConfig(address=...) or tunnel=True"
                )
        self._raise_faults("connect")

    def _raise_faults(self, what: str) -> None:
        faults = [node for node in self._nodes if node.fault]
        if faults:
            lines = "".join(f"\n  {node.label}: {node.fault}" for node in faults)
            count = f"{len(faults)} of {len(self._nodes)} nodes"
            raise ClusterError(f"{count} failed to {what}; nothing was left running:{lines}")

    def status(self) -> list[dict[str, Any]]:
        """Return each server's status: what runs, how long it is silent, how each worker ended."""
        return [node.status() for node in self._nodes]

    def nccl_configs(self, backend: str | None = None) -> list[nccl.NCCLConfig]:
        """Return one config a rank, with an address of node 0 and a port that is free there.

        From here on the ranks are one process group: when one dies, `recv` on any of them raises
        an error that names the first culprit, and the others are ended.
        """
        if not self.workers:
            raise RuntimeError("start the cluster first: node 0 is asked for a free port")
        first = self._nodes[0]
        port = first.status(free_port=1)["server"]["free_port"]
        others = [node for node in self._nodes if not node.address.startswith("127.")]
        if others and first.address.startswith("127."):
            raise ValueError(
                f"{first.label} is at {first.address}, where {others[0].label} cannot reach it; "
                "set its NodeConfig(address=...)"
            )
        for worker in self.workers:
            worker.group = self
        places = [(node.label, node.config.num_workers) for node in self._nodes]
        return nccl.create_nccl_configs(first.address, places, port, backend)

    def wait_for(self, worker: RemoteWorker, timeout: float | None) -> None:
        """Wait until a worker has something to say, or raise if another rank has died."""
        poller = select.poll()
        others = {one.fileno(): one for one in self.workers if one._ended is None}
        for descriptor in others:
            poller.register(descriptor, select.POLLHUP | getattr(select, "POLLRDHUP", 0))
        poller.register(worker, select.POLLIN)
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else max(deadline - time.monotonic(), 0) * 1000
            ready = [descriptor for descriptor, _ in poller.poll(left)]
            if worker.fileno() in ready or not ready:
                return
            for descriptor in ready:
                poller.unregister(descriptor)
                if error := others[descriptor].how_it_ended():
                    raise self.blame(error)

    def blame(self, error: WorkerError) -> WorkerError:
        """Return the error of the rank that died first, and end all ranks with it.

        The others' errors are consequences: a collective fails when a peer has gone. Who died
        without a word comes first, then the node that is lost, then who failed earliest.
        """
        for worker in self.workers:
            worker.group = None
        error = self._find_culprit(error)
        for worker in self.workers:
            worker._ended = error
            worker.close()
        return error

    def _find_culprit(self, error: WorkerError) -> WorkerError:
        pending, failed = list(self.workers), []
        deadline = time.monotonic() + SETTLE_S
        while pending and (ready := wait(pending, max(deadline - time.monotonic(), 0))):
            for worker in ready:
                try:
                    worker.recv(timeout=HURRY_S)  # what it still says is of no use any more
                except WorkerDied as death:
                    return death
                except (WorkerError, OSError, MiniRayError) as ending:
                    pending.remove(worker)
                    if isinstance(ending, WorkerFailed):
                        failed.append(ending)
        for node in self._nodes:
            if not set(node.workers).isdisjoint(pending):
                try:
                    node.status(timeout=SETTLE_S)
                except (OSError, MiniRayError) as silence:
                    return WorkerDied(f"{node.workers[0].name} is lost with its node: {silence}")
        return min(failed, key=lambda one: one.failed_at, default=error)

    def stop(self, grace: float = GRACE_S) -> None:
        """End all workers and servers: hang up, SIGTERM after `grace` s, SIGKILL after twice that.

        A KeyboardInterrupt while it waits ends them at once.
        """
        try:
            # Goodbyes first: a worker that hears one ends by itself, and in silence.
            for worker in self.workers:
                worker.close()
            for node in self._nodes:
                node.begin_stop(grace)
            deadline = time.monotonic() + 2 * grace + ENDING_S
            for node in self._nodes:
                node.end(deadline)
        except BaseException:  # Ctrl-C again
            for node in self._nodes:
                node.begin_stop(0.0)
            for node in self._nodes:
                node.end(time.monotonic() + HURRY_S)
            raise
        finally:
            self._nodes, self.workers = [], []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


class Node:
    """The coordinator's side of one node: an ssh session, its three streams, and its server."""

    def __init__(self, config: NodeConfig, label: str, log: TextIO) -> None:
        self.config, self.label, self._log = config, label, log
        self.fault: str | None = None
        self.host, self.port, self.address = "", 0, ""
        self.workers: list[RemoteWorker] = []
        self._key = b""
        self._lease: socket.socket | None = None
        self._marker = f"miniray-{secrets.token_hex(16)} "
        self._received = bytearray()
        self._last_lines: collections.deque[str] = collections.deque(maxlen=STDERR_TAIL_LINES)
        self._folder: str | None = None
        self._stopping = threading.Event()
        self._session: subprocess.Popen[bytes] | None = None
        self._stdin: IO[bytes]
        self.stdout: IO[bytes]
        self._stderr: IO[bytes]

    def launch(self, settings: dict[str, Any]) -> None:
        """Start the session and send it the code, the key and the settings."""
        config = self.config
        self._key = settings["key"].encode()
        remote_socket = f"/tmp/miniray-{secrets.token_hex(16)}/server"
        settings |= {
            "node": self.label,
            "marker": self._marker,
            "num_workers": config.num_workers,
            "workdir": config.workdir,
            "host": remote_socket if config.tunnel else config.launcher and config.address,
            "silence_max_s": 5 * BEAT_S if config.tunnel else None,
        }
        payload = json.dumps(settings).encode()
        bootstrap = Path(__file__).with_name("bootstrap.py").read_bytes()
        command = self._command(len(bootstrap), remote_socket)
        # What a launcher starts is not where our own ssh session arrived, if there is one.
        away = () if config.launcher is None else ("SSH_CONNECTION",)
        try:
            session = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,  # Ctrl-C is the coordinator's to handle
                env={name: value for name, value in os.environ.items() if name not in away},
            )
        except OSError as error:
            raise ClusterError(
                f"{self.label}: cannot run {command[0]}: {error.strerror}"
            ) from error
        assert session.stdin is not None
        assert session.stdout is not None
        assert session.stderr is not None
        self._session, self._stdin = session, session.stdin
        self.stdout, self._stderr = session.stdout, session.stderr
        # Threads: a pipe takes 64 KiB and a node may be slow to read; logs come at any time.
        data = bootstrap + f"{len(payload)}\n".encode() + payload
        self._feeder = threading.Thread(target=self._feed, args=(data,), daemon=True)
        self._logger = threading.Thread(target=self._copy_log, daemon=True)
        self._feeder.start()
        self._logger.start()

    def _command(self, bootstrap_bytes: int, remote_socket: str) -> list[str]:
        program = f"import sys;exec(sys.stdin.buffer.read({bootstrap_bytes}))"
        # One line that every login shell understands: sh takes over from there.
        python = f'exec {_quote_path(self.config.python)} -c "{program}"'
        line = f"exec /bin/sh -c {shlex.quote(python)}"
        if self.config.launcher is not None:
            return [*self.config.launcher, line]
        forward = []
        if self.config.tunnel:
            self._folder = tempfile.mkdtemp(prefix="miniray-")
            self.host = f"{self._folder}/server"
            forward = [f"-L{self.host}:{remote_socket}"]
        return [*SSH, *forward, *self.config.ssh_options, "--", self.config.host, line]

    def read_ready_line(self) -> bool:
        """Take in some of stdout; return whether the node is ready or its fault is known."""
        data = os.read(self.stdout.fileno(), 1 << 16)
        self._received += data
        begin = self._received.find(self._marker.encode())
        end = self._received.find(b"\n", begin)
        if begin >= 0 and end >= 0:
            report = json.loads(self._received[begin + len(self._marker) : end])
            self.fault = report.get("error")
            if not self.fault:
                self.host = self.host or self.config.address or report["host"]
                self.port = report["port"]
                self.address = self.config.address or report["address"]
            return True
        if data and len(self._received) < READY_NOISE_BYTES_MAX:
            return False
        self.fault = self.last_words("the session ended before its server was ready")
        return True

    def last_words(self, problem: str) -> str:
        """Return a fault with what the session said last, and what to try by hand."""
        self._logger.join(HURRY_S)
        said = "; ".join(self._last_lines) or "it said nothing"
        options = " ".join(["-oBatchMode=yes", *self.config.ssh_options])
        by_ssh = f"ssh {options} {self.config.host} {self.config.python} --version"
        hint = "" if self.config.launcher is not None else f"\n    try: {by_ssh}"
        return f"{problem}: {said}{hint}"

    def hold_lease(self) -> None:
        """Open the connection whose end tells the server that the coordinator is lost.

        Through a tunnel it would keep the session from ending, and stdin's beats do its work.
        """
        if not self.config.tunnel:
            request = {"type": "lease"}
            self._lease, _ = open_connection(self.host, self.port, self._key, request, CONNECT_S)

    def status(self, timeout: float = 5.0, **request: int) -> dict[str, Any]:
        """Ask this node's server for its status."""
        return server_status(self.host, self.port, key=self._key, timeout=timeout, **request)

    def begin_stop(self, grace: float) -> None:
        """Tell the server to end its workers, with so many seconds of grace."""
        self._stopping.set()
        if self._session is None:
            return
        self._feeder.join(HURRY_S)
        if not self._feeder.is_alive():  # else the node does not even read
            with contextlib.suppress(OSError, ValueError):  # the session has ended, or ends
                os.write(self._stdin.fileno(), f"{grace}\n".encode())

    def end(self, deadline: float) -> None:
        """Wait for the session's end, and kill it at the deadline; then tidy up."""
        if self._session is not None:
            # A server keeps its leases to its end, and can still be told to hurry.
            if not self.address:
                with contextlib.suppress(OSError):  # the session has ended
                    self._stdin.close()
            try:
                self._session.wait(max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                os.killpg(self._session.pid, signal.SIGKILL)
                self._session.wait()
            with contextlib.suppress(OSError):  # what was not written has no reader any more
                self._stdin.close()
            self._feeder.join(HURRY_S)
            self._logger.join(HURRY_S)
            self.stdout.close()
            self._stderr.close()
        if self._lease is not None:
            self._lease.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _feed(self, data: bytes) -> None:
        """Write what the bootstrap reads; through a tunnel, show that we live from then on."""
        with contextlib.suppress(OSError, ValueError):  # the session has ended, or stdin is closed
            while data:
                data = data[os.write(self._stdin.fileno(), data) :]
            while self.config.tunnel and not self._stopping.wait(BEAT_S):
                os.write(self._stdin.fileno(), b"\n")

    def _copy_log(self) -> None:
        """Copy the session's stderr to the log, each line with the node's name."""
        for raw in self._stderr:
            line = raw.decode(errors="replace").rstrip("\r\n")
            if not line.startswith((f"[{self.label}:", f"[{self.label}] ")):
                self._last_lines.append(line)
                line = f"[{self.label}] {line}"
            with contextlib.suppress(OSError, ValueError):  # a full disk or a closed log
                self._log.write(line + "\n")
                self._log.flush()


def _quote_path(path: str) -> str:
    """Quote a path for sh, but leave a leading ~/ to it."""
    return f"~/{shlex.quote(path[2:])}" if path.startswith("~/") else shlex.quote(path)


def collect_sources(work_fn: str) -> dict[str, tuple[str, bool, str]]:
    """Return {module: (file, is_package, source)} of MiniRay and of the module of `work_fn`.

    A module in a package brings its package along, a lone one the modules beside it. Installed
    modules and Python's own are left to the node. Raises ValueError for more than 16 MiB.
    """
    top, dot, _ = work_fn.partition(".")
    if not dot or top == "__main__":
        raise ValueError(f"work_fn must be a module's MODULE.FUNCTION, got {work_fn!r}")
    sources = dict(_package_sources("miniray", Path(__file__).parent))
    spec = importlib.util.find_spec(top)
    if top != "miniray" and spec is not None and _is_users_own(top, spec):
        if spec.submodule_search_locations:
            sources |= _package_sources(top, Path(next(iter(spec.submodule_search_locations))))
        elif spec.origin:
            for file in Path(spec.origin).parent.glob("*.py"):
                if file.stem not in sys.stdlib_module_names and file.stem not in sources:
                    sources[file.stem] = (str(file), False, file.read_text())
    total = sum(len(text) for _, _, text in sources.values())
    if total > SOURCES_BYTES_MAX:
        raise ValueError(
            f"the code beside {work_fn} is {total} bytes, the limit is {SOURCES_BYTES_MAX}; put "
            "it in a package of its own, or install it on the nodes"
        )
    return sources


def _is_users_own(name: str, spec: importlib.machinery.ModuleSpec) -> bool:
    where = spec.origin or next(iter(spec.submodule_search_locations or []), "")
    installed = ("site-packages" in where) or ("dist-packages" in where)
    return name not in sys.stdlib_module_names and not installed


def _package_sources(name: str, folder: Path) -> dict[str, tuple[str, bool, str]]:
    sources = {name: (str(folder), True, "")}
    for file in sorted(folder.rglob("*.py")):
        parts = [name, *file.relative_to(folder).with_suffix("").parts]
        if not all(part.isidentifier() for part in parts):
            continue
        if parts[-1] == "__init__":
            sources[".".join(parts[:-1])] = (str(file), True, file.read_text())
            continue
        for end in range(1, len(parts)):  # folders without an __init__.py are packages too
            sources.setdefault(".".join(parts[:end]), (str(file.parent), True, ""))
        sources[".".join(parts)] = (str(file), False, file.read_text())
    return sources
