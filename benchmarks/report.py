"""Turn figures into a table for people, JSON for programs, and Markdown for the README.

python -m benchmarks.report prints results.json in Markdown; --write puts it into README.md, too.
"""

import datetime
import json
import os
import platform
import statistics
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.measure import LIMIT, OURS, Curve, Figure
from tools.count_lines import README, replace_table

RESULTS = Path(__file__).with_name("results.json")
HEADINGS = ("", "ours", "limit", "ratio", "target", "")
WIDTHS = (46, 12, 12, 8, 10, 7)


def describe_machine() -> dict[str, Any]:
    """Return what one must know of the machine to compare figures."""
    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch = "none"
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch,
        "load_before": round(os.getloadavg()[0], 2),
    }


def as_json(machine: dict[str, Any], measured: Iterable[Figure | Curve]) -> dict[str, Any]:
    """Return what results.json holds: each figure's medians and their spread, and the curves."""
    measured = list(measured)
    return {
        "measured": datetime.date.today().isoformat(),
        "machine": machine,
        "figures": [_figure_as_json(one) for one in measured if isinstance(one, Figure)],
        "curves": [_curve_as_json(one) for one in measured if isinstance(one, Curve)],
    }


def heading() -> str:
    """Return the table's first line."""
    return _line(HEADINGS)


def rows(measured: Figure | Curve) -> str:
    """Return the table's line of one figure, and one more for each peer.

    Of a curve these are its values at the largest size, with the ratio where it is worst.
    """
    below = []
    if isinstance(measured, Curve):
        one = _curve_as_json(measured)
        value = {name: _value(values[-1], one["unit"]) for name, values in one["series"].items()}
        ratio = f"{measured.worst:.2f}x" if measured.ratios else ""
        below.append(f"  at {measured.sizes[-1]:,} {measured.axis}; the worst ratio of all")
    else:
        one = _figure_as_json(measured)
        value = {name: _value(of["median"], one["unit"]) for name, of in _contestants(one)}
        ratio = f"{one['ratio']:.2f}x"
    cells = (one["name"], value[OURS], value.get(LIMIT, ""), ratio, _target(one), one["verdict"])
    lines = [_line(cells), *(_line((words, *[""] * 5)) for words in below)]
    for name in value:
        if name not in (OURS, LIMIT):
            lines.append(_line((f"  beside it: {name}", value[name], "", "", "", "")))
    return "\n".join(lines)


def as_markdown(results: dict[str, Any]) -> str:
    """Return the table in Markdown, with the machine below it."""
    lines = ["| | ours | the limit | ratio | target | |", "|---|---:|---:|---:|---:|---|"]
    for figure in results["figures"]:
        value = {name: _value(one["median"], figure["unit"]) for name, one in _contestants(figure)}
        peers = "".join(f" ({name}: {value[name]})" for name in value if name not in (OURS, LIMIT))
        lines.append(
            f"| {figure['name']}{peers} | {value[OURS]} | {value[LIMIT]} | "
            f"{figure['ratio']:.2f}x | {_target(figure)} | {figure['verdict']} |"
        )
    for curve in results["curves"]:
        if curve["target"] is not None:
            end = {
                name: _value(values[-1], curve["unit"]) for name, values in curve["series"].items()
            }
            lines.append(
                f"| {curve['name']}, at the worst of {len(curve['sizes'])} sizes (values: "
                f"{curve['sizes'][-1]:,}) | {end[OURS]} | {end[LIMIT]} | "
                f"{max(curve['ratios']):.2f}x | {_target(curve)} | {curve['verdict']} |"
            )
    return "\n".join([*lines, "", f"Measured {results['measured']}: {machine_line(results)}."])


def machine_line(results: dict[str, Any]) -> str:
    """Return the machine's facts in one line."""
    machine = results["machine"]
    return (
        f"{machine['cores']} cores ({machine['processor']}), {machine['system']}, "
        f"Python {machine['python']}, torch {machine['torch']}"
    )


def read_results() -> dict[str, Any]:
    """Return the results of the last full run."""
    results: dict[str, Any] = json.loads(RESULTS.read_text())
    return results


def _figure_as_json(figure: Figure) -> dict[str, Any]:
    return {
        "name": figure.name,
        "unit": figure.unit,
        "samples": {name: _spread(values) for name, values in figure.samples.items()},
        "ratio": round(figure.ratio, 3),
        "ratio_spread": _spread(figure.ratios),
        "target": figure.target,
        "higher_is_better": figure.higher_is_better,
        "verdict": figure.verdict,
    }


def _curve_as_json(curve: Curve) -> dict[str, Any]:
    series = {
        name: [float(f"{value:.4g}") for value in values] for name, values in curve.series.items()
    }
    ratios = [round(ratio, 3) for ratio in curve.ratios]
    fields = {"name": curve.name, "axis": curve.axis, "unit": curve.unit, "sizes": curve.sizes}
    return {
        **fields,
        "series": series,
        "ratios": ratios,
        "target": curve.target,
        "verdict": curve.verdict,
    }


def _spread(values: Iterable[float]) -> dict[str, Any]:
    values = sorted(values)
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    named = {"median": statistics.median(values), "quartile_1": low, "quartile_3": high}
    named |= {"min": values[0], "max": values[-1]}
    return {name: float(f"{value:.4g}") for name, value in named.items()} | {"count": len(values)}


def _contestants(figure: dict[str, Any]) -> Iterable[tuple[str, dict[str, float]]]:
    contestants: dict[str, dict[str, float]] = figure["samples"]
    return contestants.items()


def _value(value: float, unit: str) -> str:
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f} {unit}" if rounded >= 1000 else f"{rounded:g} {unit}"


def _target(figure: dict[str, Any]) -> str:
    if figure["target"] is None:
        return "-"
    # With a space that does not break: the column is narrow.
    return (
        f"{'>=' if figure.get('higher_is_better') else '<='}\N{NO-BREAK SPACE}{figure['target']}x"
    )


def _line(cells: Iterable[str]) -> str:
    name, *rest = (
        cell.ljust(width) if index in (0, 5) else cell.rjust(width)
        for index, (cell, width) in enumerate(zip(cells, WIDTHS, strict=True))
    )
    return "  ".join([name, *rest]).rstrip()


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # no Linux
        pass
    return platform.machine()


if __name__ == "__main__":
    table = as_markdown(read_results())
    print(table)
    if "--write" in sys.argv[1:]:
        README.write_text(replace_table(README.read_text(), table, "benchmarks"))
