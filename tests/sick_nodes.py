"""Two nodes with six faults, and what doctor says of them: docs/guides/doctor-*.txt.

Four hosts are two machines: two names more lead to the same sshds, one of them with a key that is
not accepted. `python -m tests.sick_nodes --write` writes the transcripts anew; --hold plants the
faults and opens a shell, for who wants to try whether doctor's words are enough.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path

from miniray import NodeConfig
from miniray.cli.doctor_findings import Check, Findings
from miniray.cli.doctor_report import as_text
from tests.support import namespaces, ssh

REPOSITORY = Path(__file__).resolve().parents[1]
GUIDES = REPOSITORY / "docs" / "guides"
HEALTHY, SICK = "node1:4,node2:4", "node1:4,node2:4,node3:4"
PORT = 29500
TORCH = """\
__version__ = "2.13.0+cpu"
class version:
    cuda = None
class cuda:
    is_available = staticmethod(lambda: False)
"""
OLD = """\
#!/bin/sh
exec {python} -Sc "import sys;sys.version_info=(3,8,10);sys.executable='$0';$2"
"""


class Lab:
    """The nodes, a home with a Python of its own on each, and places for faults."""

    def __init__(self, nodes: namespaces.Nodes, home: Path, *, has_torch: bool = False) -> None:
        self.nodes, self.home = nodes, home
        self.scratch = home / "scratch"
        self.scratch.mkdir(parents=True)
        for name, torch in (("venv", TORCH), ("bare", ""), ("old", TORCH)):
            venv.create(home / name)
            if torch:
                (packages,) = (home / name).glob("lib/python*/site-packages")
                if has_torch:  # to run something in the end; it takes its time to import
                    (packages / "torch.pth").write_text(sysconfig.get_path("purelib"))
                else:
                    (packages / "torch.py").write_text(torch)
        python = home / "old/bin/python"
        for link in python.parent.glob("python*"):
            link.unlink()
        python.write_text(OLD.format(python=sys.executable))
        python.chmod(0o755)
        other = ssh.make_key(home / "laptop_key")
        text = nodes.identity.config.read_text()
        mine = f"  IdentityFile {nodes.identity.key}\n"
        assert mine in text
        self.config = home / "config"
        self.config.write_text(
            f"Host node3\n  HostName node1\n  HostKeyAlias node1\n  IdentityFile {other}\n"
            f"Match !originalhost node3\n{mine}Match all\n{text.replace(mine, '')}"
        )

    def words(self, hosts: str) -> list[str]:
        """Return the command, and all that a reader's own configuration would say."""
        return [
            *(sys.executable, "-m", "miniray", "doctor", hosts, "--port", str(PORT)),
            *("--python", str(self.home / "venv/bin/python"), f"--ssh-option=-F{self.config}"),
            *("--env", f"HOME={self.home}", "--env", f"TMPDIR={self.scratch}"),
        ]

    def say(self, hosts: str) -> str:
        """Return a transcript, in which this machine's names are a reader's."""
        for host in self.nodes.hosts:  # in a container there is little of it
            self.nodes.on(host, "mount", "-t", "tmpfs", "-o", "size=8g", "shm", "/dev/shm")
        words = [*self.words(hosts), "--json", "--limit", "60"]  # there may be much else to do
        text = self.nodes.run(words, timeout=100).stdout
        for host in self.nodes.hosts:
            self.nodes.on(host, "umount", "/dev/shm")
        for ours, theirs in {
            sys.executable: "/usr/bin/python3",
            f" -F{self.config}": "",
            str(self.home): "/home/you",
            str(self.nodes.identity.key): "/home/you/.ssh/id_ed25519",
            platform.release(): "6.12.0",
            "root@": "you@",
            "as root": "as you",
            "of root": "of you",
        }.items():
            text = text.replace(ours, theirs)
        nodes, checks = read(text)
        plain = io.StringIO()
        shown = as_text(nodes, checks, columns=100, stream=plain, is_brief=False)
        return f"$ miniray doctor {hosts} --port {PORT}\n{shown}\n"

    @contextlib.contextmanager
    def faults(self) -> Iterator[None]:
        """Plant six: a key, a Python, a module, a disk, an interface, a port."""
        nodes, home = self.nodes, self.home
        variable = 'export NCCL_SOCKET_IFNAME=ib0; exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"'
        # Short: of a command no more than its beginning is shown, and paths differ.
        taken = [sys.executable, "-um", "http.server", str(PORT)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        with (
            nodes.other_server("node2", force_command=variable),
            nodes.popen(taken, node="node2", **pipes) as server,
        ):
            assert server.stdout is not None
            assert "Serving" in server.stdout.readline()
            nodes.on("node1", "mount", "--bind", str(home / "old"), str(home / "venv"))
            nodes.on("node2", "mount", "--bind", str(home / "bare"), str(home / "venv"))
            nodes.on("node2", "mount", "-t", "tmpfs", "-o", "size=64m", "full", str(self.scratch))
            fill = f"head -c 72M /dev/zero >{self.scratch}/checkpoint-of-last-year.pt; true"
            nodes.on("node2", "sh", "-c", fill)
            try:
                yield
            finally:
                server.kill()
                nodes.on("node1", "umount", str(home / "venv"))  # node2's sshd takes its own along


def read(text: str) -> tuple[list[Findings], list[list[Check]]]:
    """Return what --json has printed as what it was."""
    nodes, checks = [], []
    for one in json.loads(text)["nodes"]:
        findings = Findings(NodeConfig(one["host"]), one["name"], facts=one["facts"])
        findings.seconds = one["seconds"]
        nodes.append(findings)
        checks.append(
            [
                Check(
                    *(check["name"], check["state"], check["says"], check["fix"] or ""),
                    is_waiting=check["says"].endswith("comes first"),
                )
                for check in one["checks"]
            ]
        )
    return nodes, checks


@contextlib.contextmanager
def lab(*, has_torch: bool = False) -> Iterator[Lab]:
    """Make the nodes, within a `with` block; their torch is a stand-in unless `has_torch`."""
    with tempfile.TemporaryDirectory(prefix="lab-") as folder:
        (where := Path(folder, "nodes")).mkdir()
        nodes = namespaces.Nodes(where)
        try:
            yield Lab(nodes, Path(folder, "you"), has_torch=has_torch)
        finally:
            nodes.close()


def main() -> None:
    """Write the transcripts, or hold the faults."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--hold", action="store_true")
    options = parser.parse_args()
    if options.hold:
        with lab(has_torch=True) as sick, sick.faults():
            environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
            print("Six faults are there. Mend them by the words of:")
            print(" ".join(sick.words(SICK)))
            print(
                "Then `miniray run` with the same options; hosts are -H there, and --port is not."
            )
            print("A node's own files and mounts: nsenter -m -n -t PID, of its sshd's listener.")
            subprocess.run(sick.nodes.in_namespace(["bash"]), env=environment)
        return
    with lab() as sick:
        healthy = sick.say(HEALTHY)
        with sick.faults():
            ill = sick.say(SICK)
    if options.write:
        (GUIDES / "doctor-well.txt").write_text(healthy)
        (GUIDES / "doctor-ill.txt").write_text(ill)
    print(healthy, ill, sep="\n")


if __name__ == "__main__":
    main()
