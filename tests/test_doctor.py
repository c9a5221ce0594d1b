"""`miniray doctor`: each fault that is planted on a node is named, with what to do."""

import ast
import contextlib
import io
import json
import os
import pty
import pwd
import re
import shutil
import signal
import subprocess
import sys
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from miniray import NodeConfig
from miniray.cli import doctor_probe, main
from miniray.cli.doctor_checks import judge
from miniray.cli.doctor_findings import Check, Findings, Wanted, chooses
from miniray.cli.doctor_report import as_text
from miniray.cli.doctor_ssh import check_session
from tests import sick_nodes
from tests.support import namespaces, poll, slurm, ssh
from tools.site import blocks

REPOSITORY = Path(__file__).resolve().parents[1]
MINIRAY = [sys.executable, "-m", "miniray"]
LIMIT_S = 100
# A real torch takes seconds of both cores; what doctor asks of it, this one answers, too.
TORCH = """
__version__ = {version!r}
class version:
    cuda = {cuda!r}
class cuda:
    is_available = staticmethod(lambda: {gpus} > 0)
    device_count = staticmethod(lambda: {gpus})
"""


class Seen:
    """What doctor said of all nodes."""

    def __init__(self, status: int, said: dict[str, Any]) -> None:
        self.status, self.nodes = status, {one["name"]: one for one in said["nodes"]}

    def checks(self, node: str, state: str) -> list[str]:
        """Return a node's checks of a state: name, what it says, and after an arrow what to do."""
        return [
            f"{one['name']}: {one['says']}"
            + (f" -> {one['fix'].replace('`', '')}" if one["fix"] else "")
            for one in self.nodes[node]["checks"]
            if one["state"] == state
        ]

    def wrong(self, node: str) -> list[str]:
        return self.checks(node, "wrong")


class Doctor:
    """`miniray doctor` in the coordinator's namespace, with a small torch on every node."""

    def __init__(self, nodes: namespaces.Nodes, folder: Path) -> None:
        self.nodes, self.folder = nodes, folder
        self.write_torch("modules")
        self.temporary = folder / "temporary"
        self.temporary.mkdir()

    def write_torch(
        self, name: str, version: str = "2.13.0+cpu", cuda: str | None = None, gpus: int = 0
    ) -> Path:
        """Write a stand-in for torch into a folder."""
        module = self.folder / name / "torch" / "__init__.py"
        module.parent.mkdir(parents=True, exist_ok=True)
        module.write_text(TORCH.format(version=version, cuda=cuda, gpus=gpus))
        return self.folder / name

    def words(self, *arguments: str, config: Path | None = None) -> list[str]:
        return [
            *(*MINIRAY, "doctor"),
            *("--python", sys.executable, f"--ssh-option=-F{config or self.nodes.identity.config}"),
            *("--env", f"PYTHONPATH={self.folder / 'modules'}"),
            *("--env", f"TMPDIR={self.temporary}", "--env", f"XDG_CACHE_HOME={self.folder}/cache"),
            *("--limit", "60"),  # this machine may have much else to do
            *arguments,
        ]

    def run(self, *arguments: str, config: Path | None = None, **options: Any) -> Seen:
        hosts = [] if any("node" in one for one in arguments) else ["node1:2,node2:2"]
        before = self.processes()
        done = self.nodes.run(
            self.words(*hosts, "--json", *arguments, config=config), timeout=LIMIT_S, **options
        )
        print(done.stderr)
        said = json.loads(done.stdout)
        for node in said["nodes"]:
            print(node["name"], *(one for one in node["checks"] if one["state"] != "ok"), sep="\n")
        assert said["ok"] == (done.returncode == 0)
        poll.until(
            lambda: self.processes() <= before, timeout_s=LIMIT_S, what="the end of all it started"
        )
        return Seen(done.returncode, said)

    def processes(self) -> set[int]:
        """Return what runs on the nodes."""
        return {pid for host in self.nodes.hosts for pid in self.nodes.pids(host)}

    def config(self, old: str, new: str) -> Path:
        """Write the client's ssh_config with something changed."""
        text = self.nodes.identity.config.read_text()
        assert old in text
        path = self.folder / "changed_config"
        path.write_text(text.replace(old, new))
        return path

    def python(self, lie: str, name: str = "python") -> str:
        """Write a Python that runs a statement before what it is given."""
        path = self.folder / name
        path.write_text(
            f'#!/bin/sh\nif [ "$1" = -Sc ]; then exec {sys.executable} -Sc "{lie};$2"; fi\n'
            f'exec {sys.executable} "$@"\n'
        )
        path.chmod(0o755)
        return str(path)


@pytest.fixture
def sick(netns_nodes: namespaces.Nodes, tmp_path: Path) -> Doctor:
    return Doctor(netns_nodes, tmp_path)


@contextlib.contextmanager
def firewall(nodes: namespaces.Nodes, host: str, rule: str) -> Iterator[None]:
    """Have a node's firewall apply a rule to what comes in, within a `with` block."""
    nodes.on(host, "nft", "add", "table", "inet", "doctor")
    try:
        hook = "{ type filter hook input priority 0 ; }"
        nodes.on(host, "nft", "add", "chain", "inet", "doctor", "input", hook)
        nodes.on(host, "nft", "add", "rule", "inet", "doctor", "input", *rule.split())
        yield
    finally:
        nodes.on(host, "nft", "delete", "table", "inet", "doctor")


@contextlib.contextmanager
def mounted(doctor: Doctor, host: str, path: Path, options: str) -> Iterator[None]:
    """Mount a file system of its own for a node at a path, within a `with` block."""
    path.mkdir(exist_ok=True, parents=True)
    doctor.nodes.on(host, "mount", "-t", "tmpfs", "-o", options, "doctor", str(path))
    try:
        yield
    finally:
        doctor.nodes.on(host, "umount", str(path))


@contextlib.contextmanager
def bound(doctor: Doctor, host: str, folder: Path, there: Path) -> Iterator[None]:
    """Have a node see one folder in another's place, within a `with` block."""
    doctor.nodes.on(host, "mount", "--bind", str(folder), str(there))
    try:
        yield
    finally:
        doctor.nodes.on(host, "umount", str(there))


@pytest.mark.thorough
@pytest.mark.netns
class TestOverNodes:
    def test_healthy_nodes_are_well(self, sick: Doctor) -> None:
        seen = sick.run()
        assert seen.status == 0
        for node in ("node1", "node2"):
            assert not seen.wrong(node)
            assert not seen.checks(node, "untested")
            names = [one["name"] for one in seen.nodes[node]["checks"]]
            assert names == [
                *("ssh", "host key", "login", "shell", "python", "torch", "gpus", "memory"),
                *("disk", "clock", "interface", "ports", "others", "tunnel"),
            ]

    def test_keys_that_do_not_let_one_in(self, sick: Doctor) -> None:
        """Each has a name of its own for the same node, and a fault of its own."""
        other = ssh.make_key(sick.folder / "other_key")
        open_to_others, locked = copy_key(sick, "open_key"), copy_key(sick, "locked_key")
        open_to_others.chmod(0o644)
        change = ["ssh-keygen", "-q", "-p", "-N", "a passphrase", "-f", str(locked)]
        subprocess.run(change, check=True, stdout=subprocess.DEVNULL)
        gone = sick.folder / "gone_key"
        mine = f"  IdentityFile {sick.nodes.identity.key}\n"
        keys = {"other": other, "open": open_to_others, "locked": locked, "gone": gone}
        config = sick.config(mine, "")
        config.write_text(
            "".join(f"{alias(name)}  IdentityFile {key}\n" for name, key in keys.items())
            + f"Match originalhost node2\n{mine}Match all\n{config.read_text()}"
        )
        seen = sick.run(f"node2,{','.join(keys)}", config=config)
        assert not seen.wrong("node2")
        (wrong,) = seen.wrong("other")
        assert wrong.startswith(f"login: root@other does not accept the key {other} -> append")
        assert f"the line in {other}.pub to ~/.ssh/authorized_keys" in wrong
        untested = seen.checks("other", "untested")
        assert "shell: not tested: login comes first" in untested
        assert "tunnel: not tested: login comes first" in untested
        (wrong,) = seen.wrong("open")
        assert wrong.endswith(f"others may read it (mode 0644) -> chmod 600 {open_to_others}")
        (wrong,) = seen.wrong("locked")
        assert wrong.endswith(f"-> once a session: ssh-add {locked}")
        (wrong,) = seen.wrong("gone")
        assert f"{gone}, is not there -> put it there" in wrong

    def test_host_keys_that_have_changed_or_that_nobody_knows(self, sick: Doctor) -> None:
        known = sick.nodes.identity.known_hosts
        lines = (
            "Host unknown\n  HostName node1\n  StrictHostKeyChecking ask\n"
            "  UserKnownHostsFile /dev/null\n"
        )
        config = sick.config("Host *\n", f"{lines}Host *\n")
        with sick.nodes.changed_host_key("node2"):
            seen = sick.run("node1,node2,unknown", config=config)
        (wrong,) = seen.wrong("node2")
        assert wrong.startswith("host key: another one than last time")
        assert f'ssh-keygen -f "{known}" -R "node2"' in wrong
        (wrong,) = seen.wrong("unknown")
        assert wrong.startswith("host key: never seen before")
        assert "SHA256:" in wrong
        assert f"ssh -F{config} unknown" in wrong
        assert not seen.wrong("node1")
        assert seen.checks("node1", "untested") == [
            "others: not tested towards node2, unknown, which did not listen",
        ]

    def test_ways_that_lead_nowhere(self, sick: Doctor) -> None:
        lines = (
            f"{alias('refuses')}  Port 2222\nHost absent\n  HostName 10.77.0.99\n"
            f"{alias('odd')}  Port 2223\n"
        )
        config = sick.config("Host *\n", f"{lines}Host *\n")
        with answering(sick, port=2223):
            seen = sick.run("node1,absent,nonesuch,refuses,odd", "--limit", "20", config=config)
        (wrong,) = seen.wrong("absent")
        assert wrong.startswith("ssh: no way to 10.77.0.99 port 22: no route to host")
        (wrong,) = seen.wrong("nonesuch")
        assert wrong.startswith("ssh: no such name here: nonesuch (")
        (wrong,) = seen.wrong("refuses")
        assert wrong.startswith("ssh: 10.77.0.11 port 2222 refuses")
        (wrong,) = seen.wrong("odd")
        assert wrong.startswith("ssh: something answers at 10.77.0.11 port 2223, and it is no sshd")

    @pytest.mark.slow
    def test_what_never_answers_costs_no_more_than_the_limit(self, sick: Doctor) -> None:
        """A link that swallows everything, start-up files that wait, or print for ever, a jump."""
        lines = (
            f"{alias('dark')}  Port 2222\n"
            "Host hidden\n  HostName node2\n  Port 2222\n  ProxyJump node1\n"
        )
        config = sick.config("Host *\n", f"{lines}Host *\n")
        endless = "while :; do echo hello; sleep 0.01; done"
        with (
            sick.nodes.other_server("node1", force_command="read answer"),
            sick.nodes.other_server("node2", force_command=f"/bin/sh -c '{endless}'"),
            firewall(sick.nodes, "node1", "tcp dport 2222 drop"),
            firewall(sick.nodes, "node2", "tcp dport 2222 drop"),
        ):
            seen = sick.run("node1,node2,dark,hidden", "--limit", "40", config=config)
        for node in ("node1", "node2"):
            (wrong,) = seen.wrong(node)
            assert wrong.startswith("shell: logged in, and its start-up files got no further with")
        (wrong,) = seen.wrong("dark")
        assert re.match(r"ssh: no answer from 10.77.0.11 port 2222 within \d+ s ->", wrong)
        (wrong,) = seen.wrong("hidden")
        assert wrong.startswith("ssh: the host in between does not get through to hidden: no answe")

    def test_shells_that_print_or_are_others_will_do(self, sick: Doctor) -> None:
        noisy = ssh.write_noisy_shell(sick.folder / "noisy")
        fish = ssh.login_shell(needed("fish"))
        with (
            sick.nodes.other_server("node1", force_command=noisy),
            sick.nodes.other_server("node2", force_command=fish),
        ):
            seen = sick.run()
        assert seen.status == 0
        (note,) = seen.checks("node1", "note")
        assert "its start-up files print 3 lines" in note
        assert "Welcome to the cluster!" in note
        assert "case $- in *i*) ;; *) return;; esac" in note
        with (
            sick.nodes.other_server("node1", force_command=ssh.login_shell(needed("tcsh"))),
            sick.nodes.other_server("node2", force_command=ssh.login_shell(needed("zsh"))),
        ):
            assert sick.run().status == 0

    def test_accounts_without_a_shell_or_that_want_more_than_a_key(self, sick: Doctor) -> None:
        force = "echo This account is currently not available. && exit 1"
        more = "HostbasedAuthentication yes\nAuthenticationMethods publickey,hostbased\n"
        with (
            sick.nodes.other_server("node1", force_command=force),
            sick.nodes.other_server("node2", settings=more),
        ):
            seen = sick.run()
        (wrong,) = seen.wrong("node1")
        assert "it does not run commands, and ended with status 1: This account is cur" in wrong
        (wrong,) = seen.wrong("node2")
        assert wrong.startswith("login: the key is right, and its sshd wants more of you (hostbas")

    def test_two_names_of_one_machine(self, sick: Doctor) -> None:
        config = sick.config("", "")
        config.write_text(alias("second") + config.read_text())
        seen = sick.run("node1:2,node2:2,second:1", config=config)
        assert seen.status == 0
        (note,) = seen.checks("second", "note")
        assert note.startswith("others: it is the same machine as node1 -> they share its GPUs, ")
        assert note.endswith("one will do: -H second:3")
        assert seen.checks("node1", "note")[0].endswith("one will do: -H node1:3")
        assert not seen.checks("node2", "note")

    def test_a_login_that_all_sessions_share(self, sick: Doctor) -> None:
        """As is advised to whoever needs more than a key for it."""
        shared = f"-oControlPath={sick.folder}/%n"
        config = f"-F{sick.nodes.identity.config}"
        for node in sick.nodes.hosts:
            sick.nodes.run(["ssh", "-fNM", shared, config, node], stderr=subprocess.DEVNULL)
        empty = sick.config(f"  IdentityFile {sick.nodes.identity.key}\n", "")
        try:
            seen = sick.run(f"--ssh-option={shared}", config=empty)
        finally:
            for node in sick.nodes.hosts:
                sick.nodes.run(["ssh", "-Oexit", shared, config, node])
        assert seen.status == 0
        assert "tunnel: allowed" in seen.checks("node1", "ok")

    def test_pythons_that_are_not_there_or_too_old(self, sick: Doctor) -> None:
        path = sick.folder / "there/python"
        path.parent.mkdir()
        old = Path(sick.python("import sys;sys.version_info=(3,8,10);sys.executable='$0'"))
        shutil.copy(old, path)
        (sick.folder / "empty").mkdir()
        with bound(sick, "node2", sick.folder / "empty", path.parent):
            seen = sick.run("--python", str(path))
        (wrong,) = seen.wrong("node1")
        assert wrong.startswith(f"python: {path} is 3.8.10, and MiniRay needs 3.11")
        assert f"take another one: --python {sys.executable} (3.1" in wrong
        (wrong,) = seen.wrong("node2")
        assert wrong.startswith(f"python: there is no {path} for a session without a terminal")
        assert re.search(r"name one that is there: --python /\S+python3", wrong)

    def test_modules_that_are_missing_other_or_broken(self, sick: Doctor) -> None:
        other = sick.write_torch("other", "2.12.1+cpu")
        modules = sick.folder / "modules"
        (modules / "broken.py").write_text("raise OSError('libcuda.so.1: no such file')")
        (modules / "crash.py").write_text("import os; os.abort()")
        with bound(sick, "node2", other, modules):
            seen = sick.run("--need", "json,broken", "--need", "crash")
        wrong = seen.wrong("node2")
        assert wrong[0].startswith("torch: 2.12.1+cpu, and 2.13.0+cpu on node1 -> the same version")
        assert "pip install torch==2.13.0" in wrong[0]
        assert wrong[1].startswith("broken: not installed in")
        assert wrong[1].endswith("the package that has it over there; pip may call it otherwise")
        wrong = seen.wrong("node1")
        assert wrong[0].startswith("broken: its import fails: OSError: libcuda.so.1: no such file")
        assert wrong[1].startswith("crash: its import fails")
        assert len(wrong) == 2

    def test_torch_is_missing_on_one_node(self, sick: Doctor) -> None:
        venv.create(sick.folder / "bare")
        (sick.folder / "empty").mkdir()
        python = sick.folder / "bare/bin/python"
        with bound(sick, "node2", sick.folder / "empty", sick.folder / "modules"):
            seen = sick.run("--python", str(python))
        (wrong,) = seen.wrong("node2")
        assert wrong.startswith(f"torch: not installed in {python} -> install it: ssh -F")
        assert "node2 '" in wrong
        python_words = re.escape(f"{python} -m ")  # which has no pip
        assert re.search(
            rf"'{python_words}ensurepip && {python_words}pip install t\S+2.13.0' \(the others' "
            r"build is \+cpu; pytorch.org/get-started has its line\), or",
            wrong,
        )
        assert re.search(r"or take another Python: --python /\S+ \(3.1\S+ which has torch\)", wrong)
        assert not seen.wrong("node1")

    def test_a_disk_that_is_full(self, sick: Doctor) -> None:
        fill = f"head -c 72M /dev/zero >{sick.temporary}/large; true"
        with mounted(sick, "node2", sick.temporary, "size=64m"):
            sick.nodes.on("node2", "sh", "-c", fill)
            (wrong,) = sick.run().wrong("node2")
        full = f"disk: {sick.temporary} (temporary files) is full: no space left of 64 MiB"
        assert wrong.startswith(full)
        assert f"du -xahd1 {sick.temporary} |" in wrong
        assert "--env TMPDIR=" in wrong

    def test_disks_that_are_too_small_or_read_only(self, sick: Doctor) -> None:
        with (
            mounted(sick, "node2", sick.temporary, "size=512k"),
            mounted(sick, "node1", sick.folder / "cache", "ro"),
        ):
            seen = sick.run()
            # Who empties it has won nothing.
            fill = f"head -c 600k /dev/zero >{sick.temporary}/checkpoint; true"
            sick.nodes.on("node2", "sh", "-c", fill)
            full = sick.run().wrong("node2")
        (wrong,) = seen.wrong("node2")
        assert full == [wrong]
        small = f"disk: {sick.temporary} (temporary files) is too small: 512 KiB in all"
        assert wrong.startswith(f"{small} -> if it is a tmpfs: ")
        assert "'mount -o remount,size=1G $(findmnt -no TARGET -T " in wrong
        assert "--env TMPDIR=" in wrong
        (wrong,) = seen.wrong("node1")
        assert "(your folder's copy) is on a read-only file system -> " in wrong
        assert "--env XDG_CACHE_HOME=" in wrong

    def test_disks_without_inodes_or_from_which_nothing_runs(self, sick: Doctor) -> None:
        with (
            mounted(sick, "node1", sick.temporary, "nr_inodes=1"),
            mounted(sick, "node2", sick.temporary, "noexec"),
        ):
            seen = sick.run()
        (wrong,) = seen.wrong("node1")
        assert "has no inodes left" in wrong
        (note,) = seen.checks("node2", "note")
        assert "is mounted noexec" in note
        assert not seen.wrong("node2")

    def test_places_that_are_none_or_not_ours_alone(self, sick: Doctor) -> None:
        seen = sick.run("--env", "TMPDIR=/no/where", "--workdir", f"{sick.folder}/none")
        wrong = seen.wrong("node1")
        assert wrong[0].startswith("disk: /no/where (temporary files) is not there -> ssh -F")
        assert "node1 'mkdir -p /no/where', or take another place: --env TMPDIR=" in wrong[0]
        assert wrong[1].startswith(f"disk: there is no folder {sick.folder}/none -> make it there")
        (sick.folder / "cache/miniray").mkdir(parents=True)
        (sick.folder / "cache/miniray").chmod(0o777)
        wrong = sick.run("--env", "TMPDIR=/proc", "node1").wrong("node1")
        assert wrong[0].startswith("disk: cannot write in /proc (temporary files): no such file")
        assert wrong[1].startswith(f"disk: others could put code into {sick.folder}/cache/miniray")
        assert wrong[1].endswith(f"'chmod 700 {sick.folder}/cache/miniray'")

    def test_interfaces_that_are_none(self, sick: Doctor) -> None:
        variables = ("--env", "NCCL_SOCKET_IFNAME=ib0", "--env", "GLOO_SOCKET_IFNAME=lo")
        wrong = sick.run(*variables).wrong("node2")
        assert wrong[0].startswith("interface: NCCL_SOCKET_IFNAME=ib0 is no interface of this node")
        assert "eth0 (10.77.0.12)" in wrong[0]
        assert "-> leave --env NCCL_SOCKET_IFNAME out" in wrong[0]
        assert "or --env NCCL_SOCKET_IFNAME==eth0" in wrong[0]
        assert "GLOO_SOCKET_IFNAME=lo is lo, where no other node gets to" in wrong[1]

    def test_an_interface_where_nobody_gets_to(self, sick: Doctor) -> None:
        """It is there and up on both nodes, and in a network of its own on each."""
        nodes = sick.nodes
        (sick.folder / ".bashrc").write_text("# none\nexport GLOO_SOCKET_IFNAME=dark0\n")
        force = f'. {sick.folder}/.bashrc; exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"'
        with nodes.other_server("node2", force_command=force):
            for number, host in enumerate(nodes.hosts, start=1):
                nodes.on(host, "ip", "link", "add", "dark0", "type", "bridge")
                nodes.on(host, "ip", "address", "add", f"10.78.{number}.1/24", "dev", "dark0")
                nodes.on(host, "ip", "link", "set", "dark0", "up")
            try:
                seen = sick.run("--env", f"HOME={sick.folder}", "--limit", "20")
            finally:
                for host in nodes.hosts:
                    nodes.on(host, "ip", "link", "delete", "dark0")
        (wrong,) = seen.wrong("node2")
        assert "GLOO_SOCKET_IFNAME=dark0 is 10.78.2.1, where node1 does not get to" in wrong
        assert f"unset GLOO_SOCKET_IFNAME over there ({sick.folder}/.bashrc:2): MiniRay f" in wrong
        assert "--env GLOO_SOCKET_IFNAME=eth0" in wrong
        assert not seen.wrong("node1")

    def test_a_port_that_is_taken(self, sick: Doctor) -> None:
        with answering(sick, port=29500) as pid:
            wrong, note = sick.run("--port", "29500"), sick.run()
        assert not wrong.wrong("node2")
        (says,) = wrong.wrong("node1")
        assert f"ports: port 29500 is taken by pid {pid} of root ({sys.executable}" in says
        assert f"'kill {pid}'" in says
        (says,) = note.checks("node1", "note")
        assert says.startswith(f"ports: 29500, which torch takes by default, is taken by pid {pid}")
        assert note.status == 0

    def test_firewalls_between_nodes_and_between_here_and_a_node(self, sick: Doctor) -> None:
        rule = "ip saddr 10.77.0.11 tcp dport != 22 ct state new drop"
        with (
            firewall(sick.nodes, "node2", rule),
            firewall(
                sick.nodes, "node1", "ip saddr 10.77.0.1 tcp dport != 22 reject with tcp reset"
            ),
        ):
            seen = sick.run("--limit", "20")
            assert sick.run("node1", "--tunnel").status == 0
        ports, others = seen.wrong("node1")
        assert re.match(
            r"ports: this machine does not get through to 10.77.0.11:\d+: refused -> on node1: ",
            ports,
        )
        assert ports.endswith("or go through ssh: --tunnel")
        assert re.search(r"10\.77\.0\.1\b(?!\d)", ports.partition(" -> ")[2]), "whom to let in"
        assert re.match(
            r"others: does not get through to node2 at 10.77.0.12:\d+: no answer, though node2 "
            r"does to it -> on node2: .*10\.77\.0\.11",
            others,
        )
        if Path("/proc/net/if_inet6").exists():  # tried last, when node2 has long been done
            assert others.endswith("or name it fd77::12, which works: -H '[fd77::12]:2'")
        assert not seen.wrong("node2")

    def test_a_network_that_loses_large_packets(self, sick: Doctor) -> None:
        with firewall(sick.nodes, "node2", "tcp dport != 22 ip length > 1200 drop"):
            seen = sick.run("--limit", "20")
        assert "it connects, and large packets are lost" in seen.wrong("node1")[0]

    def test_tunnels_that_are_forbidden(self, sick: Doctor) -> None:
        with (
            sick.nodes.other_server("node1", settings="AllowStreamLocalForwarding no\n"),
            sick.nodes.other_server("node2", settings="AllowTcpForwarding no\n"),
        ):
            without, seen = sick.run(), sick.run("--tunnel")
        with sick.nodes.other_server("node1", settings="DisableForwarding yes\n"):
            (wrong,) = sick.run("node1", "--tunnel").wrong("node1")
            assert wrong.startswith("tunnel: its sshd forbids it")
        assert without.status == 0, "nobody has asked for one"
        for node in ("node1", "node2"):
            (note,) = without.checks(node, "note")
            assert note.startswith("tunnel: its sshd forbids it -> only --tunnel needs it: in its ")
            (wrong,) = seen.wrong(node)
            assert wrong.endswith("; or go without --tunnel")

    def test_a_clock_that_is_off(self, sick: Doctor) -> None:
        late = sick.python("import time;t=time.time;time.time=lambda:t()-300")
        (wrong,) = sick.run("--python", late, "node1").wrong("node1")
        assert wrong.startswith("clock: 5 minutes behind this machine's")
        assert "timedatectl set-ntp true" in wrong

    def test_two_names_of_one_machine_and_one_behind_another(self, sick: Doctor) -> None:
        """The jump has the same options: ssh hands on what was asked of it."""
        lines = f"{alias('again')}Host behind\n  HostName node2\n  HostKeyAlias node2\n"
        config = sick.config("Host *\n", f"{lines}  ProxyJump node1\nHost *\n")
        seen = sick.run("node1,again,behind", "--port", "29500", config=config)
        assert seen.status == 0
        assert seen.checks("behind", "ok")[0].startswith("ssh: through another host: ")

    def test_an_sshd_that_turns_some_away_is_asked_again(self, sick: Doctor) -> None:
        names = [f"name{number}" for number in range(4)]
        config = sick.config("Host *\n", f"{''.join(map(alias, names))}Host *\n")
        with sick.nodes.other_server("node1", settings="MaxStartups 1:100:1\n"):
            assert sick.run(f"node1,{','.join(names)}", config=config).status == 0

    def test_in_an_allocation_srun_starts_it(self, sick: Doctor) -> None:
        nodes = sick.nodes
        slurm.install(sick.folder, {one: nodes.in_namespace([], node=one) for one in ssh.HOSTS})
        environment = {
            "PATH": f"{sick.folder}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "1",
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_TASKS_PER_NODE": "2(x2)",
        }
        done = nodes.run(sick.words("--json"), env=environment, timeout=LIMIT_S)
        seen = Seen(done.returncode, json.loads(done.stdout))
        assert seen.status == 0
        assert seen.checks("node1", "ok")[0].startswith("launcher: srun --overlap")


def alias(name: str) -> str:
    """Return lines of an ssh_config that give node1 another name."""
    return f"Host {name}\n  HostName node1\n  HostKeyAlias node1\n"


def needed(shell: str) -> str:
    path = shutil.which(shell)
    assert path, f"there is no {shell}"
    return path


@contextlib.contextmanager
def answering(sick: Doctor, port: int) -> Iterator[int]:
    """Have something on node1 listen that is no sshd; yield its pid."""
    script = (
        f"import socket\nserver = socket.create_server(('', {port}))\nprint('ready', flush=True)\n"
        "while True:\n  one, _ = server.accept()\n  one.sendall(b'+OK hello\\r\\n' * 300)\n"
    )
    words = [sys.executable, "-c", script]
    with sick.nodes.popen(words, node="node1", stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        try:
            yield other.pid
        finally:
            other.kill()


@pytest.mark.thorough
@pytest.mark.netns
def test_the_guide_shows_what_it_says(netns_nodes: namespaces.Nodes, tmp_path: Path) -> None:
    """If not: `python -m tests.sick_nodes --write`."""
    lab = sick_nodes.Lab(netns_nodes, tmp_path / "you")
    healthy = lab.say(sick_nodes.HEALTHY)
    with lab.faults():
        ill = lab.say(sick_nodes.SICK)
    for name, printed in (("doctor-well.txt", healthy), ("doctor-ill.txt", ill)):
        shown = (sick_nodes.GUIDES / name).read_text()
        # A number with more digits may have moved a word into the next line.
        assert blocks.normalise(" ".join(shown.split())) == blocks.normalise(
            " ".join(printed.split())
        )


@pytest.mark.thorough
@pytest.mark.netns
class TestItsEnd:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
    def test_leaves_nothing_on_the_nodes(self, sick: Doctor, number: signal.Signals) -> None:
        """It comes while a module's import hangs, and one node does not answer at all."""
        (sick.folder / "modules/hangs.py").write_text("import signal\nsignal.pause()\n")
        nodes = sick.nodes
        words = sick.words("node1,node2,10.77.0.99", "--need", "hangs", "--limit", "1000")
        with nodes.popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            poll.until(lambda: any(map(is_importing, nodes.pids("node1"))), timeout_s=LIMIT_S)
            process.send_signal(number)
            stdout, stderr = process.communicate(timeout=LIMIT_S)
        print(stderr)
        assert not stdout
        nodes.wait_until_empty()
        if number == signal.SIGKILL:
            return
        assert process.returncode == 128 + number
        assert len(stderr.splitlines()) == 1
        assert "interrupted; nothing was left" in stderr or "ended by signal 15" in stderr

    def test_in_a_terminal_it_says_meanwhile_what_it_does(self, sick: Doctor) -> None:
        ours, theirs = pty.openpty()
        words = sick.nodes.in_namespace(sick.words("node1,node2"))
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TERM": "xterm"}
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=environment
        )
        os.close(theirs)
        printed = read_all(ours)
        assert process.wait(LIMIT_S) == 0, printed
        assert re.search(r"\r\x1b\[2Kminiray doctor: 0 s: node1 \(connecting\), node2", printed)
        last = printed.rpartition("\x1b[2K")[2]
        assert "\x1b[1mnode1: well" in last
        assert "\x1b[32mok   \x1b[0m  ssh" in last


def is_importing(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"hangs" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def read_all(descriptor: int) -> str:
    data = b""
    with contextlib.suppress(OSError):  # how Linux says that the other side is closed
        while more := os.read(descriptor, 1 << 16):
            data += more
    os.close(descriptor)
    return data.decode()


NVIDIA_SMI = """#!/bin/sh
case "$1" in
{cases}
esac
"""
GPU = "{index}, GPU-{index}aaa, NVIDIA H100 80GB HBM3, 81559, {used}, 97, 570.86.15"


@pytest.fixture
def smi(tmp_path: Path) -> Any:
    """Return a function that puts an nvidia-smi on PATH, and runs doctor for four ranks here.

    The real one's format is in its manual; there is no GPU in the tests.
    """
    modules = tmp_path / "modules" / "torch"
    modules.mkdir(parents=True)

    def run(gpus: str, uses: str = "", *arguments: str, seen: int = 4) -> Seen:
        program = tmp_path / "nvidia-smi"
        cases = f"*query-gpu=*) {gpus} ;;\n*query-compute-apps=*) {uses or ':'} ;;"
        program.write_text(NVIDIA_SMI.format(cases=cases))
        program.chmod(0o755)
        torch = TORCH.format(version="2.13.0+cu126", cuda="12.6", gpus=seen)
        (modules / "__init__.py").write_text(torch)
        return here(
            *("--local", "4", "--env", f"PATH={tmp_path}:{os.environ['PATH']}"),
            *("--env", f"PYTHONPATH={modules.parent}", *arguments),
        )

    return run


def here(*arguments: str) -> Seen:
    """Run doctor on this machine, and in this process: it has imported all of it already."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = main(["doctor", "--json", "--limit", "60", *arguments])
    said = json.loads(printed.getvalue())
    for node in said["nodes"]:
        print(node["name"], *(one for one in node["checks"] if one["state"] != "ok"), sep="\n")
    return Seen(status, said)


def echo(*lines: str) -> str:
    return "; ".join(f"echo '{line}'" for line in lines)


@pytest.mark.thorough
class TestGpus:
    def test_free_ones_are_counted(self, smi: Any) -> None:
        seen = smi(echo(*(GPU.format(index=index, used=4) for index in range(4))))
        assert seen.status == 0
        assert "gpus: 4 x NVIDIA H100 80GB HBM3" in seen.checks("local", "ok")
        assert "torch: 2.13.0+cu126, CUDA 12.6" in seen.checks("local", "ok")

    def test_one_that_is_taken_is_named_with_who_has_it(self, smi: Any) -> None:
        gpus = [GPU.format(index=index, used=70000 * (index == 2)) for index in range(6)]
        with subprocess.Popen(["sleep", "60"]) as other:
            uses = echo(f"GPU-2aaa, {other.pid}, 70000, [Not Found]")
            (wrong,) = smi(echo(*gpus), uses).wrong("local")
            other.kill()
        me = pwd.getpwuid(os.getuid()).pw_name
        assert f"GPU 2 is taken, 70000 of 81559 MiB, by {me} (pid {other.pid}: sleep 60)" in wrong
        assert f"kill {other.pid}" in wrong
        assert "--env CUDA_VISIBLE_DEVICES=0,1,3,4,5" in wrong

    def test_one_that_no_rank_gets_does_not_matter(self, smi: Any) -> None:
        gpus = [GPU.format(index=index, used=70000 * (index == 4)) for index in range(5)]
        assert smi(echo(*gpus)).status == 0
        seen = smi(echo(*gpus), "", "--env", "CUDA_VISIBLE_DEVICES=1,2,3,4")
        assert "GPU 4 is taken" in seen.wrong("local")[0]

    def test_fewer_than_ranks(self, smi: Any) -> None:
        (wrong,) = smi(echo(*(GPU.format(index=index, used=4) for index in range(2)))).wrong(
            "local"
        )
        assert wrong.endswith("and 4 ranks: one GPU is for one rank -> fewer ranks: --local 2")

    def test_a_torch_that_sees_none(self, smi: Any) -> None:
        gpus = echo(*(GPU.format(index=index, used=4) for index in range(4)))
        (wrong,) = smi(gpus, seen=0).wrong("local")
        assert "torch 2.13.0+cu126 sees none of them" in wrong

    def test_a_driver_that_does_not_work_or_hangs(self, smi: Any) -> None:
        mismatch = "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18"
        (wrong,) = smi(mismatch).wrong("local")
        assert "Driver/library version mismatch" in wrong
        assert "reboot that node" in wrong
        (wrong,) = smi("exec sleep 60").wrong("local")
        assert "nvidia-smi fails: it hangs" in wrong

    def test_fake_ones_are_as_asked_for(self, smi: Any) -> None:
        assert smi("exit 9", "", "--fake-gpus").status == 0


class TestProbe:
    def test_an_old_python_can_read_it(self) -> None:
        ast.parse(Path(doctor_probe.__file__).read_text(), feature_version=(3, 6))

    @pytest.mark.parametrize("version", ["2.7", "3.6", "3.8", "3.10", "3.12", "3.13"])
    def test_runs_in_real_ones(self, version: str) -> None:
        found = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
        if not found:
            pytest.skip(f"there is no Python {version} here")
        # Of the many others that are here, no more than the system's are to be asked for torch.
        few = ("--env", "PATH=/usr/bin:/bin", "--env", "HOME=/nonexistent")
        seen = here("--local", "1", "--python", str(found[0]), *few)
        if version in ("3.12", "3.13"):
            assert not [one for one in seen.wrong("local") if not one.startswith("torch")]
            return
        (wrong,) = seen.wrong("local")
        assert re.search(rf"is {version}\.\d+, and MiniRay needs 3.11 or newer", wrong)
        others = [] if version == "2.7" else ["memory", "disk", "clock", "interface", "ports"]
        assert {one.partition(":")[0] for one in seen.checks("local", "ok")} >= {*others}

    def test_a_module_that_takes_too_long_is_told_with_its_version(self, tmp_path: Path) -> None:
        (tmp_path / "slow").mkdir()
        (tmp_path / "slow/version.py").write_text("__version__ = '1.2.3'\n")
        (tmp_path / "slow/__init__.py").write_text("import time\ntime.sleep(60)\n")
        probe = doctor_probe.Probe({"modules": ["slow"], "import_s": 1.0, "python_min": []}, print)
        sys_path = [*sys.path]
        os.environ["PYTHONPATH"] = str(tmp_path)
        try:
            sys.path.insert(0, str(tmp_path))
            assert probe.look_at_modules() == {"slow": {"late": 1.0, "version": "1.2.3"}}
        finally:
            sys.path[:] = sys_path
            del os.environ["PYTHONPATH"]


PROXY = "debug1: Executing proxy command: exec ssh -v -W '[n]:22' jump\n"
JUMP = f"{PROXY}debug1: Remote protocol version 2.0\n"
SSH_SAYS = [
    (f"{JUMP}Authenticated to jump.", "ssh", "not get through to n: no answer within 5 s"),
    (f"{JUMP}Authenticated to jump.\nchannel 0: open failed: x", "ssh", "get through to n: x"),
    (f"{JUMP}debug1: Server host key: x\nHost key verification failed.", "host key", "never seen"),
    ("ssh: Could not resolve hostname n: Name or service not known", "ssh", "no such name here"),
    ("debug1: Connecting to n [1.2.3.4] port 22.", "ssh", "no answer from 1.2.3.4 port 22 within"),
    ("", "ssh", "ssh did not get as far as connecting"),
    ("kex_exchange_identification: Connection closed by remote host", "ssh", "hung up at once"),
    (
        "debug1: Remote protocol version 2.0\nUnable to negotiate with n port 22: no matching "
        "host key type found. Their offer: ssh-rsa",
        "host key",
        "no matching host key type found",
    ),
    (
        "debug1: Server host key: x\ndebug1: Offering public key: me@laptop ED25519 SHA256:x\n"
        "Received disconnect from n: 2: Too many authentication failures",
        "login",
        "1 keys were offered to n, and it hung up",
    ),
    (
        "debug1: Server host key: x\nme@n: Permission denied (publickey,password).",
        "login",
        "no key was offered",
    ),
    (
        "debug1: Server host key: x\ndebug1: Authenticating to n:22 as 'me'\n"
        "debug1: Authentications that can continue: publickey,password\n"
        "debug1: Offering public key: /home/me/.ssh/id_rsa RSA SHA256:x\n"
        "me@n: Permission denied (publickey,password).",
        "login",
        "me@n does not accept the key /home/me/.ssh/id_rsa -> `ssh-copy-id -p2 -i "
        "/home/me/.ssh/id_rsa.pub me@n`",
    ),
    ('debug1: Server host key: x\nLoad key "/k": invalid format', "login", "/k cannot be used"),
]


class TestWhatSshSays:
    @pytest.mark.parametrize(("said", "name", "says"), SSH_SAYS)
    def test_is_understood(self, said: str, name: str, says: str) -> None:
        findings = Findings(NodeConfig("n", ssh_options=("-p2",)), "n", said=said.splitlines())
        findings.exit_status = 255 if len(said) > 50 else None
        checks = check_session(findings, 5.0)
        (wrong,) = [one for one in checks if one.state == "wrong"]
        assert wrong.name == name
        assert says in f"{wrong.says} -> {wrong.fix}"
        assert [one.name for one in checks] == ["ssh", "host key", "login", "shell"]

    def test_no_ssh_on_this_machine(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        done = subprocess.run(
            [*MINIRAY, "doctor", "node1", "-q"], capture_output=True, text=True, timeout=LIMIT_S
        )
        assert done.returncode == 1
        assert "cannot run ssh: No such file or directory" in done.stdout


def node(name: str, *, torch: str = "", cuda: str | None = None, gpus: int = 0) -> Findings:
    """Return a node on which all is well, and what it has of torch and of GPUs."""
    module = {"version": torch, "cuda": cuda, "gpus": gpus} if torch else {
        "error": "ModuleNotFoundError: No module named 'torch'", "missing": True
    }  # fmt: skip
    gpu = {"name": "G", "memory.total": "9", "memory.used": "0", "uuid": "u", "index": "0"}
    findings = Findings(NodeConfig(name), name, has_shell=True, version=(3, 11, 7))
    findings.facts = {"modules": {"torch": module}, "gpus": {"gpus": [gpu] * gpus, "uses": []}}
    return findings


def states(nodes: Sequence[Findings], here: Findings, name: str) -> list[str]:
    judged = judge(nodes, here, Wanted())
    return [f"{one.state}: {one.says}" for own in judged for one in own if one.name == name]


class TestBesideEachOther:
    def test_most_nodes_say_which_version_it_is(self) -> None:
        nodes = [node("a", torch="2.12.0"), node("b", torch="2.13.0"), node("c", torch="2.13.0")]
        assert states(nodes, node("here", torch="2.12.0"), "torch") == [
            "wrong: 2.12.0, and 2.13.0 on b, c",
            *["note: 2.13.0, and 2.12.0 on this machine"] * 2,
        ]

    def test_of_two_this_machine_decides(self) -> None:
        nodes = [node("a", torch="2.12.0"), node("b", torch="2.13.0")]
        wrong, well = states(nodes, node("here", torch="2.13.0+cpu"), "torch")
        assert wrong == "wrong: 2.12.0, and 2.13.0 on b"
        assert well == "ok: 2.13.0"

    def test_builds_for_another_cuda_are_told(self) -> None:
        nodes = [node("a", torch="2.13.0", cuda="12.6"), node("b", torch="2.13.0", cuda="12.8")]
        assert states(nodes, node("here"), "torch") == [
            "ok: 2.13.0, CUDA 12.6",
            "wrong: 2.13.0, CUDA 12.8, and CUDA 12.6 on the others",
        ]

    def test_what_nobody_has_is_no_fault_and_what_some_have_is(self) -> None:
        assert states([node("a")], node("here"), "torch")[0].startswith("note: nobody has it")
        assert states([node("a")], node("here", torch="2"), "torch")[0].startswith("wrong: not ins")
        assert states([node("a"), node("b", torch="2")], node("here"), "torch") == [
            "wrong: not installed in python3",
            "ok: 2",
        ]

    def test_gpus_on_some_nodes_only(self) -> None:
        nodes = [node("a", torch="2", gpus=1), node("b", torch="2")]
        assert states(nodes, node("here"), "gpus") == [
            "ok: 1 x G",
            "wrong: none, and a has some: NCCL and gloo do not meet",
        ]

    def test_of_many_that_are_cut_off_three_have_a_line_of_their_own(self) -> None:
        nodes = [node(name) for name in "abcdef"]
        for one in nodes:
            tried = {other.name: {"1.1.1.1": {"how": "timeout"}} for other in nodes if other != one}
            one.facts |= {"peers": tried, "listening": {"port": 5}}
        assert states(nodes, node("here"), "others")[:4] == [
            "wrong: does not get through to b at 1.1.1.1:5: no answer",
            "wrong: does not get through to c at 1.1.1.1:5: no answer",
            "wrong: does not get through to d at 1.1.1.1:5: no answer",
            "wrong: nor does it get through to e, f",
        ]

    def test_hosts_that_are_one_machine(self) -> None:
        nodes = [node(name) for name in "abcd"]
        for one, machine in zip(nodes, ("1", "2", "1", ""), strict=True):
            one.facts |= {"system": {"machine": machine}, "peers": {}}
        said = [one for one in states(nodes, node("here"), "others") if "not tested" not in one]
        assert said == [f"note: it is the same machine as {name}" for name in "ca"]
        for one in nodes:
            one.config = NodeConfig.local(2)
        assert "note" not in " ".join(states(nodes, node("here"), "others"))

    def test_memory_is_for_all_ranks_of_a_node(self) -> None:
        few, enough = node("a"), node("b")
        few.facts["memory"] = {"total": 8 << 30, "available": 200 << 20, "limit": None}
        enough.facts["memory"] = {"total": 8 << 30, "available": 1 << 30, "limit": 2 << 30}
        assert states([few, enough], node("here"), "memory") == [
            "wrong: 200 MiB free of 8.0 GiB, for 1 ranks",
            "ok: 1.0 GiB free of 2.0 GiB that this session may have",
        ]

    def test_a_key_that_may_not_be_used_for_tunnels(self) -> None:
        found = node("a")
        found.said = [
            "debug1: Remote: /h/.ssh/authorized_keys:1: key options: agent-forwarding pty"
        ]
        found.tunnel = {"how": "stranger"}
        assert states([found], node("here"), "tunnel") == ["note: the key may not be used for it"]

    def test_what_has_not_come_is_said_to_hang(self) -> None:
        found = node("a", torch="2")
        found.num_places = 2
        assert states([found], node("here"), "disk") == ["wrong: no answer within 10 s"]
        assert states([found], node("here"), "memory") == ["wrong: no answer within 10 s"]


@pytest.mark.parametrize(
    ("variable", "chosen"),
    [
        ("eth", ["eth0", "eth1"]),
        ("=eth0", ["eth0"]),
        ("=eth", []),
        ("eth1,ib0", ["eth1", "ib0"]),
        ("^eth,lo", ["ib0"]),
        ("^=eth0", ["eth1", "ib0", "lo"]),
        ("ib0:1", ["ib0"]),
    ],
)
def test_nccl_names_interfaces_in_its_own_way(variable: str, chosen: list[str]) -> None:
    names = ("eth0", "eth1", "ib0", "lo")
    assert [one for one in names if chooses("NCCL_SOCKET_IFNAME", variable, one)] == chosen


def test_gloo_takes_whole_names() -> None:
    names = ("eth0", "eth1", "lo")
    for text, chosen in {"eth0": ["eth0"], "eth": [], "eth0,eth1": ["eth0", "eth1"]}.items():
        assert [one for one in names if chooses("GLOO_SOCKET_IFNAME", text, one)] == chosen


class TestReport:
    CHECKS = (
        Check("ssh", "ok", "10.0.0.1 port 22"),
        Check("python", "wrong", "word " * 40, "words and more words, and then `a command " * 1
              + "that is longer than " * 6 + "any line`; or " + "others " * 30),
        Check("transformers", "untested", "not tested: python comes first", is_waiting=True),
        Check("disk", "untested", "not tested: python comes first", is_waiting=True),
    )  # fmt: skip

    @pytest.mark.parametrize("columns", [40, 80, 120, 200])
    def test_fits_the_terminal_but_for_commands_which_stay_whole(self, columns: int) -> None:
        findings = Findings(NodeConfig("node1"), "node1")
        text = as_text(
            [findings], [self.CHECKS], columns=columns, stream=sys.stdout, is_brief=False
        )
        lines = text.splitlines()
        whole = [line for line in lines if "`" in line]
        assert len(whole) == 1
        assert whole[0].count("that is longer than") == 6
        assert all(len(line) <= min(columns, 120) for line in lines if line not in whole)
        (folded,) = [one for one in re.split(r"\n(?=\S)", text) if one.startswith("-  ")]
        assert re.sub(r"\s+", " ", folded).startswith(
            "- the rest not tested: python comes first: transformers, disk"
        )

    def test_a_command_alone_in_its_line_has_no_comma_to_copy(self) -> None:
        fix = f"install it: `{'ssh node1 ' * 8}`, or another Python: `--python {'/p' * 30}`; or not"
        text = as_text(
            [Findings(NodeConfig("node1"), "node1")],
            [[Check("torch", "wrong", "not installed", fix)]],
            columns=80,
            stream=sys.stdout,
            is_brief=False,
        )
        alone = [line.strip() for line in text.splitlines() if line.endswith("`")]
        assert alone == [f"`{'ssh node1 ' * 8}`", f"`--python {'/p' * 30}`"]

    def test_quiet_shows_what_is_wrong(self) -> None:
        findings = Findings(NodeConfig("node1"), "node1")
        text = as_text([findings], [self.CHECKS], columns=80, stream=sys.stdout, is_brief=True)
        assert "WRONG" in text
        assert "10.0.0.1" not in text


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("", "no hosts given: name them with -H"),
        ("node1 -H node2", "the hosts are named twice"),
        ("node1 --limit 0", "--limit is a number from 2 up"),
        ("node1 --local 2", "both say where to run"),
        ("node1:0", "the number of ranks must be a whole number"),
    ],
)
def test_what_cannot_be_asked_is_said(
    arguments: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", *arguments.split()]) == 2
    assert problem in capsys.readouterr().err


def copy_key(sick: Doctor, name: str) -> Path:
    """Return a copy of the key that the nodes accept."""
    path = sick.folder / name
    shutil.copy(sick.nodes.identity.key, path)
    shutil.copy(f"{sick.nodes.identity.key}.pub", f"{path}.pub")
    return path
