"""One machine of a cluster, and the command line that reaches it."""

import dataclasses
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Self

# After the user's own, which win: ssh takes the first of two. What they have in their ssh_config
# comes later. An older ssh does not know all of these.
SSH_OPTIONS = (
    *("-oBatchMode=yes", "-oControlMaster=no", "-oControlPath=none", "-oConnectTimeout=8"),
    *("-oServerAliveInterval=5", "-oServerAliveCountMax=3", "-oIgnoreUnknown=*", "-T"),
    *("-oRemoteCommand=none", "-oStdinNull=no", "-oSessionType=default"),
    "-oForkAfterAuthentication=no",
)
LOCAL_LAUNCHER = ("/bin/sh", "-c")


@dataclasses.dataclass(frozen=True)
class NodeConfig:
    """One machine and how to start workers there.

    `host` is what you would give to ssh. `address` is where the coordinator connects to, by
    default the one that the ssh session arrived at. `python` and `workdir` may begin with ~/.
    `ssh_options` come before MiniRay's own, so they win. `launcher` replaces ssh by any command
    that runs the shell line it gets as its last argument, with stdin, stdout and stderr attached:
    ("kubectl", "exec", "-i", "pod", "--", "sh", "-c"). `tunnel` carries the connections through
    ssh, so that no port is open on the node, but where ranks that use torch meet. `encrypt` has
    nobody on the way read or change what goes over direct ones.
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
    encrypt: bool = False

    def __post_init__(self) -> None:
        host = self.host
        if not isinstance(host, str) or not re.fullmatch(r"[^-\s]\S*", host):
            raise ValueError(f"host {host!r} is not a name: ssh would take it for an option")
        if not isinstance(self.num_workers, int) or self.num_workers < 1:
            raise ValueError(f"num_workers of {host} must be >= 1, got {self.num_workers!r}")
        for field in ("ssh_options", "launcher"):
            words = getattr(self, field)
            if isinstance(words, str):
                example = tuple(shlex.split(words))
                raise TypeError(f"{field} of {host} is one string; write {field}={example!r}")
            if words is not None and not all(isinstance(word, str) for word in words):
                raise TypeError(f"{field} of {host} must be strings, got {words!r}")
        for name, value in dict[Any, Any](self.env).items():
            if not isinstance(name, str) or not isinstance(value, str):
                text = {str(name): str(value)}
                raise TypeError(f"env of {host} must be strings, got {value!r}; write {text}")
        if self.launcher is not None and not self.launcher:
            raise ValueError(f"launcher of {host} is empty; for ssh leave it out")
        if self.tunnel and self.launcher is not None:
            raise ValueError(f"{host}: a tunnel goes through ssh, not through a launcher")
        if self.tunnel and self.encrypt:
            raise ValueError(f"{host}: in its tunnel ssh encrypts already; leave encrypt=True out")

    @classmethod
    def local(cls, num_workers: int = 1, *, host: str = "local", **options: Any) -> Self:
        """Return a "node" on this machine: the same, without ssh."""
        options = {"launcher": LOCAL_LAUNCHER, "python": sys.executable, **options}
        return cls(host, num_workers, **options)

    def __repr__(self) -> str:
        usual, maker = NodeConfig("?"), "NodeConfig"
        if self.is_local():
            usual, maker = NodeConfig.local(), "NodeConfig.local"
        ours, theirs = dict(vars(self)), vars(usual)
        ours["env"] = dict.fromkeys(self.env, "...")  # a log is no place for a token
        shown = (f"{name}={value!r}" for name, value in ours.items() if value != theirs[name])
        return f"{maker}({', '.join(shown)})"

    def is_local(self) -> bool:
        """Return whether this is such a node, so that its files are this machine's."""
        return self.launcher is not None and tuple(self.launcher) == LOCAL_LAUNCHER

    def command(self, program: str, forward: str) -> list[str]:
        """Return what runs a Python program there, which may hold no quotes, and forwards a socket.

        Every login shell understands the one line that it gets: sh takes over from there.
        """
        # -S: it needs nothing that is installed, and what site sets up takes as long as the rest.
        python = f'exec {quote_path(self.python)} -Sc "{program}"'
        return self.shell(python, *([f"-L{forward}"] if forward else []))

    def shell(self, line: str, *more_options: str) -> list[str]:
        """Return what runs a line for sh there; the last word of it is the line, quoted."""
        line = f"exec /bin/sh -c {shlex.quote(line)}"
        if self.launcher is not None:
            return [*self.launcher, line]
        return ["ssh", *self.ssh_options, *SSH_OPTIONS, *more_options, "--", self.host, line]

    def try_by_hand(self) -> str:
        """Return a line for a terminal that asks as `command` does; "" for a launcher."""
        if self.launcher is not None:
            return ""
        line = f"{quote_path(self.python)} --version"
        return shlex.join(["ssh", *self.ssh_options, "-oBatchMode=yes", "--", self.host, line])


def quote_path(path: str) -> str:
    """Quote a path for sh, but leave a leading ~/ to it."""
    return f"~/{shlex.quote(path[2:])}" if path.startswith("~/") else shlex.quote(path)
