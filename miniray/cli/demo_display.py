"""How the demo is shown: as plain lines, or live with rich where there is a terminal."""

import dataclasses
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from miniray.cli.demo_plot import sparkline

if TYPE_CHECKING:
    from rich.console import RenderableType

LINES_PER_RUN = 10  # how often the plain display reports, whatever the number of steps
MIB = 2**20


@dataclasses.dataclass
class Rank:
    """What is shown of one rank."""

    rank: int
    node: str
    pid: int
    device: str
    held_bytes: int = 0


@dataclasses.dataclass
class Run:
    """One training run: what it has come to, and since when."""

    name: str
    steps: int
    tokens_per_step: int
    losses: list[float] = dataclasses.field(default_factory=list)
    began: float = dataclasses.field(default_factory=time.monotonic)
    seconds: float = 0.0

    def add(self, loss: float) -> None:
        """Note a step's loss."""
        self.losses.append(loss)
        self.seconds = time.monotonic() - self.began

    @property
    def tokens_per_second(self) -> float:
        """The mean rate so far."""
        return len(self.losses) * self.tokens_per_step / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float:
        """How long the rest will take at the rate so far."""
        return (self.steps - len(self.losses)) * self.seconds / max(len(self.losses), 1)

    def describe(self) -> str:
        """Say in one line how far this run is."""
        return (
            f"step {len(self.losses):>{len(str(self.steps))}}/{self.steps}  "
            f"loss {self.losses[-1]:.4f}  {self.tokens_per_second:,.0f} tokens/s  "
            f"{self.seconds_left:.0f} s left"
        )


class Display(Protocol):
    """What the demo wants of a display; it is a context manager."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None: ...
    def say(self, text: str) -> None:
        """Show a text that stays."""
        ...

    def show_ranks(self, ranks: list[Rank], limit_bytes: int | None) -> None:
        """Show the ranks, from now on, and what each may hold."""
        ...

    def show_step(self, run: Run) -> None:
        """Show that a run is one step further."""
        ...


class PlainDisplay:
    """Lines and nothing but lines: for pipes, logs and those who like them."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def say(self, text: str) -> None:
        """Print a text."""
        print(text, flush=True)

    def show_ranks(self, ranks: list[Rank], limit_bytes: int | None) -> None:
        """Print one line a rank, once."""
        if not self._quiet:
            for one in ranks:
                print(f"  rank {one.rank}  {one.node}  pid {one.pid}  {one.device}", flush=True)

    def show_step(self, run: Run) -> None:
        """Print a line every few steps, and for the first and the last."""
        step, every = len(run.losses), max(run.steps // LINES_PER_RUN, 1)
        if not self._quiet and (step % every == 0 or step in (1, run.steps)):
            print(f"  {run.describe()}", flush=True)


class LiveDisplay:
    """A table of the ranks, the progress and the falling loss, redrawn in place."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._ranks: list[Rank] = []
        self._limit_bytes: int | None = None
        self._runs: list[Run] = []
        self._live = Live(console=Console(highlight=False), refresh_per_second=8)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        """Print a text above what is redrawn."""
        self._live.console.print(text, markup=False)

    def show_ranks(self, ranks: list[Rank], limit_bytes: int | None) -> None:
        """Draw these ranks from now on."""
        self._ranks, self._limit_bytes = ranks, limit_bytes
        self._live.update(self._draw())

    def show_step(self, run: Run) -> None:
        """Redraw everything."""
        if run not in self._runs:
            self._runs.append(run)
        self._live.update(self._draw())

    def _draw(self) -> "RenderableType":
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        ranks = Table("rank", "node", "pid", "device", "held", "", box=None, pad_edge=False)
        most = self._limit_bytes or max((one.held_bytes for one in self._ranks), default=0) or 1
        for one in self._ranks:
            bar = ProgressBar(total=most, completed=one.held_bytes, width=24)
            held = f"{one.held_bytes / MIB:.2f} of {most / MIB:.2f} MiB"
            ranks.add_row(str(one.rank), one.node, str(one.pid), one.device, held, bar)
        runs = Table("run", "", "", "loss", box=None, pad_edge=False)
        for run in self._runs:
            bar = ProgressBar(total=run.steps, completed=len(run.losses), width=24)
            runs.add_row(run.name, bar, run.describe(), Text(sparkline(run.losses, 24)))
        return Group(ranks, Text(), runs)


def make_display(*, plain: bool, quiet: bool) -> Display:
    """Return the live display if stdout is a terminal and rich is installed, else the plain one."""
    if plain or quiet or not sys.stdout.isatty():
        return PlainDisplay(quiet=quiet)
    try:
        return LiveDisplay()
    except ImportError:
        return PlainDisplay()
