"""Time contestants in turns, and keep everything that was timed."""

import contextlib
import dataclasses
import os
import signal
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from miniray import Channel, process
from miniray.worker_server import WorkerServer

KEY = b"benchmark" * 4
OURS, LIMIT = "ours", "limit"


@dataclasses.dataclass
class Figure:
    """What one comparison measured: a list of samples for "ours", for "limit" and for each peer.

    The ratio is ours to limit. With a `target` it should be at most that or, where a higher value
    is better, at least that.
    """

    name: str
    unit: str
    samples: Mapping[str, Sequence[float]]
    target: float | None = None
    higher_is_better: bool = False

    @property
    def ratio(self) -> float:
        """The median of the ratios of neighbours, which a machine's drift disturbs least."""
        return statistics.median(self.ratios)

    @property
    def ratios(self) -> list[float]:
        """Ours to limit, once for every repetition."""
        pairs = zip(self.samples[OURS], self.samples[LIMIT], strict=True)
        return [ours / limit for ours, limit in pairs]

    @property
    def verdict(self) -> str:
        """Whether the target is met: "ok", "missed", or "" without one."""
        if self.target is None:
            return ""
        met = self.ratio >= self.target if self.higher_is_better else self.ratio <= self.target
        return "ok" if met else "missed"


def interleave(
    contestants: Mapping[str, Callable[[], float]], repetitions: int, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Let each contestant run in turn, `repetitions` times, and return what each call returned."""
    if warm_up:
        for run in contestants.values():
            run()
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repetitions):
        for name, run in contestants.items():
            samples[name].append(run())
    return samples


@contextlib.contextmanager
def forked(run: Callable[[], object], *, core: int | None = None) -> Iterator[process.Process]:
    """Run a function in a child, on one core if so wanted, and end it afterwards."""

    def run_there() -> int:
        if core is not None:
            pin(core)
        run()
        return 0

    child = process.fork(run_there)
    try:
        yield child
    finally:
        process.stop([child], 0.0)


class Served(NamedTuple):
    """Where a server listens."""

    host: str
    port: int


@contextlib.contextmanager
def serving(
    work_fn: Callable[[Channel], object], *, key: bytes, core: int | None = None
) -> Iterator[Served]:
    """Run a WorkerServer in a child, which makes it: it belongs to the process that does."""
    read_end, write_end = os.pipe()

    def serve() -> None:
        os.close(read_end)
        with WorkerServer(work_fn, key=key) as server:
            os.write(write_end, f"{server.host} {server.port}".encode())
            os.close(write_end)
            server.serve_forever()

    with forked(serve, core=core) as child:
        os.close(write_end)
        with open(read_end) as pipe:
            host, port = pipe.read().split()
        yield Served(host, int(port))
        os.kill(child.pid, signal.SIGTERM)
        child.wait(timeout=10.0)


def two_cores() -> tuple[int, int]:
    """Return a core for us and another one for the other side, if there is another one."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[-1], cores[-2] if len(cores) > 1 else cores[-1]


def pin(core: int) -> None:
    """Keep this process, and what it forks from now on, on one core."""
    os.sched_setaffinity(0, {core})
