"""Count how often `miniray stacks` names who hangs, with the line, on two nodes with an sshd each.

python -m tests.count_hangs [ROUNDS [WAY ...]]: it needs root, network namespaces and sshd.
A line for each way to hang says how often it was named, and how long the command took at most.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.support import hung, namespaces

LIMIT_S = 10.0
WAYS = ("loop", "loop_in_c", "stop", "skip", "two_ranks_recv", "recv")


def main(rounds: int, ways: Sequence[str]) -> int:
    """Hang so many times in each way; return 1 if somebody was not named, or too late."""
    if reason := namespaces.missing():
        sys.exit(reason)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's "&" has it ignored
    failed = 0
    with tempfile.TemporaryDirectory(prefix="hangs-") as folder:
        os.environ["HOME"] = folder
        nodes = namespaces.Nodes(Path(folder))
        try:
            for how in ways:
                failed += count(how, rounds, nodes)
        finally:
            nodes.close()
    return int(failed > 0)


def count(how: str, rounds: int, nodes: namespaces.Nodes) -> int:
    """Hang in one way again and again; print how often it was named, and return how often not."""
    seconds, failed = [], 0
    module = "tests.hanging" if how == "recv" else "tests.hanging_torch"
    with hung.hung(module, how, {"ssh_options": nodes.ssh_options}, nodes) as ranks:
        for number in range(rounds):
            if number:
                ranks.hang(how)  # other processes, in the same way
            said, took = look(nodes)
            seconds.append(took)
            verdict = hung.verdict_of(said)
            try:
                check(how, verdict)
            except AssertionError:
                failed += 1
                print(f"{how}: not named: {verdict}", flush=True)
    nodes.wait_until_empty()
    late = sum(one > LIMIT_S for one in seconds)
    worst, middle = max(seconds), sorted(seconds)[len(seconds) // 2]
    named = f"{rounds - failed} of {rounds} named with the line"
    print(f"{how:15} {named}, in {middle:.2f} s (at most {worst:.2f} s)", flush=True)
    return failed + late


def look(nodes: namespaces.Nodes) -> tuple[str, float]:
    """Return what `miniray stacks` says, and how long it took; say what for if it was long."""
    words = [sys.executable, "-m", "miniray", "stacks"]
    began, ran_s, waited_s = time.monotonic(), 0.0, 0.0
    environment = {**os.environ, "COLUMNS": "400"}
    with nodes.popen(words, stdout=subprocess.PIPE, env=environment) as process:
        while process.poll() is None:
            with contextlib.suppress(OSError, ValueError):  # a thread, or all of it, has ended
                tasks = [int(one) for one in os.listdir(f"/proc/{process.pid}/task")]
                times = [hung.schedule_of(task) for task in tasks]
                ran_s = max(ran_s, sum(int(one[0]) for one in times) / 1e9)
                waited_s = max(waited_s, sum(int(one[1]) for one in times) / 1e9)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.02)
        assert process.stdout is not None
        said, took = process.stdout.read(), time.monotonic() - began
    if took > LIMIT_S / 2:
        print(f"{took:.1f} s: {ran_s:.1f} s of a core, {waited_s:.1f} s in the queue for one")
    return said, took


def check(how: str, verdict: str) -> None:
    """Raise AssertionError if a verdict does not say it."""
    if how == "recv":
        assert verdict.startswith("The coordinator and ranks 0-3 wait for each other: ")
        assert hung.line_of("recv of the coordinator") in verdict
        assert hung.line_of("recv of a rank") in verdict
    else:
        hung.check_verdict(how, verdict)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20, sys.argv[2:] or WAYS))
