"""The benchmarks run, print their table and write their JSON; speed is no test's business."""

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import instructions, report
from benchmarks.measure import LIMIT, OURS, Figure, interleave

REPOSITORY = Path(__file__).resolve().parents[1]
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="pins processes to cores")


@linux_only
def test_quick_run_prints_the_table_and_writes_json(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    printed = run_benchmarks("--quick", "--only", "small", "--json", str(file))
    figures = json.loads(file.read_text())["figures"]
    assert [figure["name"].rpartition(", ")[2] for figure in figures] == ["Worker", "RemoteWorker"]
    for figure in figures:
        line = next(line for line in printed.splitlines() if line.startswith(figure["name"]))
        assert f"{figure['ratio']:.2f}x" in line
        assert figure["verdict"] in line
    assert f"{sum(one['verdict'] == 'missed' for one in figures)} targets missed" in printed


@linux_only
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["stream", "tensor", "start", "fsdp", "many"])
def test_quick_run_of_each_other_benchmark(name: str) -> None:
    pytest.importorskip("torch")
    assert "targets missed" in run_benchmarks("--quick", "--only", name)


@linux_only
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_small_message_takes_no_more_instructions_than_it_did() -> None:
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind counts instructions, and is not installed")
    before = instructions.committed().get(platform.python_version())
    if before is None:
        pytest.skip("no figure for this Python: python -m benchmarks.instructions --write")
    assert instructions.count_one_message() <= instructions.GROWTH_MAX * before


def test_published_results_are_of_a_full_run() -> None:
    results = report.read_results()
    assert len(results["figures"]) >= 8
    for figure in results["figures"]:
        assert figure["ratio_spread"]["count"] >= 5
        assert figure["name"] in report.as_markdown(results)


def test_contestants_take_turns_after_a_warm_up() -> None:
    calls = []

    def contestant(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    samples = interleave({OURS: lambda: contestant("o"), LIMIT: lambda: contestant("l")}, 2)
    assert "".join(calls) == "ololol"
    assert samples == {OURS: [3.0, 5.0], LIMIT: [4.0, 6.0]}


@pytest.mark.parametrize(
    ("target", "higher_is_better", "verdict"),
    [
        (2.0, False, "ok"),
        (1.9, False, "missed"),
        (2.0, True, "ok"),
        (2.1, True, "missed"),
        (None, False, ""),
    ],
)
def test_verdict_compares_the_median_of_neighbours(
    target: float | None, higher_is_better: bool, verdict: str
) -> None:
    samples = {OURS: [2.0, 30.0, 4.0], LIMIT: [1.0, 10.0, 2.0]}
    figure = Figure("f", "s", samples, target, higher_is_better)
    assert figure.ratio == 2.0
    assert figure.verdict == verdict


def run_benchmarks(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
