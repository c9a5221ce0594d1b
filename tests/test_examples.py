"""The examples as their readers run them: as scripts."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

EXAMPLES = Path(__file__).parents[1] / "examples"
DONE_S = 100.0


def run_example(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *command],
        cwd=EXAMPLES,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent)},
        capture_output=True,
        text=True,
        timeout=DONE_S,
        check=False,
    )


def train(*options: str) -> str:
    ended = run_example("train_distributed_miniray.py", "--fake-gpus", *options)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def find_sha256(event: str, printed: str) -> str:
    found = re.search(rf"^{event} sha256 ([0-9a-f]{{64}})$", printed, re.M)
    assert found is not None, printed
    return found[1]


def test_parallel_map_does_every_task() -> None:
    ended = run_example("parallel_map.py", "--workers", "3", "--tasks", "12")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.endswith("12 of 12 tasks done\n")
    assert "task 2000: 303\n" in ended.stdout  # there are 303 primes below 2000


def test_parallel_map_reports_the_task_that_was_lost_and_does_the_rest() -> None:
    ended = run_example("parallel_map.py", "--workers", "2", "--tasks", "6", "--crash")
    assert ended.returncode == 1
    assert re.search(r"task -1: worker \d+ was killed by SIGKILL", ended.stdout)
    assert ended.stdout.endswith("6 of 7 tasks done\n")


def test_parallel_map_says_what_is_left_when_no_worker_is() -> None:
    ended = run_example("parallel_map.py", "--workers", "1", "--tasks", "4", "--crash")
    assert ended.returncode == 1
    assert ended.stderr.startswith("none of 1 workers is left; not done: ")
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_rollouts_improve() -> None:
    ended = run_example("rollouts.py", "--rounds", "15")
    assert ended.returncode == 0, ended.stderr
    scores = [float(score) for score in re.findall(r"mean score +([\d.]+)$", ended.stdout, re.M)]
    assert len(scores) == 15
    assert scores[0] < 40
    assert scores[-1] > 2 * scores[0]


@pytest.mark.slow
def test_training_resumes_with_half_the_ranks_from_equal_parameters(tmp_path: Path) -> None:
    where = ("--checkpoints", str(tmp_path))
    first = train("--local", "2x4", "--steps", "4", "--save-every", "2", *where)
    assert first.startswith("8 ranks")
    saved = find_sha256("saved step 4", first)
    assert find_sha256("saved step 2", first) != saved

    again = train("--local", "2x2", "--steps", "6", *where)
    assert again.startswith("4 ranks")
    assert find_sha256("loaded step 4", again) == saved
    assert re.findall(r"^step (\d+) ", again, re.M) == ["5", "6"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "latest",
        "step-000002",
        "step-000004",
        "step-000006",
    ]


@pytest.mark.slow
def test_torchrun_computes_the_same_and_resumes_what_the_cluster_saved(tmp_path: Path) -> None:
    ours = train("--local", "1x2", "--steps", "3", "--checkpoints", str(tmp_path / "ours"))
    script = ("train_distributed_miniray.py", "--fake-gpus", "--checkpoints")
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2", *script)
    theirs = run_example(*torchrun, str(tmp_path / "theirs"), "--steps", "3")
    assert theirs.returncode == 0, theirs.stderr
    saved = find_sha256("saved step 3", ours)
    assert find_sha256("saved step 3", theirs.stdout) == saved

    again = run_example(*torchrun, str(tmp_path / "ours"), "--steps", "4")
    assert again.returncode == 0, again.stderr
    assert find_sha256("loaded step 3", again.stdout) == saved


@pytest.mark.slow
def test_a_rank_that_dies_is_named(tmp_path: Path) -> None:
    training = subprocess.Popen(
        [
            *(sys.executable, "train_distributed_miniray.py", "--local", "2x2", "--fake-gpus"),
            *("--steps", "100000", "--save-every", "100000", "--checkpoints", str(tmp_path)),
        ],
        cwd=EXAMPLES,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with training:
        assert training.stdout is not None
        assert training.stderr is not None
        pids = training.stdout.readline().split("pids ")[1].split()
        for line in training.stdout:
            if line.startswith("step 2 "):
                break
        os.kill(int(pids[2]), signal.SIGKILL)
        _, errors = training.communicate(timeout=20.0)
    assert training.returncode == 1
    last = errors.splitlines()[-1]
    assert re.match(r"training failed: rank 2 at node2:\d+ was killed by SIGKILL", last), errors
