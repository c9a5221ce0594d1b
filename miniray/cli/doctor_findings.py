"""What doctor has found out about a node, and what it says of it."""

import collections
import dataclasses
import re
import shlex
from collections.abc import Sequence
from typing import Any, Literal

from miniray.cli.run_hosts import name_host
from miniray.node_config import NodeConfig

State = Literal["ok", "note", "wrong", "untested"]


@dataclasses.dataclass(frozen=True)
class Check:
    """One line about a node: how it is, and what to do if it is not well."""

    name: str
    state: State
    says: str
    fix: str = ""  # in words, with commands between backticks
    is_waiting: bool = False  # for another check, which is wrong


def waiting(name: str, for_what: str) -> Check:
    """Return what is said of a check that makes no sense before another one is well."""
    return Check(name, "untested", f"not tested: {for_what} comes first", is_waiting=True)


@dataclasses.dataclass
class Findings:
    """What was found out about one node; nothing in here is a judgement."""

    config: NodeConfig
    name: str
    # What the session's own program wrote on stderr (ssh -v), and whatever runs over there.
    said: list[str] = dataclasses.field(default_factory=list)
    # What came on stdout before anything of ours: of start-up files.
    noise: list[str] = dataclasses.field(default_factory=list)
    has_shell: bool = False  # sh over there has answered
    pythons: list[str] | None = None  # what sh has found instead, if the one that was named is none
    version: tuple[int, ...] | None = None
    exit_status: int | None = None  # of a session that ended before it was told to
    # The probe's facts, by name.
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    clock_ahead_s: float | None = None
    clock_error_s: float = 0.0
    # How this machine got through to it, by address, and through a tunnel.
    reached: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    tunnel: dict[str, Any] | None = None
    seconds: float = 0.0
    num_places: int = 0  # that the probe was to look at

    def find(self, pattern: str) -> re.Match[str] | None:
        """Return what matches in the last line of `said` in which something does.

        Before it may stand what ssh said of a host in between.
        """
        matches = (re.search(pattern, line) for line in reversed(self.said))
        return next(filter(None, matches), None)

    def fact(self, name: str) -> dict[str, Any]:
        """Return some of the probe's facts; none if they did not come, or could not be had."""
        found = self.facts.get(name) or {}
        return {} if "error" in found and name in ("system", "network") else found

    def login_name(self) -> str:
        """Return as whom ssh has asked to be let in; "" if it has not come so far."""
        found = self.find(r"Authenticating to .* as '(.*)'")
        return found[1] if found else ""

    def is_root(self) -> bool:
        """Return whether one is root over there, or would be; root may have no sudo."""
        return bool(self.fact("system").get("user", self.login_name()) == "root")

    def ssh_connection(self) -> list[str]:
        """Return where the session came from and to, in sshd's four words; none without one."""
        words: str = self.fact("system").get("environment", {}).get("SSH_CONNECTION", "")
        return words.split()

    def addresses(self) -> list[str]:
        """Return where others reach this node: first where MiniRay would, then its other ones."""
        session = self.ssh_connection()
        first = self.config.address
        if first is None:
            arrived = session[2] if len(session) == 4 else ""
            first = "127.0.0.1" if self.config.launcher is not None else arrived
        others = [
            address
            for one in self.fact("network").get("interfaces", [])
            for address in one["addresses"]
            if one["is_up"] and not one["is_loopback"]
        ]
        return list(dict.fromkeys([*filter(None, [first]), *others]))

    def chosen_by(self, variable: str) -> list[dict[str, Any]]:
        """Return the interfaces that a variable, which is set there, lets be used."""
        network = self.fact("network")
        text = network["variables"][variable]
        return [one for one in network["interfaces"] if chooses(variable, text, one["name"])]

    def interface_of(self, address: str) -> str:
        """Return the name of the interface that has an address; "" if none has."""
        for one in self.fact("network").get("interfaces", []):
            if address in one["addresses"]:
                return str(one["name"])
        return ""


def chooses(variable: str, text: str, interface: str) -> bool:
    """Return whether a variable, such as NCCL_SOCKET_IFNAME, lets an interface be used.

    For NCCL, "eth" is how names begin, "=eth0" is one, and with "^" before them they are those to
    leave. gloo takes whole names.
    """
    rest = text.removeprefix("^") if variable.startswith("NCCL") else f"={text}"
    is_exact, rest = rest.startswith("="), rest.removeprefix("=")
    names = [one.partition(":")[0].strip() for one in rest.split(",")]
    found = any(interface == one if is_exact else interface.startswith(one) for one in names if one)
    return found != text.startswith("^")


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What the run is going to need, as far as the options say it."""

    modules: Sequence[str] = ("torch",)
    needed: Sequence[str] = ()  # those of them that were asked for by name
    port: int = 0
    tunnel: bool = False
    fake_gpus: bool = False
    limit_s: float = 10.0


class World:
    """All the nodes beside each other, and the machine that asks."""

    def __init__(self, nodes: Sequence[Findings], here: Findings, wanted: Wanted) -> None:
        self.nodes, self.here, self.wanted = nodes, here, wanted

    def others(self, findings: Findings) -> list[Findings]:
        """Return all nodes but one."""
        return [one for one in self.nodes if one is not findings]

    def version_to_have(self, module: str) -> dict[str, Any] | None:
        """Return what most nodes have of a module; if none has more, this machine decides."""
        found = [one for node in self.nodes if (one := version_of(node, module))]
        counts = collections.Counter((one["version"], one.get("cuda")) for one in found)
        own = version_of(self.here, module)
        if not counts:
            return own
        most = max(counts.values())
        first = [pair for pair, count in counts.items() if count == most]
        if own and len(first) > 1:
            first.sort(key=lambda pair: base_version(pair[0]) != base_version(own["version"]))
        return {"version": first[0][0], "cuda": first[0][1]}

    def package_of(self, module: str) -> str:
        """Return what pip calls the package that has a module; "" if this machine does not know."""
        found = self.here.fact("modules").get(module, {})
        return "torch" if module == "torch" else str(found.get("package", ""))


def version_of(findings: Findings, module: str) -> dict[str, Any] | None:
    """Return the facts of a module that is there and says its version; else None."""
    found = findings.fact("modules").get(module, {})
    return found if found.get("version") else None


def base_version(version: str) -> str:
    """Return a version without what stands behind a plus: how it was built."""
    return version.partition("+")[0]


def is_late(findings: Findings, name: str, fact: str, world: World) -> Check | None:
    """Return what to say if a fact has not come, or could not be had."""
    if fact not in findings.facts:
        return Check(
            name,
            "wrong",
            f"no answer within {world.wanted.limit_s:.0f} s",
            "something over there hangs, a network file system perhaps (see `mount`); if it is "
            "only slow: `--limit 60`",
        )
    if "error" in findings.facts[fact] and fact not in ("gpus", "listening"):
        return Check(name, "note", f"cannot be told here: {findings.facts[fact]['error']}")
    return None


def by_ssh(config: NodeConfig, *line: str) -> str:
    """Return, between backticks, a command that runs a line there by ssh, or logs in."""
    asks = ("-t",) * any(one.startswith("sudo ") for one in line)  # for a password
    return f"`{shlex.join(('ssh', *asks, *config.ssh_options, config.host, *line))}`"


def over_there(findings: Findings, line: str) -> str:
    """Return, between backticks, a command that runs a line on a node."""
    launcher = findings.config.launcher
    line = line.removeprefix("sudo " * findings.is_root())
    if launcher is None:
        return by_ssh(findings.config, line)
    return f"`{line}`" if findings.config.is_local() else f"`{shlex.join((*launcher, line))}`"


def without_sudo(fix: str, findings: Findings) -> str:
    """Return what to do on a node, without sudo for who is root there, and may not have it."""
    return fix.replace("`sudo ", "`") if findings.is_root() else fix


def with_ranks(config: NodeConfig, world: World, ranks: int, host: str = "") -> str:
    """Return, between backticks, the option that puts so many ranks there, at another name of it.

    Who logs in stays the same.
    """
    if config.is_local():
        count = len(world.nodes)
        return f"`--local {count}x{ranks}`" if count > 1 else f"`--local {ranks}`"
    if config.launcher is not None:  # of an allocation, all are asked for at once
        return f"`--per-node {ranks}`"
    user = config.host.rpartition("@")[0]
    named = f"{user}@{host}" if user and host else host or config.host
    return f"`{shlex.join(('-H', name_host(named, ranks)))}`"
