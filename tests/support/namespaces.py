"""Two nodes with an sshd each, and a coordinator, in network namespaces joined by a bridge."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.support import poll, ssh
from tests.support.leaks import NAMESPACES, namespace_prefix

REPOSITORY = Path(__file__).resolve().parents[2]
ETC = Path("/etc/netns")
# Inside the namespaces only, so that parallel runs may use the same ones.
COORDINATOR_ADDRESS = "10.77.0.1"
ADDRESSES = {"node1": "10.77.0.11", "node2": "10.77.0.12"}
ADDRESSES_V6 = {"coordinator": "fd77::1", "node1": "fd77::11", "node2": "fd77::12"}


def missing() -> str | None:
    """Say what this machine lacks to make the namespaces, or None."""
    if sys.platform != "linux":
        return "network namespaces need Linux"
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "there is no ip command; install iproute2"
    return ssh.missing()


class Nodes:
    """The namespaces and their servers; the coordinator reaches the nodes as `hosts`."""

    hosts = ssh.HOSTS
    addresses = ADDRESSES
    addresses_v6 = ADDRESSES_V6
    coordinator_address = COORDINATOR_ADDRESS

    def __init__(self, directory: Path) -> None:
        prefix = namespace_prefix()
        self.coordinator = f"{prefix}-coordinator"
        self.namespaces = {host: f"{prefix}-{host}" for host in self.hosts}
        self.identity = ssh.Identity(directory)
        self.servers: dict[str, ssh.Server] = {}
        self._directory = directory
        try:
            self._make_network()
            self._start_servers()
        except BaseException:
            self.close()
            raise

    @property
    def ssh_options(self) -> tuple[str, ...]:
        return self.identity.options

    def in_namespace(self, argv: Sequence[str], *, node: str | None = None) -> list[str]:
        """Return `argv` so that it runs in the coordinator's namespace, or in `node`'s."""
        name = self.namespaces[node] if node else self.coordinator
        return ["ip", "netns", "exec", name, *argv]

    def popen(
        self, argv: Sequence[str], *, node: str | None = None, **options: Any
    ) -> subprocess.Popen[str]:
        """Start `argv` in the coordinator's namespace; its pid is that of the command itself."""
        defaults: dict[str, Any] = {"text": True, "cwd": REPOSITORY, "stdin": subprocess.DEVNULL}
        environment = _environment(options.pop("env", {}))
        return subprocess.Popen(
            self.in_namespace(argv, node=node), env=environment, **(defaults | options)
        )

    def run(
        self, argv: Sequence[str], *, node: str | None = None, timeout: float = 60, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run `argv` in the coordinator's namespace to its end and return what it printed."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        with self.popen(argv, node=node, **options) as process:
            try:
                stdout, stderr = process.communicate(timeout=timeout)
            except BaseException as error:
                # First the polite way, which leaves the tested program its chance to tidy up.
                process.send_signal(signal.SIGTERM)
                try:
                    stdout, stderr = process.communicate(timeout=10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    stdout, stderr = process.communicate()
                if isinstance(error, subprocess.TimeoutExpired):
                    print(f"timed out after {timeout}s:\n{stdout}\n{stderr}")
                raise
        return subprocess.CompletedProcess(argv, process.returncode, stdout, stderr)

    def python(
        self, script: str | Path, *arguments: str, timeout: float = 60, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a script, a path or its text, with this Python in the coordinator's namespace."""
        with _script_path(script) as path:
            return self.run([sys.executable, str(path), *arguments], timeout=timeout, **options)

    @contextlib.contextmanager
    def cut(self, node: str) -> Iterator[None]:
        """Cut a node's link for the length of a `with` block: packets vanish, nothing is closed."""
        self.cut_link(node)
        try:
            yield
        finally:
            self.mend(node)

    def cut_link(self, node: str) -> None:
        """Cut a node's link until `mend`."""
        _ip("-n", self.coordinator, "link", "set", node, "down")

    def mend(self, node: str) -> None:
        """Join the node again."""
        _ip("-n", self.coordinator, "link", "set", node, "up")

    def pids(self, node: str) -> list[int]:
        """Return the processes that live on a node, without sshd's own and without zombies."""
        inode = (NAMESPACES / self.namespaces[node]).stat().st_ino
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            # A process may end while it is looked at, a zombie has no namespace any more, and even
            # root may not look at some that are none of ours.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                lives_here = (entry / "ns/net").stat().st_ino == inode
                if lives_here and "sshd" not in os.path.basename(os.readlink(entry / "exe")):
                    found.append(int(entry.name))
        return found

    def wait_until_empty(self, *, timeout_s: float = 30.0) -> None:
        """Wait until no process is left on any node, or raise TimeoutError that says which are."""
        try:
            poll.until(lambda: not any(map(self.pids, self.hosts)), timeout_s=timeout_s)
        except TimeoutError:
            left = {host: [_command(pid) for pid in self.pids(host)] for host in self.hosts}
            raise TimeoutError(f"still on the nodes after {timeout_s}s: {left}") from None

    def close(self) -> None:
        """End the servers and remove the namespaces and their files; may be called twice."""
        for server in self.servers.values():
            server.close()
        self.servers.clear()
        for name in (self.coordinator, *self.namespaces.values()):
            if (NAMESPACES / name).exists():
                _ip("netns", "delete", name)
            shutil.rmtree(ETC / name, ignore_errors=True)
        with contextlib.suppress(OSError):  # others may have their namespaces' files there
            ETC.rmdir()

    def _make_network(self) -> None:
        for name in (self.coordinator, *self.namespaces.values()):
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", self.coordinator, "link", "add", "bridge", "type", "bridge")
        self._join(self.coordinator, "bridge", COORDINATOR_ADDRESS, ADDRESSES_V6["coordinator"])
        for host, name in self.namespaces.items():
            _ip(
                *("-n", self.coordinator, "link", "add", host, "type", "veth"),
                *("peer", "name", "eth0", "netns", name),
            )
            _ip("-n", self.coordinator, "link", "set", host, "master", "bridge", "up")
            self._join(name, "eth0", ADDRESSES[host], ADDRESSES_V6[host])
        self._write_names(self.coordinator, "coordinator")
        for host, name in self.namespaces.items():
            self._write_names(name, host)

    def _join(self, namespace: str, device: str, address: str, address_v6: str) -> None:
        _ip("-n", namespace, "address", "add", f"{address}/24", "dev", device)
        if Path("/proc/net/if_inet6").exists():
            _ip("-n", namespace, "address", "add", f"{address_v6}/64", "dev", device, "nodad")
        _ip("-n", namespace, "link", "set", device, "up")

    def _write_names(self, namespace: str, own: str) -> None:
        # torch looks its peers' addresses up; a name that must wait for DNS here costs it 20 s.
        lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost"]
        for host, address in {"coordinator": COORDINATOR_ADDRESS, **ADDRESSES}.items():
            machine = f" {socket.gethostname()}" if host == own else ""
            lines.append(f"{address} {host}{machine}")
        lines += [f"{address} {host}-v6" for host, address in ADDRESSES_V6.items()]
        directory = ETC / namespace
        directory.mkdir(parents=True)
        (directory / "hosts").write_text("\n".join(lines) + "\n")
        # `ip netns exec` mounts these over the files in /etc, and warns where there is none.
        if (nsswitch := Path("/etc/nsswitch.conf")).exists():
            text = re.sub(r"(?m)^hosts:.*$", "hosts: files", nsswitch.read_text())
            (directory / "nsswitch.conf").write_text(text)
        if Path("/etc/resolv.conf").exists():
            (directory / "resolv.conf").write_text("options timeout:1 attempts:1\n")

    def _start_servers(self) -> None:
        for host in self.hosts:
            self._start_server(host)
            self.identity.trust(
                [host, f"{host}-v6", ADDRESSES[host], ADDRESSES_V6[host]],
                self.servers[host].host_key,
            )

    @contextlib.contextmanager
    def changed_host_key(self, host: str) -> Iterator[None]:
        """Let the node answer with another host key, as if reinstalled, within a `with` block."""
        self.servers[host].close()
        try:
            self._start_server(host, directory=self._directory / f"{host}-reinstalled")
            yield
        finally:
            self.servers[host].close()
            self._start_server(host)

    @contextlib.contextmanager
    def other_server(
        self, host: str, *, settings: str = "", force_command: str | None = None
    ) -> Iterator[None]:
        """Let the node have an sshd with these settings within a `with` block."""
        self.servers[host].close()
        try:
            self._start_server(host, settings=settings, force_command=force_command)
            yield
        finally:
            self.servers[host].close()
            self._start_server(host)

    def on(self, host: str, *argv: str) -> str:
        """Run a command on a node, where its sshd's mounts are, and return what it printed."""
        pid = str(self.servers[host].process.pid)
        done = subprocess.run(
            ["nsenter", "--target", pid, "--mount", "--net", *argv], capture_output=True, text=True
        )
        if done.returncode:
            raise OSError(f"{' '.join(argv)}: {done.stderr.strip()}")
        return done.stdout

    def _start_server(self, host: str, directory: Path | None = None, **options: Any) -> None:
        self.servers[host] = ssh.Server(
            self.identity,
            directory=directory or self._directory / host,
            address=None,
            port=22,
            prefix=self.in_namespace([], node=host),
            **options,
        )


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def _environment(extra: dict[str, str]) -> dict[str, str]:
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | extra


@contextlib.contextmanager
def _script_path(script: str | Path) -> Iterator[Path]:
    if isinstance(script, Path):
        yield script
        return
    # A file, and not `python -c`, so that a traceback shows the lines.
    with tempfile.TemporaryDirectory(prefix="script-") as directory:
        path = Path(directory) / "coordinator.py"
        path.write_text(textwrap.dedent(script))
        yield path


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")[:160]
    except OSError:
        return f"process {pid}, just ended"
