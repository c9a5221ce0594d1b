"""What ssh -v says about a connection: how far it came, why no further, and what to do then."""

import re
import shlex
from collections.abc import Sequence

from miniray.cli.doctor_findings import Check, Findings, ssh_words
from miniray.session import TOO_MANY

# ssh's own lines, besides those that begin with "debug1: ".
_OWN = re.compile(
    r"debug\d: |OpenSSH_|Authenticated to |Transferred: |Bytes per second: |Warning: |"
    r"Connection to .* closed|channel \d+: |Pseudo-terminal|ssh: |@@@|Killed by signal"
)
NAMES = ("ssh", "host key", "login", "shell")


def check_session(findings: Findings, limit_s: float) -> list[Check]:
    """Return the checks of a session's beginning; those after one that is wrong are untested."""
    if findings.config.launcher is not None:
        return [_check_launcher(findings, limit_s)]
    checks: list[Check] = []
    for name, check in zip(
        NAMES, (_check_way, _check_host_key, _check_login, _check_shell), strict=True
    ):
        if checks and checks[-1].state in ("wrong", "untested"):
            checks.append(Check(name, "untested", f"not tested: {_first_wrong(checks)}"))
        else:
            checks.append(check(findings, limit_s))
    return checks


def _first_wrong(checks: Sequence[Check]) -> str:
    return next(f"{one.name} comes first" for one in checks if one.state == "wrong")


def node_said(findings: Findings) -> list[str]:
    """Return what came on stderr from over there, or from the launcher, and not from ssh."""
    if findings.config.launcher is not None:
        return findings.said
    return [line for line in findings.said if not _OWN.match(line)]


def _find(findings: Findings, pattern: str) -> re.Match[str] | None:
    """Return the last line's match: before it may stand those of a host in between."""
    found = None
    for line in findings.said:
        found = re.search(pattern, line) or found
    return found


def _check_way(findings: Findings, limit_s: float) -> Check:
    """Is there such a host, and does something answer at ssh's port?"""
    host = findings.config.host
    going = _find(findings, r"Connecting to (\S+) (?:\[(.*?)\] )?port (\d+)")
    proxy = _find(findings, r"Executing proxy command: (.*)")
    where = f"{going[2] or going[1]} port {going[3]}" if going else host
    alive = _find(findings, r"Remote protocol version|Server host key:|Authenticated to ")
    if alive or findings.pythons is not None:
        if going is None and proxy:
            return Check("ssh", "ok", "through a proxy command")
        return Check("ssh", "ok", where)

    def wrong(says: str, fix: str) -> Check:
        return Check("ssh", "wrong", says, fix)

    by_hand = ssh_words(findings.config, "true")
    if match := _find(findings, r"Could not resolve hostname (\S+?): (.*)"):
        return wrong(
            f"no such name here: {match[1]} ({match[2].lower()})",
            f"look at the spelling; a name that only you know belongs into ~/.ssh/config: "
            f"Host {host.rpartition('@')[2]} and, below it, HostName and its address",
        )
    if _find(findings, "[Cc]onnection refused"):
        return wrong(
            f"{where} refuses: the machine is there, and no sshd listens at that port",
            "start sshd over there (sudo systemctl start ssh), or name its port: "
            "--ssh-option=-p2222",
        )
    if match := _find(findings, "No route to host|Network is unreachable"):
        return wrong(
            f"no way to {where}: {match[0].lower()}",
            "is it switched on, and is this machine in its network (VPN)? "
            f"ip route get {going[2] if going and going[2] else 'ADDRESS'}",
        )
    if _find(findings, "(?i)banner|Protocol mismatch|Bad packet length"):
        return wrong(
            f"something answers at {where}, and it is no sshd, or one that hangs",
            f"look at what that port is, over there: sudo ss -ltnp; then {by_hand}",
        )
    if _find(findings, TOO_MANY):
        return wrong(
            f"the sshd at {where} hung up at once",
            "it may have too many logins at a time (raise MaxStartups in its sshd_config), or "
            "it turns this machine away (its /etc/hosts.deny, fail2ban)",
        )
    if _find(findings, "(?i)timed out") or (going and findings.exit_status is None):
        return wrong(
            f"no answer from {where} within {limit_s:.0f} s",
            "is it switched on, and does a firewall drop what goes there? If it is only slow: "
            "--limit 30",
        )
    if going is None and proxy is None and findings.exit_status is None:
        return wrong(
            f"ssh did not get as far as connecting within {limit_s:.0f} s",
            f"the name {host} may take long to look up: getent hosts {host}; then {by_hand}",
        )
    last = findings.said[-1] if findings.said else "it said nothing"
    if findings.exit_status == 127 and last.startswith("ssh: "):
        return wrong(f"no ssh on this machine ({last})", "install OpenSSH's client here")
    return wrong(f"ssh did not get there: {last}", f"try it by hand: {by_hand} -v")


def _check_host_key(findings: Findings, limit_s: float) -> Check:
    if _find(findings, "REMOTE HOST IDENTIFICATION HAS CHANGED"):
        remove = _find(findings, r"^\s*(ssh-keygen .*)")
        command = remove[1].strip() if remove else f"ssh-keygen -R {findings.config.host}"
        place = _find(findings, r"Offending \S+ key in (.*)")
        return Check(
            "host key",
            "wrong",
            "another one than last time" + (f" ({place[1]})" if place else ""),
            "was it installed anew? Ask whoever did, for somebody could sit in between. If so: "
            f"{command}; then {ssh_words(findings.config)}, and compare the fingerprint",
        )
    if _find(findings, "Host key verification failed"):
        fingerprint = _find(findings, r"Server host key: (.*)")
        return Check(
            "host key",
            "wrong",
            "never seen before, and nobody asks in a session like this",
            f"log in once by hand and say yes, if the fingerprint is that of the node"
            f"{f' ({fingerprint[1]})' if fingerprint else ''}: {ssh_words(findings.config)}",
        )
    if _find(findings, "no matching (host key|key exchange|cipher|MAC)"):
        return Check(
            "host key", "wrong", findings.said[-1], "one side is much older than the other: update"
        )
    known = _find(findings, r"is known and matches the (\S+) host key")
    return Check("host key", "ok", f"{known[1]}, known" if known else "accepted")


def _check_login(findings: Findings, limit_s: float) -> Check:
    if done := _find(findings, r'^Authenticated to .* using "(.*?)"'):
        user = _find(findings, r"Authenticating to .* as '(.*)'")
        key = _find(findings, r"Server accepts key: (\S+)")
        who = f"as {user[1]}" if user else "accepted"
        return Check("login", "ok", f"{who}, by {key[1] if key else done[1]}")
    if findings.pythons is not None:
        return Check("login", "ok", "accepted")
    return _why_no_login(findings, limit_s)


def _why_no_login(findings: Findings, limit_s: float) -> Check:
    config = findings.config
    user = _find(findings, r"Authenticating to .* as '(.*)'")
    name = f"{user[1]}@{config.host.rpartition('@')[2]}" if user else config.host
    offered = [
        match[1]
        for line in findings.said
        if (match := re.search(r"Offering public key: (.*)", line))
    ]
    files = [path for one in offered if (path := one.split(" ")[0]).startswith("/")]

    def wrong(says: str, fix: str) -> Check:
        return Check("login", "wrong", says, fix)

    if bad := _find(findings, r"Permissions (\d+) for '(.*)' are too open"):
        return wrong(
            f"ssh does not use the key {bad[2]}: others may read it (mode {bad[1]})",
            f"chmod 600 {shlex.quote(bad[2])}",
        )
    if locked := _find(
        findings, r"Load key \"(.*)\": (?:incorrect passphrase|error in libcrypto.*)"
    ):
        return wrong(
            f"the key {locked[1]} has a passphrase, and nobody asks in a session like this",
            f"ssh-add {shlex.quote(locked[1])}, once a session",
        )
    if broken := _find(findings, r"Load key \"(.*)\": (.*)"):
        return wrong(
            f"the key {broken[1]} cannot be used: {broken[2]}",
            "put the right one there, or name another: --ssh-option=-i/path/of/key",
        )
    gone = _find(findings, r"no such identity: (.*?): (.*)")
    if gone and not offered:
        return wrong(
            f"the key that is asked for, {gone[1]}, is not there",
            "put it there, or name another: --ssh-option=-i/path/of/key",
        )
    if _find(findings, "Too many authentication failures"):
        return wrong(
            f"{len(offered)} keys were offered to {name}, and it hung up before the right one",
            "offer only that: --ssh-option=-oIdentitiesOnly=yes --ssh-option=-i/path/of/key",
        )
    if _find(findings, "Permission denied"):
        methods = _find(findings, r"Authentications that can continue: (.*)")
        if not offered:
            return wrong(
                f"no key was offered to {name}: there is none here, and no agent has one",
                f"make one (ssh-keygen -t ed25519), then ssh-copy-id {name}",
            )
        key = files[-1] if files else "the agent's"
        says = f"{name} does not accept the key{'s' * (len(offered) > 1)} " + ", ".join(
            files or ["of the agent"]
        )
        append = f"append the line in {key}.pub to ~/.ssh/authorized_keys of that user over there"
        if methods and "password" in methods[1]:
            options = shlex.join(config.ssh_options)
            copy = " ".join(filter(None, ("ssh-copy-id", options, f"-i {key}.pub", name)))
            return wrong(says, f"{copy}; or, if the user is another: -H USER@{config.host}")
        return wrong(
            says,
            f"{append}, which has to be that user's alone (chmod 600); or name the key that it "
            f"accepts: --ssh-option=-i/path/of/key; or the user: -H USER@{config.host}",
        )
    if findings.exit_status is None:
        return wrong(
            f"not logged in within {limit_s:.0f} s",
            f"its sshd may look up names for long (UseDNS no), or wait for a home that hangs: "
            f"{ssh_words(config, 'true')}; if it is only slow: --limit 30",
        )
    last = next((one for one in reversed(findings.said) if not one.startswith("debug")), "")
    return wrong(f"it hung up: {last or 'it said nothing'}", f"{ssh_words(config, 'true')} -v")


def _check_shell(findings: Findings, limit_s: float) -> Check:
    """Does the login shell get as far as our command, and what does it print before?"""
    shell = findings.fact("system").get("shell", "")
    said = [*findings.noise, *node_said(findings)]
    if findings.pythons is None:
        last = f": {said[-1].strip()}" if said else ""
        by_hand = ssh_words(findings.config, "true")
        if findings.exit_status is None:
            return Check(
                "shell",
                "wrong",
                f"logged in, and its start-up files got no further within {limit_s:.0f} s{last}",
                f"~/.bashrc and the like may wait for an answer, or never end: {by_hand}; let "
                "them return at once where nobody types: case $- in *i*) ;; *) return;; esac",
            )
        return Check(
            "shell",
            "wrong",
            f"it does not run commands, and ended with status {findings.exit_status}{last}",
            f"the account needs a shell (sudo chsh -s /bin/bash USER), and its start-up files may "
            f"not end it: {by_hand}",
        )
    if findings.noise:
        count = len(findings.noise)
        return Check(
            "shell",
            "note",
            f"{shell}; its start-up files print {count} line{'s' * (count > 1)} where nobody "
            f"reads: {findings.noise[0].strip()[:60]!r}",
            f"no harm to MiniRay, but to scp and rsync: {_quiet(shell)}",
        )
    return Check("shell", "ok", shell or "it runs commands")


def _quiet(shell: str) -> str:
    if shell.endswith("fish"):
        return "put what prints in config.fish into: if status is-interactive; ...; end"
    if shell.endswith("csh"):
        return "put before it, in ~/.cshrc: if (! $?prompt) exit"
    return "put before it, in ~/.bashrc (or ~/.zshenv): case $- in *i*) ;; *) return;; esac"


def _check_launcher(findings: Findings, limit_s: float) -> Check:
    words = findings.config.launcher or ()
    if findings.pythons is not None:
        return Check("launcher", "ok", shlex.join(words))
    said = [*findings.noise, *findings.said]
    last = said[-1].strip() if said else "it said nothing"
    if findings.exit_status is None:
        return Check(
            "launcher",
            "wrong",
            f"{words[0]} runs nothing within {limit_s:.0f} s: {last}",
            f"try it by hand: {shlex.join([*words, 'echo it runs'])}; if it only waits: --limit 60",
        )
    return Check(
        "launcher",
        "wrong",
        f"{words[0]} ended with status {findings.exit_status}: {last}",
        f"try it by hand: {shlex.join([*words, 'echo it runs'])}",
    )
