"""The benchmarks run, print their table and write their JSON; speed is no test's business."""

import json
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import instructions, report
from benchmarks.__main__ import NAMES
from benchmarks.measure import LIMIT, OURS, Curve, Figure, interleave
from tools.site import beyond, charts

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
@pytest.mark.parametrize("name", [name for name in NAMES if name != "small"])
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
    limit = instructions.GROWTH_MAX * before
    # Another process may have something compiled anew in between: a second count is without that.
    assert any(instructions.count_one_message() <= limit for _ in range(2))


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


def test_a_curve_is_judged_where_it_is_worst() -> None:
    curve = Curve("c", "workers", "s", target=1.25)
    for size, ours in ((1, 2.6), (10, 3.0), (100, 2.2)):
        curve.add(size, {OURS: [ours, ours, 90.0], LIMIT: [2.0, 2.0, 2.0]})
    assert curve.sizes == [1, 10, 100]
    assert curve.series == {OURS: [2.6, 3.0, 2.2], LIMIT: [2.0, 2.0, 2.0]}
    assert curve.worst == 1.5
    assert curve.verdict == "missed"


def test_published_curves_are_drawn_and_modelled() -> None:
    results = report.read_results()
    drawn = charts.draw_all(results)
    assert set(drawn) == set(charts.CHARTS)
    table = beyond.as_markdown(results)
    assert all(cost in table for cost in beyond.COSTS)
    assert "| 1 | 1,000 (1,000 ranks) | 1,000 | **10,000** |" in table  # a descriptor each


def test_a_chart_stays_within_its_frame_and_says_its_ends() -> None:
    curve = {
        "name": "c", "axis": "bytes", "unit": "s", "sizes": [64, 1 << 20],
        "series": {OURS: [2e-5, 3e-3], "peer": [4e-6, 1.5]},
    }  # fmt: skip
    svg = charts.draw(curve, {OURS: "Worker"}).as_svg("c")
    points = re.findall(r"(\d+),(\d+)", " ".join(re.findall(r'points="([^"]*)"', svg)))
    assert all(0 <= int(x) <= charts.WIDTH and 0 <= int(y) <= charts.HEIGHT for x, y in points)
    assert "from 64 B to 1 MiB: Worker from 20 us to 3 ms; peer from 4 us to 1.5 s" in svg
    assert "marker-end" not in svg.partition("</defs>")[2]


def test_the_model_is_the_line_that_few_points_give() -> None:
    line = beyond.fit([10, 30, 100], [25.0, 65.0, 205.0])
    assert line.start == pytest.approx(5.0)
    assert line.at(10_000) == pytest.approx(20_005.0)


def run_benchmarks(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
