"""Whether sshd lets us in, and if not, which key it was about and what is wrong with that."""

import shlex

from miniray.cli.doctor_findings import Check, Findings, by_ssh

ANOTHER_KEY = "name the one that it accepts: `--ssh-option=-i/path/of/key`"


def check_login(findings: Findings, limit_s: float) -> Check:
    """Return how one has got in, or why not."""
    if done := findings.find(r'^Authenticated to .* using "(.*?)"'):
        user = findings.find(r"Authenticating to .* as '(.*)'")
        key = findings.find(r"Server accepts key: (\S+)")
        who = f"as {user[1]}" if user else "accepted"
        return Check("login", "ok", f"{who}, by {key[1] if key else done[1]}")
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
    if locked := findings.find(r"Server accepts key: (\S+)"):
        return (
            f"the key {locked[1]} has a passphrase, and nobody asks in a session like this",
            f"once a session: `ssh-add {shlex.quote(locked[1])}`",
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
        words = ["ssh-copy-id", *findings.config.ssh_options, "-i", f"{key}.pub", name]
        return says, f"`{shlex.join(words)}`; {other_user}"
    return (
        says,
        f"append the line in {key}.pub to ~/.ssh/authorized_keys of that user over there, a file "
        f"that nobody else may write (`chmod 600`), or {ANOTHER_KEY}; {other_user}",
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
    lines = (line.partition("Offering public key: ")[2] for line in findings.said)
    return [line.split(" ")[0] for line in lines if line]


def _host(findings: Findings) -> str:
    return findings.config.host.rpartition("@")[2]


def _user_and_host(findings: Findings) -> str:
    user = findings.find(r"Authenticating to .* as '(.*)'")
    return f"{user[1]}@{_host(findings)}" if user else findings.config.host
