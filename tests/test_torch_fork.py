"""Workers compute with torch, whatever their parent has computed before."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import miniray

torch = pytest.importorskip("torch")
T = 60.0

COMPUTE = """
import os, sys, threading, time
import torch

def compute():
    matrix = torch.ones(1000, 1000)
    (matrix @ matrix).sum()
    model = torch.nn.Linear(512, 512)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(256, 512)).square().mean().backward()
    optimizer.step()
    return torch.get_num_threads()

def work_fn(channel):
    for _ in channel:
        channel.send(compute())
"""

# Two threads, however few cores there are: one thread has no pool to lose.
PARENT = """
from miniray import Cluster, NodeConfig, Worker
from training import *

def main():
    torch.set_num_threads(2)
    compute()
    for _ in range(2):
        with Worker(work_fn) as worker:
            worker.send("compute")
            print(worker.recv(20))
        compute()
"""


def run(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    (folder / "training.py").write_text(COMPUTE)
    (folder / "script.py").write_text(PARENT + script)
    return subprocess.run(
        [sys.executable, "script.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(miniray.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=T,
    )


@pytest.mark.thorough
@pytest.mark.parametrize(
    "script",
    ["main()\n", "thread = threading.Thread(target=main)\nthread.start()\nthread.join()\n"],
    ids=["main thread", "another thread"],
)
def test_a_worker_computes_after_its_parent_did(tmp_path: Path, script: str) -> None:
    ended = run(tmp_path, script)
    assert (ended.stdout, ended.stderr) == ("2\n2\n", "")


@pytest.mark.thorough
def test_one_thread_and_a_warning_where_the_pool_cannot_be_let_go(tmp_path: Path) -> None:
    old_openmp = (
        "import ctypes\nreal = ctypes.CDLL\nctypes.CDLL = lambda name: real(name or 'libc.so.6')\n"
    )
    ended = run(tmp_path, old_openmp + "main()\n")
    assert ended.stdout == "1\n1\n", ended.stderr
    assert ended.stderr.count("so workers compute in one; torch.set_num_threads") == 1


@pytest.mark.thorough
def test_a_node_whose_module_computes_when_it_is_imported(tmp_path: Path) -> None:
    (tmp_path / "computes.py").write_text(COMPUTE + "torch.set_num_threads(2)\ncompute()\n")
    script = (
        "with Cluster([NodeConfig.local(2)], start_timeout=50) as cluster:\n"
        "    for worker in cluster.start('computes.work_fn'):\n"
        "        worker.send('compute')\n"
        "        print(worker.recv(20))\n"
    )
    ended = run(tmp_path, script)
    assert ended.stdout == "2\n2\n", ended.stderr
