"""The package as somebody gets it: a wheel, installed where there is nothing else."""

import importlib.util
import os
import re
import socket
import subprocess
import sys
import tarfile
import zipapp
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from tests.support.ssh import LoopbackNodes
from tools import package
from tools.count_lines import REPOSITORY
from tools.site import blocks

T = 60.0

WORK = """
import miniray, sys

def tell(channel):
    channel.send([miniray.__file__, sys.prefix])
"""
START = """
import sys
from miniray import Cluster, NodeConfig

options = tuple(sys.argv[2:])
nodes = [NodeConfig(host, ssh_options=options) for host in sys.argv[1].split(",")]
if __name__ == "__main__":
    with Cluster(nodes) as cluster:
        for worker in cluster.start("work.tell"):
            print(*worker.recv(timeout=40))
"""


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source release, and the wheel that is made of it."""
    pytest.importorskip("setuptools", minversion="77")
    return package.build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="session")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of a new virtual environment with the wheel, and nothing but it."""
    environment = tmp_path_factory.mktemp("elsewhere") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", str(environment))
    pip = (sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python"))
    run(*pip, "install", "--quiet", "--no-index", str(built[1]))
    return environment / "bin"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Return a folder with a script and the module of its work function."""
    (tmp_path / "work.py").write_text(WORK)
    (tmp_path / "start.py").write_text(START)
    return tmp_path


def run(*command: str, cwd: "Path | None" = None, **env: str) -> str:
    """Return what a command prints, which runs without this repository on its path."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        command, cwd=cwd, env=clean | env, capture_output=True, text=True, timeout=T, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class TestFiles:
    def test_the_wheel_is_the_package_and_nothing_else(self, built: tuple[Path, Path]) -> None:
        with zipfile.ZipFile(built[1]) as wheel:
            names = set(wheel.namelist())
        code = {
            f"miniray/{path.relative_to(REPOSITORY / 'miniray')}"
            for path in (REPOSITORY / "miniray").rglob("*.py")
        }
        assert {name for name in names if ".dist-info/" not in name} == {*code, "miniray/py.typed"}

    def test_its_metadata_says_what_it_needs_and_what_it_was_tried_with(
        self, built: tuple[Path, Path]
    ) -> None:
        with zipfile.ZipFile(built[1]) as wheel:
            (name,) = (one for one in wheel.namelist() if one.endswith("/METADATA"))
            metadata = Parser().parsestr(wheel.read(name).decode())
            assert any(one.endswith("/licenses/LICENSE") for one in wheel.namelist())
        needed = metadata.get_all("Requires-Dist")
        assert needed
        assert all("extra ==" in one for one in needed)
        tried = {
            one.rpartition(" ")[2]
            for one in metadata.get_all("Classifier") or []
            if one.startswith("Programming Language :: Python :: 3.")
        }
        others = re.findall(r"python(3\.\d+)", (REPOSITORY / ".ci" / "run").read_text())
        assert tried == {"3.11", *others}

    def test_the_source_release_has_the_course_and_the_tests(
        self, built: tuple[Path, Path]
    ) -> None:
        with tarfile.open(built[0]) as sdist:
            names = {name.partition("/")[2] for name in sdist.getnames()}
        for name in (
            *("LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "Makefile", "conftest.py"),
            *("tests/support/ssh.py", "tests/mutants.toml", "stages/parts.toml", "docs/MINIRAY.md"),
            *(
                "exercises/stage1/framing/exercise.toml",
                "examples/rollouts.py",
                "tools/environment",
            ),
        ):
            assert name in names
        assert not [name for name in names if "__pycache__" in name or name.startswith("docs/gen")]

    def test_the_tree_builds_the_same_wheel(self, built: tuple[Path, Path], tmp_path: Path) -> None:
        package.copy_tracked(tmp_path / "tree")
        direct = package.build_one("build_wheel", tmp_path / "tree", tmp_path)
        with zipfile.ZipFile(direct) as one, zipfile.ZipFile(built[1]) as other:
            assert contents(one) == contents(other)


def contents(archive: zipfile.ZipFile) -> dict[str, int]:
    return {info.filename: info.CRC for info in archive.infolist()}


class TestInstalled:
    def test_the_command_is_there(self, installed: Path, tmp_path: Path) -> None:
        assert run(str(installed / "miniray"), "--version", cwd=tmp_path) == "miniray 0.1.0\n"
        assert "complete -F" in run(str(installed / "miniray"), "completion", "bash", cwd=tmp_path)

    def test_a_worker_needs_nothing_else(self, installed: Path, tmp_path: Path) -> None:
        script = """if True:
            import miniray, sys
            from miniray import Worker
            with Worker(lambda channel: channel.send([1, b"two"])) as worker:
                print(worker.recv(timeout=20), "torch" in sys.modules, miniray.__file__)
        """
        printed = run(str(installed / "python"), "-c", script, cwd=tmp_path).split()
        assert printed[:3] == ["[1,", "b'two']", "False"]
        assert printed[3].startswith(str(installed.parent))

    @pytest.mark.thorough
    def test_readmes_quick_start_runs_as_pasted(self, installed: Path, tmp_path: Path) -> None:
        """Each block by itself, in a folder with nothing else; torch alone is borrowed."""
        torch = importlib.util.find_spec("torch")
        assert torch is not None
        assert torch.origin
        text = (REPOSITORY / "README.md").read_text()
        with socket.create_server(("127.0.0.1", 0)) as probe:
            text = text.replace("10000", str(probe.getsockname()[1]))
        (tmp_path / "README.md").write_text(text)
        found = list(blocks.find(tmp_path / "README.md"))
        for block in found:
            if block.title:
                (tmp_path / block.title).write_text(block.text)
        lines = [line for block in found for line in block.lines]
        (command,) = (line for line in lines if line.startswith("python -m miniray.worker_server "))
        environment = {**os.environ, "PATH": f"{installed}:{os.environ['PATH']}"}
        environment.pop("PYTHONPATH", None)
        printed = []
        server = subprocess.Popen(
            command.split(), cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
        )
        try:
            assert server.stdout
            assert "listening on" in server.stdout.readline()
            for block in blocks.find(tmp_path / "README.md", "python"):
                if not block.title:
                    (tmp_path / "pasted.py").write_text(block.text)
                    borrowed = str(Path(torch.origin).parents[1]) if "torch" in block.text else ""
                    python = str(installed / "python")
                    printed.append(run(python, "pasted.py", cwd=tmp_path, PYTHONPATH=borrowed))
        finally:
            server.terminate()
            server.communicate(timeout=T)
        (command,) = (line for line in lines if line.startswith("miniray run --local "))
        borrowed = str(Path(torch.origin).parents[1])
        words = [str(installed / "miniray"), *command.split()[1:]]
        said = run(*words, cwd=tmp_path, PYTHONPATH=borrowed)
        assert said.count("the ranks add up to 6.0") == 4
        assert printed[:3] == [
            "42\n",
            "{'you said': {'cmd': 'hello'}}\n",
            "{'rank': 7, 'loss': 3.25}\n",
        ]
        assert re.fullmatch(r"\{'loss': 0\.\d+\}\n", printed[-1])

    @pytest.mark.ssh
    @pytest.mark.thorough
    def test_a_cluster_over_ssh_takes_the_package_along(
        self, installed: Path, here: Path, loopback_sshd: LoopbackNodes
    ) -> None:
        """The nodes' own Python has no miniray: it comes from this one's site-packages."""
        nodes = ",".join(loopback_sshd.hosts)
        options = loopback_sshd.ssh_options
        printed = run(str(installed / "python"), "start.py", nodes, *options, cwd=here)
        assert len(printed.splitlines()) == 2
        for line in printed.splitlines():
            file, prefix = line.split()
            assert "site-packages" not in file
            assert "/miniray-" in file
            assert prefix != str(installed.parent)

    @pytest.mark.ssh
    @pytest.mark.thorough
    def test_so_does_one_from_a_zipapp(
        self, built: tuple[Path, Path], here: Path, loopback_sshd: LoopbackNodes
    ) -> None:
        with zipfile.ZipFile(built[1]) as wheel:
            wheel.extractall(here / "app")
        (here / "work.py").rename(here / "app" / "work.py")
        (here / "start.py").rename(here / "app" / "__main__.py")
        zipapp.create_archive(here / "app", here / "app.pyz", compressed=True)
        options = loopback_sshd.ssh_options
        printed = run(sys.executable, "-I", "app.pyz", "node1", *options, cwd=here)
        assert "/miniray-" in printed


class TestWithoutTheLock:
    """A free-threaded Python, as far as it can be told from within."""

    FAKE = "import sys; sys._is_gil_enabled = lambda: False\n"

    def test_import_is_refused_with_the_way_out(self) -> None:
        script = self.FAKE + "import miniray"
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY
        )
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == (
            "ImportError: miniray needs Python's global lock (GIL), and this is a free-threaded "
            "Python without it; set PYTHON_GIL=1, or take the ordinary build of Python"
        )

    def test_with_the_lock_it_is_python_as_usual(self) -> None:
        script = "import sys; sys._is_gil_enabled = lambda: True; import miniray"
        run(sys.executable, "-c", script, cwd=REPOSITORY)

    def test_a_node_that_has_such_a_python_is_named(self, here: Path) -> None:
        python = here / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$1" "{self.FAKE.strip()};$2"\n')
        python.chmod(0o755)
        script = f"""if True:
            from miniray import Cluster, ClusterError, NodeConfig
            try:
                Cluster([NodeConfig.local(1, python={str(python)!r})]).start("work.tell")
            except ClusterError as error:
                print(error)
        """
        printed = run(sys.executable, "-c", script, cwd=here, PYTHONPATH=str(REPOSITORY))
        assert "miniray needs Python's global lock" in printed
        assert "set PYTHON_GIL=1" in printed
