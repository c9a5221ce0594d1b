"""Whether sshd lets us in, and if not, which key it was about and what is wrong with that."""

import dataclasses
import re
import shlex
from collections.abc import Sequence

from miniray.cli.doctor_findings import Check, Findings, by_ssh
from miniray.node_config import NodeConfig

# Behind a key's name, which may have spaces: its kind, its fingerprint, and where it came from.
_KEY = re.compile(r"(Offering public key|Server accepts key): (.*?)(?: \S+ SHA256:(\S+)(.*))?$")
# Of ssh's options those that have a value, in the same word or in the next.
_WITH_VALUE = {f"-{letter}" for letter in "BbcDEeFIiJLlmOopQRSWw"}
SHARED = "-oControlPath=~/.ssh/%C"  # a login that others share
ANOTHER_KEY = "name the one that it accepts: `--ssh-option=-i/path/of/key`"


def check_login(findings: Findings, limit_s: float) -> Check:
    """Return how one has got in, or why not."""
    if done := findings.find(r'^Authenticated to .* using "(.*?)"'):
        user, key = findings.login_name(), _accepted(findings)
        who = f"as {user}" if user else "accepted"
        return Check("login", "ok", f"{who}, by {key or done[1]}")
    if findings.has_shell:
        return Check("login", "ok", "accepted")
    says, fix = _own_fault(findings) or _refusal(findings) or _silence(findings, limit_s)
    return Check("login", "wrong", says, fix)


def _own_fault(findings: Findings) -> tuple[str, str] | None:
    """Return what is wrong with the keys on this side, and what to do."""
    if bad := findings.find(r"Permissions (\d+) for '(.*)' are too open"):
        return (
            f"ssh does not use the key {bad[2]}: others may read it (mode {bad[1]})",
            f"`chmod 600 {shlex.quote(bad[2])}`",
        )
    if broken := findings.find(r"Load key \"(.*)\": (?!incorrect passphrase)(.*)"):
        return f"the key {broken[1]} cannot be used: {broken[2]}", f"mend it, or {ANOTHER_KEY}"
    if findings.find("with partial success"):
        more = findings.find(r"Authentications that can continue: (.*)")
        by_hand = by_ssh(_with_options(findings.config, "-fNM", SHARED))
        return (
            f"the key is right, and its sshd wants more of you ({more[1] if more else 'a code'}), "
            "which nobody asks for in a session like this",
            f"log in once by hand, and let all sessions share that: {by_hand}, and then for "
            f"doctor and for run: `{shlex.join([f'--ssh-option={SHARED}'])}`",
        )
    if locked := _accepted(findings):
        return (
            f"the key {locked} has a passphrase, and nobody asks in a session like this",
            f"once a session: `ssh-add {shlex.quote(locked)}`",
        )
    if _offered(findings):
        return None
    if gone := findings.find(r"no such identity: (.*?): "):
        return (
            f"the key that is asked for, {gone[1]}, is not there",
            f"put it there, or {ANOTHER_KEY}",
        )
    if findings.find("Permission denied"):
        name = _user_and_host(findings)
        return (
            f"no key was offered to {name}: there is none here, and no agent has one",
            f"make one (`ssh-keygen -t ed25519`), then `ssh-copy-id {name}`",
        )
    return None


def _refusal(findings: Findings) -> tuple[str, str] | None:
    """Return which key sshd has refused, and how it gets to accept it."""
    name, offered = _user_and_host(findings), _offered(findings)
    if findings.find("Too many authentication failures"):
        return (
            f"{len(offered)} keys were offered to {name}, and it hung up before the right one",
            "offer only that: `--ssh-option=-oIdentitiesOnly=yes --ssh-option=-i/path/of/key`",
        )
    if not findings.find("Permission denied"):
        return None
    key = offered[-1]
    says = f"{name} does not accept the key{'s' * (len(offered) > 1)} {', '.join(offered)}"
    other_user = f"or name another user: `-H USER@{_host(findings)}`"
    methods = findings.find(r"Authentications that can continue: (.*)")
    if methods and "password" in methods[1]:
        options = copy_id_options(findings.config.ssh_options)
        file = [] if _is_agents(findings, key) else ["-i", f"{key}.pub"]  # else all of an agent's
        return says, f"`{shlex.join(['ssh-copy-id', *options, *file, name])}`; {other_user}"
    if _is_agents(findings, key):
        return says, (
            "append its line, which `ssh-add -L` shows, to ~/.ssh/authorized_keys of that user "
            f"over there, which nobody else may write (`chmod 600`), or {ANOTHER_KEY}; {other_user}"
        )
    return (
        says,
        f"append the line in {key}.pub to ~/.ssh/authorized_keys of that user over there, a file "
        f"that nobody else may write (`chmod 600`), or {ANOTHER_KEY}; {other_user}. It is there "
        "already? Then its sshd reads another file (`sudo sshd -T` over there names "
        "AuthorizedKeysFile; with the -f that `ps -C sshd -o args` shows, if it shows one), or "
        "says in its log, with LogLevel VERBOSE, what it minds",
    )


def _silence(findings: Findings, limit_s: float) -> tuple[str, str]:
    by_hand = by_ssh(findings.config, "true")
    if findings.exit_status is None:
        return (
            f"not logged in within {limit_s:.0f} s",
            "its sshd may look up names for long (UseDNS no), or wait for a home that hangs: "
            f"{by_hand}; if it is only slow: `--limit 30`",
        )
    last = findings.find(r"^(?!debug)(.*)")
    return (
        f"it hung up: {last[1] if last else 'it said nothing'}",
        f"try it by hand, with -v: {by_hand}",
    )


def _offered(findings: Findings) -> list[str]:
    """Return the keys that were offered: their files, or what an agent calls them."""
    found = [match for line in findings.said if (match := _KEY.search(line))]
    return [match[2] for match in found if match[1].startswith("Offering")]


def _accepted(findings: Findings) -> str:
    """Return the last key that sshd would accept; "" if there was none."""
    found = findings.find(r"Server accepts key: .*")
    match = _KEY.search(found[0]) if found else None
    return match[2] if match else ""


def _is_agents(findings: Findings, key: str) -> bool:
    """Return whether a key is in an agent alone, which knows no file of it."""
    found = findings.find(f"Offering public key: {re.escape(key)} .* agent")
    return bool(found) and "/" not in key


def copy_id_options(options: Sequence[str]) -> list[str]:
    """Return those of ssh's options that ssh-copy-id takes, too, in its own words; not the key."""
    taken, words = list[str](), list(options)
    while words:
        word = words.pop(0)
        letter, value = word[:2], word[2:]
        if letter in _WITH_VALUE and not value and words:
            value = words.pop(0)
        if letter in ("-o", "-p", "-F"):
            taken.append(f"{letter}{value}")
        elif letter == "-J":
            taken.append(f"-oProxyJump={value}")
    return taken


def _with_options(config: NodeConfig, *options: str) -> NodeConfig:
    return dataclasses.replace(config, ssh_options=(*options, *config.ssh_options))


def _host(findings: Findings) -> str:
    return findings.config.host.rpartition("@")[2]


def _user_and_host(findings: Findings) -> str:
    user = findings.login_name()
    return f"{user}@{_host(findings)}" if user else findings.config.host
