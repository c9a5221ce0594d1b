"""A real OpenSSH server with keys and a configuration of its own, and the client's side of it."""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from tests.support import poll, processes

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
HOSTS = ("node1", "node2")


def missing() -> str | None:
    """Say what this machine lacks to run an sshd, or None."""
    if SSHD is None:
        return "there is no sshd; install openssh-server"
    return None


@dataclass
class Identity:
    """The user's key, and the known_hosts and ssh_config that name the servers."""

    directory: Path
    key: Path = field(init=False)
    config: Path = field(init=False)
    known_hosts: Path = field(init=False)

    def __post_init__(self) -> None:
        self.key = make_key(self.directory / "user_key")
        self.config = self.directory / "ssh_config"
        self.known_hosts = self.directory / "known_hosts"
        self.known_hosts.touch()
        self.config.write_text(
            "Host *\n"
            f"  User {pwd.getpwuid(os.getuid()).pw_name}\n"
            f"  IdentityFile {self.key}\n"
            "  IdentitiesOnly yes\n"
            "  IdentityAgent none\n"
            "  StrictHostKeyChecking yes\n"
            f"  UserKnownHostsFile {self.known_hosts}\n"
            "  GlobalKnownHostsFile /dev/null\n"
        )

    @property
    def options(self) -> tuple[str, ...]:
        """What `ssh` needs so as to use these files."""
        return ("-F", str(self.config))

    def trust(self, names: Sequence[str], host_key: Path) -> None:
        """Add the server's key to known_hosts under each of `names`."""
        kind, key, *_ = host_key.with_suffix(".pub").read_text().split()
        with self.known_hosts.open("a") as known_hosts:
            known_hosts.write(f"{','.join(names)} {kind} {key}\n")


def make_key(path: Path) -> Path:
    """Make an ed25519 key pair without a passphrase, or use the one that is there."""
    if path.exists():
        return path
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "miniray test", "-f", str(path)],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    return path


class Server:
    """An sshd on `address`, or on all, and `port`; `prefix` runs it in a namespace."""

    def __init__(
        self,
        identity: Identity,
        *,
        directory: Path,
        address: str | None,
        port: int,
        prefix: Sequence[str] = (),
        force_command: str | None = None,
        settings: str = "",
    ) -> None:
        assert SSHD is not None
        directory.mkdir(exist_ok=True)
        self.host_key = make_key(directory / "host_key")
        self.log = directory / "sshd.log"
        self.log.unlink(missing_ok=True)  # that of an earlier server with the same key
        config = directory / "sshd_config"
        config.write_text(
            f"Port {port}\n"
            f"HostKey {self.host_key}\n"
            "PidFile none\n"
            f"AuthorizedKeysFile {identity.key}.pub\n"
            "StrictModes no\n"  # the keys lie below a temporary directory that others may write to
            "PasswordAuthentication no\n"
            "KbdInteractiveAuthentication no\n"
            f"UsePAM {'yes' if _account_is_locked() else 'no'}\n"
            "PermitRootLogin prohibit-password\n"
            "PrintMotd no\n"
            # So that what a node leaves in its temporary directory is seen by the leak check; and a
            # bash that is no outermost one reads no start-up files, which may do anything: pyenv's
            # take a tenth of a second, and, if one that was killed has left its lock, a minute.
            f"SetEnv TMPDIR={tempfile.gettempdir()} SHLVL=1\n"
            + (f"ListenAddress {address}\n" if address else "")
            + (f"ForceCommand {force_command}\n" if force_command else "")
            + settings
        )
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(
                mode=0o755, exist_ok=True
            )  # sshd's privilege separation needs it
        self.process = subprocess.Popen(
            [*prefix, SSHD, "-D", "-E", str(self.log), "-f", str(config)],
            stdin=subprocess.DEVNULL,
        )
        processes.exempt_pids.add(self.process.pid)
        try:
            poll.until(self._listens, what=f"sshd on port {port}")
        except BaseException:
            self.close()
            raise

    def _listens(self) -> bool:
        log = self.log.read_text() if self.log.exists() else ""
        if self.process.poll() is not None:
            raise OSError(f"sshd ended with {self.process.returncode}:\n{log}")
        return "Server listening" in log

    def close(self) -> None:
        """End the server; sessions that are open live on, as they would on any machine."""
        self.process.terminate()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        processes.exempt_pids.discard(self.process.pid)

    def __enter__(self) -> "Server":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@dataclass
class LoopbackNodes:
    """Two "nodes", node1 and node2, that are both this machine's loopback sshd."""

    identity: Identity
    server: Server
    port: int
    hosts: tuple[str, str] = HOSTS
    address: str = "127.0.0.1"

    @property
    def ssh_options(self) -> tuple[str, ...]:
        return self.identity.options

    def run(
        self, host: str, command: str, *, timeout_s: float = 30
    ) -> subprocess.CompletedProcess[str]:
        """Run a command line on a node, as `ssh` does."""
        return subprocess.run(
            ["ssh", *self.ssh_options, host, command],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout_s,
        )


@contextlib.contextmanager
def loopback_nodes(
    directory: Path, *, force_command: str | None = None, settings: str = ""
) -> Iterator[LoopbackNodes]:
    """Run an sshd on a free port of 127.0.0.1, as whoever runs the tests.

    `settings` are more lines for its sshd_config.
    """
    identity = Identity(directory)
    for attempt in range(5):
        port = _free_port()
        try:
            server = Server(
                identity,
                directory=directory / f"server{attempt}",
                address="127.0.0.1",
                port=port,
                force_command=force_command,
                settings=settings,
            )
            break
        except OSError:  # sshd takes no port 0, so somebody else may have taken this one meanwhile
            if attempt == 4:
                raise
    with server:
        identity.trust([f"[127.0.0.1]:{port}"], server.host_key)
        with identity.config.open("a") as config:
            config.write(f"Host {' '.join(HOSTS)}\n  HostName 127.0.0.1\n  Port {port}\n")
        yield LoopbackNodes(identity, server, port)


def login_shell(shell: str) -> str:
    """Return the ForceCommand that hands the command line to `shell`, as to a login shell."""
    return f'exec {shell} -c "$SSH_ORIGINAL_COMMAND"'


def write_noisy_shell(path: Path) -> str:
    """Write a login shell whose start-up files print junk, and return the ForceCommand for it."""
    path.write_text(
        "#!/bin/sh\n"
        "echo 'Welcome to the cluster! {\"port\": 1}'\n"
        "printf 'quota: 93%% used, no newline here'\n"
        "printf '\\000\\377\\n\\n{}\\n'\n"
        "echo 'a warning from the rc file' >&2\n"
        "printf 'and one without a newline' >&2\n"
        'exec /bin/sh -c "$1"\n'
    )
    path.chmod(0o755)
    return f'exec {path} "$SSH_ORIGINAL_COMMAND"'


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _account_is_locked() -> bool:
    # Without PAM, sshd refuses an account whose password is locked, even with a key.
    name = pwd.getpwuid(os.getuid()).pw_name
    try:
        lines = Path("/etc/shadow").read_text().splitlines()
    except OSError:  # not root, or no such file: sshd cannot read it either
        return False
    return any(line.startswith(f"{name}:!") for line in lines)
