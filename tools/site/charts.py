"""Draw how costs grow: one chart for each of the benchmarks' curves, both axes logarithmic."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.measure import LIMIT, OURS
from tools.site.figures import Figure

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 66, 20, 48, 44
LEGEND_PX, LETTER_PX = 34, 7
UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))
BINARY = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B"))


# Each chart of the site: the name of its curve, and who is meant by ours and by the limit.
CHARTS = {
    "message": ("an array to a Worker and a short answer", "Worker", "bare socketpair"),
    "message-tcp": ("an array to a RemoteWorker and a short answer", "RemoteWorker", "bare TCP"),
    "buffers": ("a list of `bytes` of 64 each, to a Worker", "Worker", ""),
    "broadcast": ("4 MiB to each of N Workers", "broadcast", ""),
    "broadcast-tcp": ("4 MiB to each of N RemoteWorkers", "broadcast", ""),
    "workers": ("a small dict to N Workers and back, with `wait`", "wait", "bare epoll loop"),
    "started": ("N Workers started, each with a word to say", "Worker", "fork and socketpair"),
    "nodes": (
        "a cluster of N local nodes, until a worker on each has answered",
        "Cluster",
        "as many Pythons with the same imports",
    ),
}


def draw_all(results: dict[str, Any]) -> dict[str, Figure]:
    """Return each chart of the site by its name."""
    curves = {curve["name"]: curve for curve in results["curves"]}
    return {
        chart: draw(curves[name], {OURS: ours, LIMIT: limit})
        for chart, (name, ours, limit) in CHARTS.items()
    }


def draw(curve: dict[str, Any], names: dict[str, str]) -> Figure:
    """Return the chart of one curve of results.json; `names` says who ours and the limit are."""
    sizes, series = curve["sizes"], curve["series"]
    label = size_label if curve["axis"] == "bytes" else "{:,}".format
    low, high = _decades(itertools.chain(*series.values()))
    figure = Figure(WIDTH, HEIGHT, _describe(curve, names, label), kind="chart")
    x_of = _scale(math.log(sizes[0]), math.log(sizes[-1]), LEFT, WIDTH - RIGHT)
    y_of = _scale(low, high, HEIGHT - BOTTOM, TOP)
    for decade in range(low, high + 1):
        y = y_of(decade)
        figure.line(LEFT, y, WIDTH - RIGHT, y, "plain grid")
        figure.text(LEFT - 6, y + 4, value_label(10.0**decade, curve["unit"]), anchor="end")
    for size in _ticks(sizes):
        x = x_of(math.log(size))
        figure.line(x, TOP, x, HEIGHT - BOTTOM, "plain grid")
        figure.text(x, HEIGHT - BOTTOM + 18, label(size))
    if curve["axis"] != "bytes":
        figure.text((LEFT + WIDTH - RIGHT) // 2, HEIGHT - 6, curve["axis"])
    legend = LEFT
    for number, (who, values) in enumerate(series.items()):
        kind = {OURS: "ours", LIMIT: "limit"}.get(who, f"peer{number}")
        points = " ".join(
            f"{x_of(math.log(size))},{y_of(math.log10(value))}"
            for size, value in zip(sizes, values, strict=True)
        )
        figure.parts.append(f'<polyline class="{kind}" points="{points}"/>')
        name = names.get(who, who)
        figure.parts.append(f'<polyline class="{kind}" points="{legend},20 {legend + 24},20"/>')
        figure.text(legend + 30, 24, name, anchor="start")
        legend += LEGEND_PX + LETTER_PX * len(name) + 14
    return figure


def value_label(value: float, unit: str) -> str:
    """Return a value of an axis with a unit that makes it short."""
    if unit != "s":
        return f"{value:,.0f} {unit}".strip() if value >= 1000 else f"{value:g} {unit}".strip()
    factor, name = next((one for one in UNITS if value >= one[0] * 0.999), UNITS[-1])
    return f"{value / factor:.3g} {name}"


def size_label(nbytes: int) -> str:
    """Return a size as people say it."""
    factor, name = next(one for one in BINARY if nbytes >= one[0])
    return f"{nbytes // factor} {name}"


def _describe(curve: dict[str, Any], names: dict[str, str], label: Any) -> str:
    ends = "; ".join(
        f"{names.get(who, who)} from {value_label(values[0], curve['unit'])} "
        f"to {value_label(values[-1], curve['unit'])}"
        for who, values in curve["series"].items()
    )
    first, last = (label(curve["sizes"][at]) for at in (0, -1))
    axis = "" if curve["axis"] == "bytes" else f" {curve['axis']}"
    return f"{curve['name']}, from {first} to {last}{axis}: {ends}"


def _decades(values: Iterator[float]) -> tuple[int, int]:
    logs = [math.log10(value) for value in values if value > 0]
    return math.floor(min(logs)), max(math.ceil(max(logs)), math.floor(min(logs)) + 1)


def _ticks(sizes: Sequence[int]) -> list[int]:
    """Return at most eight of the sizes, among them the last."""
    step = math.ceil((len(sizes) - 1) / 7) or 1
    return list(sizes[::-step])


def _scale(low: float, high: float, begin: int, end: int) -> Any:
    spread = (high - low) or 1.0
    return lambda value: round(begin + (value - low) / spread * (end - begin))
