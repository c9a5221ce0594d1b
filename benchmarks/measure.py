"""Time contestants in turns, and keep everything that was timed."""

import contextlib
import dataclasses
import os
import resource
import signal
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import NamedTuple, TypeVar

from miniray import Channel, process
from miniray.worker_server import WorkerServer

KEY = b"benchmark" * 4
OURS, LIMIT = "ours", "limit"
End = TypeVar("End", socket.socket, "Connection[object, object]")


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


@dataclasses.dataclass
class Curve:
    """How a cost grows along an axis: each contestant's median at each size.

    `worst` is the highest ratio of ours to limit at any size, each the median of neighbours'.
    """

    name: str
    axis: str
    unit: str
    sizes: list[int] = dataclasses.field(default_factory=list)
    series: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    ratios: list[float] = dataclasses.field(default_factory=list)
    target: float | None = None

    def add(self, size: int, samples: Mapping[str, Sequence[float]]) -> None:
        """Take in what was measured at the next size."""
        self.sizes.append(size)
        for name, values in samples.items():
            self.series.setdefault(name, []).append(statistics.median(values))
        if OURS in samples and LIMIT in samples:
            self.ratios.append(Figure("", self.unit, samples).ratio)

    @property
    def worst(self) -> float:
        """The ratio where it is worst."""
        return max(self.ratios)

    @property
    def verdict(self) -> str:
        """Whether the target is met at every size: "ok", "missed", or "" without one."""
        if self.target is None:
            return ""
        return "ok" if self.worst <= self.target else "missed"


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


@contextlib.contextmanager
def other_end(pair: tuple[End, End], serve: Callable[[End], object]) -> Iterator[End]:
    """Yield one end of a connected pair, while a child serves the other until we hang up."""
    ours, theirs = pair

    def run_child() -> None:
        ours.close()
        with contextlib.suppress(EOFError):
            serve(theirs)

    with ours, forked(run_child):
        theirs.close()
        yield ours


class Served(NamedTuple):
    """Where a server listens."""

    host: str
    port: int


@contextlib.contextmanager
def serving(
    work_fn: Callable[[Channel], object],
    *,
    key: bytes,
    core: int | None = None,
    max_workers: int = 64,
) -> Iterator[Served]:
    """Run a WorkerServer in a child, which makes it: it belongs to the process that does."""
    read_end, write_end = os.pipe()

    def serve() -> None:
        os.close(read_end)
        with WorkerServer(work_fn, key=key, max_workers=max_workers) as server:
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


@contextlib.contextmanager
def pinned(*cores: int) -> Iterator[None]:
    """Keep this process, and what it forks meanwhile, on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def seconds(call: Callable[[], object], rounds: int = 1) -> float:
    """Return the seconds that one of so many calls takes."""
    start = time.perf_counter()
    for _ in range(rounds):
        call()
    return (time.perf_counter() - start) / rounds


def allow_descriptors(count: int) -> None:
    """Let this process open as many, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def pin(core: int) -> None:
    """Keep this process, and what it forks from now on, on one core."""
    os.sched_setaffinity(0, {core})
