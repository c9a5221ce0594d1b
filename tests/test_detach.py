"""`miniray run --detach` and `miniray attach`: a run goes on without whoever started it."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ssh
from tests.test_run import LIMIT_S, MINIRAY, here, write

__all__ = ["here"]  # a fixture, for all tests

# It prints, waits for a file, prints again and ends with a status; a grandchild has its own session.
WAITS = """
    import os, signal, sys, time
    rank = os.environ["RANK"]
    if os.fork() == 0:
        os.setsid()
        signal.pause()
    print("waits", os.getpid(), os.getcwd())
    while not os.path.exists({go!r}):
        time.sleep(0.02)
    print("goes on")
    sys.exit({status} if rank == "1" else 0)
"""


@pytest.fixture(autouse=True)
def home(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be at home in an empty folder, without a systemd of one's own."""
    home = here / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    return home


@pytest.fixture
def nodes(here: Path, home: Path) -> Iterator[ssh.LoopbackNodes]:
    """Yield node1 and node2, whose user is at home in a folder of the test's own."""
    if reason := ssh.missing():
        pytest.skip(reason)
    force = f'exec env HOME={home} /bin/sh -c "$SSH_ORIGINAL_COMMAND"'
    (here / "ssh").mkdir()
    with ssh.loopback_nodes(here / "ssh", force_command=force) as nodes:
        yield nodes


def miniray(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*MINIRAY, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    print(done.stdout, done.stderr)
    return done


def ssh_words(nodes: ssh.LoopbackNodes) -> list[str]:
    return [f"--ssh-option={word}" for word in nodes.ssh_options]


@pytest.mark.thorough
class TestOverSsh:
    def test_a_run_goes_on_when_its_launcher_and_terminal_are_gone(
        self, nodes: ssh.LoopbackNodes, here: Path
    ) -> None:
        work = here / "work"
        work.mkdir()
        os.chdir(work)
        script = write(WAITS.format(go=str(here / "go"), status=3))
        where = ["-H", "node1:1,node2:1", "--python", sys.executable, *ssh_words(nodes)]
        done = miniray("run", "--detach", *where, script)
        assert done.returncode == 0
        (here / "go").touch()
        done = miniray("attach", "1", "-H", "node1", "--python", sys.executable, *ssh_words(nodes))
        assert done.returncode == 3
        assert len(re.findall("goes on", done.stdout)) == 2
