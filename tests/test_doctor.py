"""`miniray doctor`: each fault that is planted on a node is named, with what to do."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import namespaces, slurm, ssh

REPOSITORY = Path(__file__).resolve().parents[1]
MINIRAY = [sys.executable, "-m", "miniray"]
LIMIT_S = 60
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
            f"{one['name']}: {one['says']}" + (f" -> {one['fix']}" if one["fix"] else "")
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
            *arguments,
        ]

    def run(self, *arguments: str, config: Path | None = None, **options: Any) -> Seen:
        hosts = [] if any("node" in one for one in arguments) else ["node1:2,node2:2"]
        done = self.nodes.run(
            self.words(*hosts, "--json", *arguments, config=config), timeout=LIMIT_S, **options
        )
        print(done.stderr)
        said = json.loads(done.stdout)
        for node in said["nodes"]:
            print(node["name"], *(one for one in node["checks"] if one["state"] != "ok"), sep="\n")
        assert said["ok"] == (done.returncode == 0)
        self.nodes.wait_until_empty()
        return Seen(done.returncode, said)

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
def dropped(nodes: namespaces.Nodes, host: str, rule: str) -> Iterator[None]:
    """Have a node's firewall apply a rule to what comes in, within a `with` block."""
    nodes.on(host, "nft", "add", "table", "inet", "doctor")
    try:
        hook = "{ type filter hook input priority 0 ; }"
        nodes.on(host, "nft", "add", "chain", "inet", "doctor", "input", hook)
        nodes.on(host, "nft", "add", "rule", "inet", "doctor", "input", *rule.split())
        yield
    finally:
        nodes.on(host, "nft", "delete", "table", "inet", "doctor")


def mounted(doctor: Doctor, host: str, path: Path, options: str) -> Any:
    """Mount a file system of its own for a node at a path, within a `with` block."""

    @contextlib.contextmanager
    def mount() -> Iterator[None]:
        path.mkdir(exist_ok=True, parents=True)
        doctor.nodes.on(host, "mount", "-t", "tmpfs", "-o", options, "doctor", str(path))
        try:
            yield
        finally:
            doctor.nodes.on(host, "umount", str(path))

    return mount()


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

    def test_a_bad_key(self, sick: Doctor) -> None:
        other = ssh.make_key(sick.folder / "other_key")
        config = sick.config(str(sick.nodes.identity.key), str(other))
        seen = sick.run(config=config)
        for node in ("node1", "node2"):
            (wrong,) = seen.wrong(node)
            assert wrong.startswith(f"login: root@{node} does not accept the key {other} -> append")
            assert f"the line in {other}.pub to ~/.ssh/authorized_keys" in wrong
            untested = seen.checks(node, "untested")
            assert "shell: not tested: login comes first" in untested
            assert "tunnel: not tested: login comes first" in untested

    def test_a_key_that_others_may_read(self, sick: Doctor) -> None:
        other = copy_key(sick, "open_key")
        other.chmod(0o644)
        seen = sick.run(config=sick.config(str(sick.nodes.identity.key), str(other)))
        (wrong,) = seen.wrong("node1")
        assert wrong.endswith(f"others may read it (mode 0644) -> chmod 600 {other}")

    def test_a_key_with_a_passphrase(self, sick: Doctor) -> None:
        other = copy_key(sick, "locked_key")
        subprocess.run(
            ["ssh-keygen", "-q", "-p", "-N", "a passphrase", "-f", str(other)], check=True
        )
        config = sick.config(str(sick.nodes.identity.key), str(other))
        (wrong,) = sick.run(config=config).wrong("node1")
        assert wrong.endswith(f"-> once a session: ssh-add {other}")

    def test_a_key_that_is_not_there(self, sick: Doctor) -> None:
        gone = sick.folder / "gone_key"
        seen = sick.run(config=sick.config(str(sick.nodes.identity.key), str(gone)))
        (wrong,) = seen.wrong("node1")
        assert f"{gone}, is not there -> put it there" in wrong

    def test_a_host_key_that_has_changed(self, sick: Doctor) -> None:
        with sick.nodes.changed_host_key("node2"):
            seen = sick.run()
        (wrong,) = seen.wrong("node2")
        assert wrong.startswith("host key: another one than last time")
        assert f'ssh-keygen -f "{sick.nodes.identity.known_hosts}" -R "node2"' in wrong
        assert not seen.wrong("node1")
        assert seen.checks("node1", "untested") == [
            "others: not tested towards node2: it did not listen"
        ]

    def test_a_host_key_that_nobody_knows(self, sick: Doctor) -> None:
        known = sick.config("StrictHostKeyChecking yes", "StrictHostKeyChecking ask")
        known.write_text(
            known.read_text().replace(str(sick.nodes.identity.known_hosts), "/dev/null")
        )
        (wrong,) = sick.run(config=known).wrong("node1")
        assert wrong.startswith("host key: never seen before")
        assert "SHA256:" in wrong
        assert f"ssh -F{known} node1" in wrong

    def test_a_host_that_is_not_there_a_port_that_refuses_and_a_name_that_is_none(
        self, sick: Doctor
    ) -> None:
        config = sick.config("Host *\n", "Host absent\n  HostName 10.77.0.99\nHost *\n")
        began = time.monotonic()
        seen = sick.run("node1,absent,nonesuch", config=config)
        print(time.monotonic() - began)
        (wrong,) = seen.wrong("absent")
        assert wrong.startswith("ssh: no way to 10.77.0.99 port 22: no route to host")
        (wrong,) = seen.wrong("nonesuch")
        assert wrong.startswith("ssh: no such name here: nonesuch (")
        assert not seen.wrong("node1")
        (wrong,) = sick.run("node1", "--ssh-option=-p2222").wrong("node1")
        assert "node1" not in wrong.partition(" -> ")[0]
        assert wrong.startswith("ssh: 10.77.0.11 port 2222 refuses")

    def test_a_link_that_swallows_everything_costs_no_more_than_the_limit(
        self, sick: Doctor
    ) -> None:
        with dropped(sick.nodes, "node2", "tcp dport 22 drop"):
            seen = sick.run()
        (wrong,) = seen.wrong("node2")
        assert re.match(r"ssh: no answer from 10.77.0.12 port 22 within \d s ->", wrong)
        assert not seen.wrong("node1")

    def test_a_port_where_something_else_answers(self, sick: Doctor) -> None:
        script = (
            "import socket\nserver = socket.create_server(('10.77.0.11', 2222))\n"
            "print('ready', flush=True)\n"
            "while True:\n  one, _ = server.accept()\n  one.sendall(b'+OK hello\\r\\n' * 300)\n"
        )
        with sick.nodes.popen(
            [sys.executable, "-c", script], node="node1", stdout=subprocess.PIPE
        ) as other:
            assert other.stdout is not None
            other.stdout.readline()
            done = sick.nodes.run(sick.words("node1", "--json", "--ssh-option=-p2222"))
            other.kill()
        (check,) = [
            one for one in json.loads(done.stdout)["nodes"][0]["checks"] if one["state"] == "wrong"
        ]
        assert check["says"].startswith("something answers at 10.77.0.11 port 2222, and it is no")

    def test_start_up_files_that_print(self, sick: Doctor) -> None:
        force = ssh.write_noisy_shell(sick.folder / "noisy")
        with sick.nodes.other_server("node1", force_command=force):
            seen = sick.run()
        assert seen.status == 0
        (note,) = seen.checks("node1", "note")
        assert "its start-up files print 3 lines" in note
        assert "Welcome to the cluster!" in note
        assert "case $- in *i*) ;; *) return;; esac" in note

    @pytest.mark.parametrize("program", ["read answer", "while :; do echo hello; sleep 0.01; done"])
    def test_start_up_files_that_never_end(self, sick: Doctor, program: str) -> None:
        with sick.nodes.other_server("node1", force_command=f"/bin/sh -c '{program}'"):
            seen = sick.run()
        (wrong,) = seen.wrong("node1")
        assert wrong.startswith("shell: logged in, and its start-up files got no further within")
        assert not seen.wrong("node2")

    def test_an_account_without_a_shell(self, sick: Doctor) -> None:
        force = "echo This account is currently not available. && exit 1"
        with sick.nodes.other_server("node1", force_command=force):
            (wrong,) = sick.run().wrong("node1")
        assert "it does not run commands, and ended with status 1: This account is cur" in wrong

    @pytest.mark.parametrize("shell", ["fish", "tcsh", "zsh"])
    def test_other_login_shells_will_do(self, sick: Doctor, shell: str) -> None:
        path = shutil.which(shell)
        assert path, f"there is no {shell}"
        with sick.nodes.other_server("node1", force_command=ssh.login_shell(path)):
            assert sick.run().status == 0

    def test_a_python_that_is_not_there(self, sick: Doctor) -> None:
        (wrong,) = sick.run("--python", "python3.99").wrong("node1")
        assert wrong.startswith("python: there is no python3.99 for a session without a terminal")
        assert re.search(r"--python /\S+python3", wrong)

    def test_a_python_that_is_too_old(self, sick: Doctor) -> None:
        old = sick.python("import sys;sys.version_info=(3,8,10)")
        (wrong,) = sick.run("--python", old, "node1").wrong("node1")
        assert wrong.startswith(f"python: {sys.executable} is 3.8.10, and MiniRay needs 3.11")
        assert re.search(r"--python /\S+ \(3\.1\d", wrong)

    def test_a_module_that_is_missing_on_one_node(self, sick: Doctor) -> None:
        (sick.folder / "empty").mkdir()
        modules = str(sick.folder / "modules")
        sick.nodes.on("node2", "mount", "--bind", str(sick.folder / "empty"), modules)
        try:
            seen = sick.run("--python", bare_python(sick))
        finally:
            sick.nodes.on("node2", "umount", modules)
        (wrong,) = seen.wrong("node2")
        assert wrong.startswith(f"torch: not installed in {sick.folder}/bare/bin/python -> ")
        assert re.search(
            r"--python /\S+ \(3.1\S+ which has torch\)|pip install torch==2.13.0", wrong
        )
        assert not seen.wrong("node1")

    def test_a_module_of_another_version(self, sick: Doctor) -> None:
        other = sick.write_torch("other", "2.12.1+cpu")
        modules = str(sick.folder / "modules")
        sick.nodes.on("node2", "mount", "--bind", str(other), modules)
        try:
            seen = sick.run()
        finally:
            sick.nodes.on("node2", "umount", modules)
        (wrong,) = seen.wrong("node2")
        assert wrong.startswith("torch: 2.12.1+cpu, and 2.13.0+cpu on node1 -> the same version")
        assert "pip install torch==2.13.0" in wrong

    def test_a_module_that_was_asked_for(self, sick: Doctor) -> None:
        seen = sick.run("--need", "json,nonesuch")
        (wrong,) = seen.wrong("node1")
        assert wrong.startswith("nonesuch: not installed in")
        assert "pip install nonesuch" in wrong

    def test_a_module_that_breaks(self, sick: Doctor) -> None:
        (sick.folder / "modules/broken.py").write_text(
            "raise OSError('libcuda.so.1: no such file')"
        )
        (wrong,) = sick.run("--need", "broken", "node1").wrong("node1")
        assert "broken: its import fails: OSError: libcuda.so.1" in wrong
        (sick.folder / "modules/crash.py").write_text("import os; os.abort()")
        (wrong,) = sick.run("--need", "crash", "node1").wrong("node1")
        assert "crash: its import fails" in wrong

    def test_a_full_disk(self, sick: Doctor) -> None:
        with mounted(sick, "node2", sick.temporary, "size=512k"):
            seen = sick.run()
        (wrong,) = seen.wrong("node2")
        assert wrong.startswith(f"disk: {sick.temporary} (temporary files) is full: no space left")
        assert f"du -xsh {sick.temporary}/*" in wrong
        assert "--env TMPDIR=" in wrong
        assert not seen.wrong("node1")

    def test_a_read_only_disk(self, sick: Doctor) -> None:
        with mounted(sick, "node2", sick.folder / "cache", "ro"):
            (wrong,) = sick.run().wrong("node2")
        assert "(your folder's copy) is on a read-only file system -> " in wrong
        assert "--env XDG_CACHE_HOME=" in wrong

    def test_a_disk_without_inodes(self, sick: Doctor) -> None:
        with mounted(sick, "node2", sick.temporary, "nr_inodes=1"):
            (wrong,) = sick.run().wrong("node2")
        assert "has no inodes left" in wrong

    def test_a_disk_from_which_nothing_runs(self, sick: Doctor) -> None:
        with mounted(sick, "node2", sick.temporary, "noexec"):
            seen = sick.run()
        (note,) = seen.checks("node2", "note")
        assert "is mounted noexec" in note
        assert seen.status == 0

    def test_an_interface_that_is_none(self, sick: Doctor) -> None:
        (wrong,) = sick.run("--env", "NCCL_SOCKET_IFNAME=ib0").wrong("node2")
        assert wrong.startswith("interface: NCCL_SOCKET_IFNAME=ib0 is no interface of this node")
        assert "eth0 (10.77.0.12)" in wrong
        assert "--env NCCL_SOCKET_IFNAME==eth0" in wrong

    def test_an_interface_where_nobody_gets_to(self, sick: Doctor) -> None:
        nodes = sick.nodes
        for number, host in enumerate(nodes.hosts, start=1):
            nodes.on(host, "ip", "link", "add", "dark0", "type", "bridge")
            nodes.on(host, "ip", "address", "add", f"10.78.{number}.1/24", "dev", "dark0")
            nodes.on(host, "ip", "link", "set", "dark0", "up")
        try:
            seen = sick.run("--env", "GLOO_SOCKET_IFNAME=dark0")
        finally:
            for host in nodes.hosts:
                nodes.on(host, "ip", "link", "delete", "dark0")
        (wrong,) = seen.wrong("node2")
        assert "GLOO_SOCKET_IFNAME=dark0 is 10.78.2.1, where node1 does not get to" in wrong
        assert "--env GLOO_SOCKET_IFNAME=eth0" in wrong
        (wrong,) = sick.run("--env", "GLOO_SOCKET_IFNAME=lo").wrong("node1")
        assert "is lo, where no other node gets to" in wrong

    def test_a_port_that_is_taken(self, sick: Doctor) -> None:
        script = "import socket; s = socket.create_server(('', 29500)); print(flush=True); input()"
        with sick.nodes.popen(
            [sys.executable, "-c", script],
            node="node2",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as other:
            assert other.stdout is not None
            other.stdout.readline()
            done = sick.nodes.run(sick.words("node1,node2", "--json", "--port", "29500"))
            other.kill()
        seen = Seen(done.returncode, json.loads(done.stdout))
        (wrong,) = seen.wrong("node2")
        assert f"ports: port 29500 is taken by pid {other.pid} of root ({sys.executable}" in wrong
        assert f"kill {other.pid}" in wrong
        assert not seen.wrong("node1")

    def test_a_firewall_between_nodes(self, sick: Doctor) -> None:
        rule = "ip saddr 10.77.0.11 tcp dport != 22 ct state new drop"
        with dropped(sick.nodes, "node2", rule):
            seen = sick.run()
        (wrong,) = seen.wrong("node1")
        assert re.match(
            r"others: from here to node2 at 10.77.0.12:\d+: no answer, though back again it goes ->"
            r" on node2: .*10\.77\.0\.11",
            wrong,
        )
        assert not seen.wrong("node2")

    def test_a_firewall_between_here_and_a_node(self, sick: Doctor) -> None:
        rule = "ip saddr 10.77.0.1 tcp dport != 22 reject with tcp reset"
        with dropped(sick.nodes, "node2", rule):
            seen = sick.run()
            assert sick.run("--tunnel").status == 0
        (wrong,) = seen.wrong("node2")
        assert re.match(r"ports: from here to 10.77.0.12:\d+: refused -> on node2: ", wrong)
        assert "--tunnel" in wrong

    def test_a_network_that_loses_large_packets(self, sick: Doctor) -> None:
        with dropped(sick.nodes, "node2", "tcp dport != 22 ip length > 1200 drop"):
            seen = sick.run()
        assert "small packets pass and large ones do not" in seen.wrong("node1")[0]

    @pytest.mark.parametrize("setting", ["AllowStreamLocalForwarding no", "DisableForwarding yes"])
    def test_tunnels_that_are_forbidden(self, sick: Doctor, setting: str) -> None:
        with sick.nodes.other_server("node2", settings=f"{setting}\n"):
            seen = sick.run()
            assert seen.status == 0, "nobody has asked for one"
            (note,) = seen.checks("node2", "note")
            assert note.startswith("tunnel: its sshd forbids it -> only --tunnel needs it: in its ")
            (wrong,) = sick.run("--tunnel").wrong("node2")
        assert wrong.endswith("; or go without --tunnel")

    def test_a_clock_that_is_off(self, sick: Doctor) -> None:
        late = sick.python("import time;t=time.time;time.time=lambda:t()-300")
        (wrong,) = sick.run("--python", late, "node1").wrong("node1")
        assert wrong.startswith("clock: 5 minutes behind this machine's")
        assert "timedatectl set-ntp true" in wrong

    def test_in_an_allocation_srun_starts_it(
        self, sick: Doctor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        nodes = sick.nodes
        slurm.install(sick.folder, {one: nodes.in_namespace([], node=one) for one in ssh.HOSTS})
        environment = {
            "PATH": f"{sick.folder}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "1",
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_TASKS_PER_NODE": "2(x2)",
        }
        done = nodes.run(sick.words("--json"), env=environment)
        seen = Seen(done.returncode, json.loads(done.stdout))
        assert seen.status == 0
        assert seen.checks("node1", "ok")[0].startswith("launcher: srun --overlap")


def copy_key(sick: Doctor, name: str) -> Path:
    """Return a copy of the key that the nodes accept."""
    path = sick.folder / name
    shutil.copy(sick.nodes.identity.key, path)
    shutil.copy(f"{sick.nodes.identity.key}.pub", f"{path}.pub")
    return path


def bare_python(sick: Doctor) -> str:
    """Return a Python in which nothing is installed."""
    venv.create(sick.folder / "bare")
    return str(sick.folder / "bare/bin/python")
