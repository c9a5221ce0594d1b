"""Coordinators whose ranks hang, in processes of their own, and what is said of them elsewhere."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests import hanging
from tests.support import poll
from tests.support.namespaces import Nodes

T = 300.0  # for what is bound to come, however busy the machine is
LOOPS = ("loop", "loop_in_c")
LOOPED_NS = 20_000_000


class Hung:
    """A coordinator in a process of its own, and its four ranks, which hang."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pids: list[int] = []

    def hang(self, how: str) -> None:
        """Have four ranks hang, in place of those before; return when each is where it hangs."""
        assert self.process.stdin is not None
        if self.pids:
            self.process.send_signal(signal.SIGINT)
        self.process.stdin.write(f"{how}\n")
        self.process.stdin.flush()
        self.pids = json.loads(self.next_line())
        culprit = self.pids[hanging.CULPRIT]
        if how in LOOPS:  # to get there takes less
            began_ns = int(schedule_of(culprit)[0])
            poll.until(lambda: int(schedule_of(culprit)[0]) - began_ns > LOOPED_NS, timeout_s=T)
        elif how == "stop":
            poll.until(lambda: state_of(culprit) == "T", timeout_s=T)
        asleep = [pid for pid in self.pids if pid != culprit or how not in (*LOOPS, "stop")]
        last: list[object] = []

        def sleep_on() -> bool:
            """Return whether all sleep, as they did when they were looked at before."""
            before = list(last)
            last[:] = [(state_of(pid), schedule_of(pid)) for pid in asleep]
            return before == last and {state_of(pid) for pid in [*asleep, self.process.pid]} == {
                "S"
            }

        poll.until(sleep_on, timeout_s=T)

    def next_line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@contextlib.contextmanager
def hung(
    module: str, how: str, options: dict[str, Any], nodes: Nodes | None = None
) -> Iterator[Hung]:
    words = [sys.executable, "-m", module, json.dumps(options)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(words, **pipes) if nodes is None else nodes.popen(words, **pipes)
    assert process.stdin is not None
    ranks = Hung(process)
    try:
        ranks.hang(how)
        yield ranks
    finally:
        process.stdin.close()  # there is no next time
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        process.stdout.close()
        process.wait(T)


def miniray(*words: str, nodes: Nodes | None = None) -> str:
    """Return what a command prints in another terminal."""
    argv = [sys.executable, "-m", "miniray", *words]
    env = {**os.environ, "COLUMNS": "400"}
    if nodes is not None:
        done = nodes.run(argv, env=env)
    else:
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=T)
    print(done.stdout, done.stderr, file=sys.stderr)
    assert done.returncode == 0, done.stderr
    return done.stdout


def line_of(what: str, module: str = "hanging") -> str:
    """Return a line of a hanging rank's as `stacks` names it."""
    lines = Path(hanging.__file__).with_name(f"{module}.py").read_text().splitlines()
    (number,) = (n for n, line in enumerate(lines, 1) if line.endswith(f"# here: {what}"))
    return f"tests/{module}.py:{number} "


def verdict_of(said: str) -> str:
    return said.splitlines()[1]


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def schedule_of(pid: int) -> list[str]:
    """Return for how long its main thread has run and waited for a core (ns), and how often."""
    return Path(f"/proc/{pid}/schedstat").read_text().split()


def check_verdict(how: str, verdict: str) -> None:
    """Raise AssertionError if a verdict does not name whoever hangs in a collective, and where."""
    behind, _, others = verdict.partition(", while ")
    if how == "two_ranks_recv":
        assert behind.startswith("Ranks 1-2 wait in recv for each other, and nobody sends: rank 1 ")
        assert line_of("recv of rank 1", "hanging_torch") in behind, verdict
        assert line_of("recv of rank 2", "hanging_torch") in behind, verdict
        return
    wait = line_of("wait", "hanging_torch")
    assert others.startswith(f"ranks 0-1, 3 wait in all_reduce at {wait}"), verdict
    if how == "skip":
        assert behind.startswith("Rank 2 is in another call than the others: it waits in barrier ")
        assert line_of("skip", "hanging_torch") in behind, verdict
        return
    places = (line_of("loop"), line_of("body of loop")) if how == "loop" else (line_of(how),)
    does = "is stopped" if how == "stop" else "runs"
    starts = tuple(f"Rank 2 is behind: it {does} at {place}" for place in places)
    assert behind.startswith(starts), verdict
