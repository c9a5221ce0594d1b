"""What ssh -v says about a connection: how far it came, why no further, and what to do then."""

import dataclasses
import re
import shlex

from miniray.cli.doctor_findings import Check, Findings, by_ssh, waiting
from miniray.cli.doctor_login import check_login
from miniray.session import TOO_MANY

# ssh's own lines, besides those that begin with "debug1: ".
_OWN = re.compile(
    r"debug\d: |OpenSSH_|Authenticated to |Transferred: |Bytes per second: |Warning: |"
    r"Connection to .* closed|channel \d+: |Pseudo-terminal|ssh: |@@@|Killed by signal"
)


def check_session(findings: Findings, limit_s: float) -> list[Check]:
    """Return the checks of a session's beginning; those after one that is wrong are untested."""
    if findings.config.launcher is not None:
        return [_check_launcher(findings, limit_s)]
    checks: list[Check] = []
    for name, check in STEPS.items():
        wrong = [one.name for one in checks if one.state == "wrong"]
        checks.append(waiting(name, wrong[0]) if wrong else check(findings, limit_s))
        if name == "ssh":
            findings = _behind_jumps(findings)
    return checks


def _behind_jumps(findings: Findings) -> Findings:
    """Return the findings without what ssh has said of hosts in between, once it was through."""
    through = [
        number
        for number, line in enumerate(findings.said, start=1)
        if re.match(r"Authenticated to .* \(\[", line)  # the node itself would be "via proxy"
    ]
    if not findings.find("Executing proxy command: ") or not through:
        return findings
    return dataclasses.replace(findings, said=findings.said[through[-1] :])


def node_said(findings: Findings) -> list[str]:
    """Return what came on stderr from over there, or from the launcher, and not from ssh."""
    if findings.config.launcher is not None:
        return findings.said
    return [line for line in findings.said if not _OWN.match(line)]


def _check_way(findings: Findings, limit_s: float) -> Check:
    """Is there such a host, and does something answer at ssh's port?"""
    host = findings.config.host
    going = findings.find(r"Connecting to (\S+) (?:\[(.*?)\] )?port (\d+)")
    proxy = findings.find(r"Executing proxy command: (.*)")
    where = f"{going[2] or going[1]} port {going[3]}" if going else host
    if proxy and (why := _why_cut_off(findings, proxy[1], limit_s)):
        return Check(
            "ssh",
            "wrong",
            f"the host in between does not get through to {host}: {why}",
            "is it switched on, and is its HostName, in ~/.ssh/config, the one that it has there?",
        )
    alive = findings.find(r"Remote protocol version|Server host key:|Authenticated to ")
    if alive or findings.has_shell:
        return Check("ssh", "ok", f"through another host: {proxy[1][:60]}" if proxy else where)

    def wrong(says: str, fix: str) -> Check:
        return Check("ssh", "wrong", says, fix)

    by_hand = by_ssh(findings.config, "true")
    if match := findings.find(r"Could not resolve hostname (\S+?): (.*)"):
        return wrong(
            f"no such name here: {match[1]} ({match[2].lower()})",
            f"look at the spelling; a name that only you know belongs into ~/.ssh/config: "
            f"Host {host.rpartition('@')[2]} and, below it, HostName and its address",
        )
    if findings.find("[Cc]onnection refused"):
        return wrong(
            f"{where} refuses: the machine is there, and no sshd listens at that port",
            "start sshd over there (`sudo systemctl start ssh`), or name its port: "
            "`--ssh-option=-p2222`",
        )
    if match := findings.find("No route to host|Network is unreachable"):
        return wrong(
            f"no way to {where}: {match[0].lower()}",
            "is it switched on, and is this machine in its network (VPN)? "
            f"`ip route get {going[2] if going and going[2] else 'ADDRESS'}`",
        )
    if findings.find("(?i)banner|Protocol mismatch|Bad packet length"):
        return wrong(
            f"something answers at {where}, and it is no sshd, or one that hangs",
            f"look at what that port is, over there: `sudo ss -ltnp`; then {by_hand}",
        )
    if findings.find(TOO_MANY):
        return wrong(
            f"the sshd at {where} hung up at once",
            "it may have too many logins at a time (raise MaxStartups in its sshd_config), or "
            "it turns this machine away (its /etc/hosts.deny, fail2ban)",
        )
    if findings.find("(?i)timed out") or (going and findings.exit_status is None):
        return wrong(
            f"no answer from {where} within {limit_s:.0f} s",
            "is it switched on, and does a firewall drop what goes there? If it is only slow: "
            "`--limit 30`",
        )
    if going is None and proxy is None and findings.exit_status is None:
        return wrong(
            f"ssh did not get as far as connecting within {limit_s:.0f} s",
            f"the name {host} may take long to look up: `getent hosts {host}`; then {by_hand}",
        )
    last = findings.said[-1] if findings.said else "it said nothing"
    if findings.exit_status == 127 and last.startswith("cannot run ssh"):
        return wrong(last, "install OpenSSH's client on this machine")
    return wrong(f"ssh did not get there: {last}", f"try it by hand, with -v: {by_hand}")


def _why_cut_off(findings: Findings, proxy: str, limit_s: float) -> str:
    """Return why nothing has come from behind a host in between; "" if something has.

    If that host is reached by ssh, which -W tells, its own lines are among ours.
    """
    if findings.has_shell:
        return ""
    is_ssh = " -W " in proxy
    if is_ssh and not findings.find("^Authenticated to "):
        return ""  # it is about the host in between itself
    if failed := findings.find(r"open failed: (.*)"):
        return failed[1]
    answered = sum("Remote protocol version" in line for line in findings.said)
    return "" if answered > is_ssh else f"no answer within {limit_s:.0f} s"


def _check_host_key(findings: Findings, limit_s: float) -> Check:
    known = findings.find(r"is known and matches the (\S+) host key")
    if findings.has_shell:  # and whatever else is said of keys is said over there
        return Check("host key", "ok", f"{known[1]}, known" if known else "accepted")
    if findings.find("REMOTE HOST IDENTIFICATION HAS CHANGED"):
        remove = findings.find(r"^\s*(ssh-keygen .*)")
        command = remove[1].strip() if remove else f"ssh-keygen -R {findings.config.host}"
        place = findings.find(r"Offending \S+ key in (.*)")
        return Check(
            "host key",
            "wrong",
            "another one than last time" + (f" ({place[1]})" if place else ""),
            "was it installed anew? Ask whoever did, for somebody could sit in between. If so: "
            f"`{command}`; then {by_ssh(findings.config)}, and compare the fingerprint",
        )
    if findings.find("Host key verification failed"):
        fingerprint = findings.find(r"Server host key: (.*)")
        return Check(
            "host key",
            "wrong",
            "never seen before, and nobody asks in a session like this",
            f"log in once by hand and say yes, if the fingerprint is that of the node"
            f"{f' ({fingerprint[1]})' if fingerprint else ''}: {by_ssh(findings.config)}",
        )
    if findings.find("no matching (host key|key exchange|cipher|MAC)"):
        return Check(
            "host key", "wrong", findings.said[-1], "one side is much older than the other: update"
        )
    return Check("host key", "ok", f"{known[1]}, known" if known else "accepted")


def _check_shell(findings: Findings, limit_s: float) -> Check:
    """Does the login shell get as far as our command, and what does it print before?"""
    shell = findings.fact("system").get("shell", "")
    said = [*findings.noise, *node_said(findings)]
    if not findings.has_shell:
        last = f": {said[-1].strip()}" if said else ""
        by_hand = by_ssh(findings.config, "true")
        if findings.exit_status is None:
            return Check(
                "shell",
                "wrong",
                f"logged in, and its start-up files got no further within {limit_s:.0f} s{last}",
                f"~/.bashrc and the like may wait for an answer, or never end: {by_hand}; let "
                "them return at once where nobody types: `case $- in *i*) ;; *) return;; esac`",
            )
        return Check(
            "shell",
            "wrong",
            f"it does not run commands, and ended with status {findings.exit_status}{last}",
            "the account needs a shell (`sudo chsh -s /bin/bash USER`), and its start-up files "
            f"may not end it: {by_hand}",
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
        return "put what prints in config.fish into: `if status is-interactive; ...; end`"
    if shell.endswith("csh"):
        return "put before it, in ~/.cshrc: `if (! $?prompt) exit`"
    return "put before it, in ~/.bashrc (or ~/.zshenv): `case $- in *i*) ;; *) return;; esac`"


def _check_launcher(findings: Findings, limit_s: float) -> Check:
    words = findings.config.launcher or ()
    if findings.has_shell:
        return Check("launcher", "ok", shlex.join(words))
    said = [*findings.noise, *findings.said]
    last = said[-1].strip() if said else "it said nothing"
    if findings.exit_status is None:
        return Check(
            "launcher",
            "wrong",
            f"{words[0]} runs nothing within {limit_s:.0f} s: {last}",
            f"try it by hand: `{shlex.join([*words, 'echo it runs'])}`; if it only waits: "
            "`--limit 60`",
        )
    return Check(
        "launcher",
        "wrong",
        f"{words[0]} ended with status {findings.exit_status}: {last}",
        f"try it by hand: `{shlex.join([*words, 'echo it runs'])}`",
    )


STEPS = {
    "ssh": _check_way,
    "host key": _check_host_key,
    "login": check_login,
    "shell": _check_shell,
}
