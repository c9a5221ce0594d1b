"""Which interface a node would use, and who reaches whom: from here, from node to node, in ssh."""

import re
from collections.abc import Sequence
from typing import Any

from miniray.cli.doctor_findings import (
    Check,
    Findings,
    World,
    is_late,
    over_there,
    with_ranks,
    without_sudo,
)

CUT_OFF_MAX = 3  # of the others, each with its own line
WORDS = {
    "timeout": "no answer",
    "refused": "refused",
    "unreachable": "no way there",
    "stuck": "it connects, and large packets are lost",
    "stranger": "somebody else answers",
}


def check_interface(findings: Findings, world: World) -> list[Check]:
    """Return which interface ranks would meet at, and whether a variable names a wrong one."""
    if late := is_late(findings, "interface", "network", world):
        return [late]
    network = findings.fact("network")
    checks = []
    for variable in network["variables"]:
        if problem := _problem_of(findings, world, variable):
            checks.append(Check("interface", "wrong", problem, _unset(findings, variable)))
    if checks:
        return checks
    address = (findings.addresses() or ["?"])[0]
    name = findings.interface_of(address) or "?"
    named = "".join(f", {key}={value}" for key, value in network["variables"].items())
    return [Check("interface", "ok", f"{name}, {address}{named}")]


def _problem_of(findings: Findings, world: World, variable: str) -> str:
    """Return what is wrong with the interface that a variable names; "" if nothing is."""
    network, chosen = findings.fact("network"), findings.chosen_by(variable)
    text, is_one_node = network["variables"][variable], len(world.nodes) == 1
    there = ", ".join(
        f"{one['name']} ({one['addresses'][0]})"
        for one in network["interfaces"]
        if one["addresses"]
    )
    if not chosen:
        return f"{variable}={text} is no interface of this node; it has {there}"
    names = ", ".join(one["name"] for one in chosen)
    if all(one["is_loopback"] for one in chosen) and not is_one_node:
        return f"{variable}={text} is {names}, where no other node gets to; it has {there}"
    if not any(one["is_up"] and one["addresses"] for one in chosen):
        return f"{variable}={text} is {names}, which is down or has no address; it has {there}"
    blind = [
        other.name
        for other in world.others(findings)
        for results in [other.fact("peers").get(f"{findings.name}/{variable}")]
        if results and all(one["how"] != "ok" for one in results.values())
    ]
    if blind:
        address = next(one["addresses"][0] for one in chosen if one["addresses"])
        return (
            f"{variable}={text} is {address}, where {', '.join(blind)} does not get to; "
            f"it has {there}"
        )
    return ""


def _unset(findings: Findings, variable: str) -> str:
    """Return where a variable comes from, and what to have instead."""
    name = findings.interface_of((findings.addresses() or [""])[0])
    exact = "=" if variable.startswith("NCCL") else ""
    right = f"`--env {variable}={exact}{name}`"
    if variable in findings.config.env:
        leave = f"leave `--env {variable}` out: MiniRay finds the interface by itself"
        return f"{leave}; or {right}" if name else leave
    places = findings.fact("network")["set_in"]
    unknown = "none of the usual start-up files has it; sshd's SetEnv may"
    if "SSH_ORIGINAL_COMMAND" in findings.fact("system").get("environment", {}):
        unknown = "sshd runs a ForceCommand, or what the key's line in authorized_keys says"
    where = f" ({', '.join(places[:3]) or unknown})"
    exactly = " (the second = is NCCL's, and means: exactly that)" if exact else ""
    instead = f"; or say it for this run: {right}{exactly}" if name else ""
    return f"unset {variable} over there{where}: MiniRay finds the interface by itself{instead}"


def check_ports(findings: Findings, world: World) -> list[Check]:
    """Return whether this machine gets through to a port of the node's."""
    if late := is_late(findings, "ports", "listening", world):
        return [late]
    facts, checks = findings.facts["listening"], list[Check]()
    port = facts.get("port")
    if "asked" in facts and not _is_ours(facts["holder"], findings, world):
        checks.append(_taken(findings, facts))
    usual = facts.get("usual_port")
    if usual and not _is_ours(usual, findings, world):
        says = f"{usual['port']}, which torch takes by default, is taken by {_whose(usual)}"
        fix = "miniray run takes other ones; where you set MASTER_PORT yourself, take another, too"
        checks.append(Check("ports", "note", says, fix))
    if not port:
        return [*checks, Check("ports", "wrong", f"it cannot listen: {facts['error']}")]
    if world.wanted.tunnel:
        return [*checks, Check("ports", "ok", "none is used from here: --tunnel")]
    results = findings.reached
    if not results:
        return [*checks, Check("ports", "untested", "not tested: the node's address is not known")]
    first = next(iter(results))
    if results[first]["how"] == "ok":
        ok = Check("ports", "ok", f"this machine gets through to {first}")
        return checks if any(one.state == "wrong" for one in checks) else [ok, *checks]
    way = next((address for address, one in results.items() if one["how"] == "ok"), None)
    says = f"this machine does not get through to {first}:{port}: {_how(results[first])}"
    # As the node sees this machine, behind whatever changes addresses; but not behind a jump.
    is_direct = not findings.find("Executing proxy command")
    source = next(iter(findings.ssh_connection()), "") if is_direct else ""
    result = {**results[first], "source": source or results[first].get("source")}
    fix = _let_in(findings, world, result, "this machine", way, _tunnel_works(findings))
    return [*checks, Check("ports", "wrong", says, fix)]


def _is_ours(holder: dict[str, Any], findings: Findings, world: World) -> bool:
    """Return whether it is another node's probe that has a port: two names, and one machine."""
    host = findings.fact("system").get("hostname")
    probes = [one.fact("system") for one in world.nodes]
    return any(one and one["pid"] == holder["pid"] and one["hostname"] == host for one in probes)


def _whose(holder: dict[str, Any]) -> str:
    if holder["pid"]:
        return f"pid {holder['pid']} of {holder['user']} ({(holder['command'] or '?')[:80]})"
    return f"a process of {holder['user']}" if holder["user"] else "some process"


def _taken(findings: Findings, facts: dict[str, Any]) -> Check:
    holder = facts["holder"]
    says = f"port {facts['asked']} is taken by {_whose(holder)}"
    if not holder.get("user"):
        says = f"port {facts['asked']}: {facts['error'].lower()}"
    return Check(
        "ports",
        "wrong",
        says,
        "take another port, or end that over there"
        + (
            f", if it is yours: {over_there(findings, 'kill ' + str(holder['pid']))}"
            if holder.get("pid")
            else ": `sudo ss -ltnp`"
        ),
    )


def _how(result: dict[str, Any]) -> str:
    words = WORDS.get(result["how"], "")
    return " ".join(filter(None, (words, result.get("error", "").lower()))) or "it failed"


def _tunnel_works(findings: Findings) -> bool:
    return bool(findings.tunnel and findings.tunnel["how"] == "ok")


def _let_in(
    findings: Findings,
    world: World,
    result: dict[str, Any],
    whom: str,
    way: str | None,
    tunnel_works: bool,
) -> str:
    """Return how a node gets to let somebody in; `way` is an address of it that works."""
    own = findings.interface_of(_first(findings))
    instead = []
    if way is not None and findings.config.launcher is None:
        there = with_ranks(findings.config, world, findings.config.num_workers, way)
        instead.append(f"name it {way}, which works: {there}")
        if findings.interface_of(way) != own:
            return instead[0]
    if tunnel_works:
        instead.append("go through ssh: `--tunnel`")
    if result["how"] == "stranger":
        return f"another machine has that address, or a proxy: name {findings.name} by another one"
    if result["how"] == "unreachable":
        return f"there is no route: `ip route get ADDRESS` on {whom}; are they in one network?"
    if result["how"] == "stuck":
        return (
            "the MTU of some interface on the way is larger than what the network carries: "
            f"`ip link`, on both; `sudo ip link set dev {own} mtu 1400` tries it"
        )
    source = result.get("source") or ""
    tool = (findings.fact("system").get("firewalls") or [""])[0] if source else ""
    let = {
        "ufw": f"`sudo ufw allow from {source}`",
        "firewall-cmd": f"`sudo firewall-cmd --zone=trusted --add-source={source}`",
        "nft": f"`sudo nft -a list ruleset` shows the rule that turns {source} away, and its "
        "handle; `sudo nft delete rule FAMILY TABLE CHAIN handle HANDLE` takes it out",
        "iptables": f"`sudo ip{'6' * (':' in source)}tables -I INPUT -s {source} -j ACCEPT`",
    }.get(tool, f"its firewall has to let {source or whom} in, at ports from 1024 up")
    return "; or ".join([f"on {findings.name}: {let}", *instead])


def _first(findings: Findings) -> str:
    return (findings.addresses() or [""])[0]


def check_others(findings: Findings, world: World) -> list[Check]:
    """Return whether this node gets through to each of the others."""
    others = world.others(findings)
    if not others:
        return []
    if late := is_late(findings, "others", "peers", world):
        return [late]
    results = findings.fact("peers")
    well = [one.name for one in others if _gets_through(findings, one)]
    absent = [one.name for one in others if not results.get(one.name)]
    ill = [one for one in others if one.name not in (*well, *absent)]
    checks = [_cut_off(findings, other, world) for other in ill[:CUT_OFF_MAX]]
    if well:
        checks.insert(0, Check("others", "ok", f"gets through to {', '.join(well)}"))
    if rest := [one.name for one in ill[CUT_OFF_MAX:]]:
        checks.append(Check("others", "wrong", f"nor does it get through to {', '.join(rest)}"))
    if absent:
        says = f"not tested towards {', '.join(absent)}, which did not listen"
        checks.append(Check("others", "untested", says))
    return checks + _same_machine(findings, others, world)


def _same_machine(findings: Findings, others: Sequence[Findings], world: World) -> list[Check]:
    """Return what to say of hosts that are one machine, as names in an ssh configuration can be."""
    machine = findings.fact("system").get("machine")
    same = [one for one in others if one.fact("system").get("machine") == machine]
    if not machine or not same or findings.config.launcher is not None:
        return []
    ranks = sum(one.config.num_workers for one in (findings, *same))
    option = with_ranks(findings.config, world, ranks)
    says = f"it is the same machine as {', '.join(one.name for one in same)}"
    fix = f"they share its GPUs, memory and ports; if that is not meant, one will do: {option}"
    return [Check("others", "note", says, fix)]


def _gets_through(findings: Findings, other: Findings) -> bool:
    """Return whether a node reaches another where MiniRay would."""
    tried = findings.fact("peers").get(other.name) or {"": {"how": ""}}
    return bool(next(iter(tried.values()))["how"] == "ok")


def _cut_off(findings: Findings, other: Findings, world: World) -> Check:
    tried = findings.fact("peers")[other.name]
    first, port = next(iter(tried)), other.facts["listening"]["port"]
    way = next((address for address, one in tried.items() if one["how"] == "ok"), None)
    says = f"does not get through to {other.name} at {first}:{port}: {_how(tried[first])}"
    if _gets_through(other, findings):
        says += f", though {other.name} does to it"
    # Where the packets came from, as far as that is known.
    result = {**tried[first], "source": tried[first].get("source") or _first(findings)}
    fix = _let_in(other, world, result, findings.name, way, False)
    return Check("others", "wrong", says, without_sudo(fix, other))


def check_tunnel(findings: Findings, world: World) -> list[Check]:
    """Return whether sshd lets a connection through to a socket over there."""
    if findings.config.launcher is not None:
        return []
    listening = findings.fact("listening")
    if findings.tunnel is None:
        return [Check("tunnel", "untested", "not tested: it did not answer in time")]
    if findings.tunnel["how"] == "ok":
        return [Check("tunnel", "ok", "allowed" + ", and used" * world.wanted.tunnel)]
    if listening.get("tunnel"):
        return [Check("tunnel", "note", f"no socket over there: {listening['tunnel']}")]
    says = f"it does not work: {_how(findings.tunnel)}"
    if any(re.match(r"channel \d+: open failed", line) for line in findings.said):
        says = "its sshd forbids it"
    fix = (
        "in its sshd_config: `AllowStreamLocalForwarding yes` and `AllowTcpForwarding yes`, "
        "without which it forbids the other, too, and no DisableForwarding; then "
        "`sudo systemctl reload ssh`"
    )
    options = [line for line in findings.said if "key options:" in line]
    if options and not re.search(r"[ :]port-forwarding\b", options[-1]):
        says = "the key may not be used for it"
        fix = "take no-port-forwarding, or restrict, off this key's line in its authorized_keys"
    if not world.wanted.tunnel:
        return [Check("tunnel", "note", says, f"only `--tunnel` needs it: {fix}")]
    return [Check("tunnel", "wrong", says, f"{fix}; or go without `--tunnel`")]
