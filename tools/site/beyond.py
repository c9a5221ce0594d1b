"""What 10,000 ranks would cost one coordinator: a straight line through few, held up to more."""

from typing import Any, NamedTuple

from benchmarks.measure import OURS
from tools.site.charts import value_label

FITTED_MAX = 100  # the line goes by what was measured up to here
ASKED = {"ranks": 10_000, "nodes": 1_250}
COSTS = (
    "descriptors for N ranks",
    "memory for N ranks",
    "a word to each of N ranks",
    "one of N ranks speaks",
    "descriptors for N nodes",
)


class Line(NamedTuple):
    """A cost that grows with a number: so much to begin with, and so much for each."""

    start: float
    each: float

    def at(self, count: int) -> float:
        """Return what so many cost."""
        return self.start + self.each * count


def fit(sizes: list[int], values: list[float]) -> Line:
    """Return the straight line through points that misses them least, by their squares."""
    mean_size, mean_value = sum(sizes) / len(sizes), sum(values) / len(values)
    spread = sum((size - mean_size) ** 2 for size in sizes)
    together = zip(sizes, values, strict=True)
    each = sum((size - mean_size) * (value - mean_value) for size, value in together) / spread
    return Line(mean_value - each * mean_size, each)


def as_markdown(results: dict[str, Any]) -> str:
    """Return the table: for each cost the model, both of the largest size, and what is asked."""
    lines = [
        "| | for each | the model's figure | measured | for 10,000 ranks on 1,250 nodes |",
        "|---|---:|---:|---:|---:|",
    ]
    for curve in results["curves"]:
        axis, sizes, values = curve["axis"], curve["sizes"], curve["series"][OURS]
        if not curve["name"].startswith(COSTS):
            continue
        few = [size for size in sizes if size <= FITTED_MAX and size != sizes[-1]]
        line = fit(few, values[: len(few)])
        unit = curve["unit"]
        each, model, measured, asked = (
            value_label(float(f"{value:.3g}"), unit)
            for value in (line.each, line.at(sizes[-1]), values[-1], line.at(ASKED[axis]))
        )
        where = f"{sizes[-1]:,} {axis}"
        lines.append(f"| {curve['name']} | {each} | {model} ({where}) | {measured} | **{asked}** |")
    return "\n".join(lines)
