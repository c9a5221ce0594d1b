"""The demo's curves: a picture of the losses, and a line of blocks for the terminal."""

import itertools
from collections.abc import Sequence
from pathlib import Path

BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int = 60) -> str:
    """Return the values as one line of at most `width` blocks, the highest value the tallest."""
    if not values:
        return ""
    count = min(width, len(values))
    edges = [index * len(values) // count for index in range(count + 1)]
    means = [sum(values[begin:end]) / (end - begin) for begin, end in itertools.pairwise(edges)]
    lowest, highest = min(means), max(means)
    scale = (len(BLOCKS) - 1) / (highest - lowest) if highest > lowest else 0.0
    return "".join(BLOCKS[round((mean - lowest) * scale)] for mean in means)


def write_picture(file: Path, title: str, sharded: Sequence[float], alone: Sequence[float]) -> None:
    """Draw both runs' losses over each other, and their difference below; write a PNG.

    Raises ImportError if matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")  # draws into a file; there may be no screen
    from matplotlib import pyplot

    steps = range(1, len(sharded) + 1)
    differences = [abs(one - other) for one, other in zip(sharded, alone, strict=True)]
    figure, (losses, drift) = pyplot.subplots(
        2, 1, figsize=(8, 5.6), dpi=150, sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    losses.plot(steps, alone, color="#f2a33c", linewidth=5, alpha=0.7, label="one process")
    losses.plot(steps, sharded, color="#1f5fa8", linewidth=1.5, label="sharded with FSDP2")
    losses.set_title(title, loc="left")
    losses.set_ylabel("loss (nats per byte)")
    losses.legend(frameon=False)
    # A difference of exactly zero has no place on a logarithmic axis.
    drift.semilogy(steps, [max(one, 1e-9) for one in differences], color="#1f5fa8", linewidth=1)
    drift.axhline(1e-5, color="#b03a2e", linewidth=1, linestyle="--")
    drift.text(1, 1.2e-5, "allowed: 1e-5", color="#b03a2e", va="bottom", fontsize="small")
    drift.text(
        0.99, 0.06, f"largest: {max(differences):.1e}", ha="right", fontsize="small",
        transform=drift.transAxes,
    )  # fmt: skip
    drift.set_ylim(1e-9, 2e-4)
    drift.set_ylabel("difference (nats)")
    drift.set_xlabel("step")
    for axes in (losses, drift):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file)
    pyplot.close(figure)
