"""Play rounds: python -m tests.chaos --rounds 60 --seed 1; to repeat one: --only 17 --seed 1."""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.chaos import play, rounds
from tests.support import processes


def main() -> int:
    """Play rounds, several at once, each in a process of its own; print what went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="play this round alone")
    parser.add_argument("--jobs", type=int, default=3, help="how many are played at once")
    options = parser.parse_args()
    if options.only is not None:
        return play_one(options.seed, options.only)
    failed = 0
    for ended in run_many(options.seed, options.rounds, options.jobs):
        print(ended.stdout.decode(), end="", flush=True)
        failed += ended.returncode != 0
    print(f"{options.rounds - failed} of {options.rounds} rounds went as promised")
    return int(failed > 0)


def run_many(seed: int, number: int, jobs: int) -> Iterator[subprocess.CompletedProcess[bytes]]:
    """Yield how each round went, in order."""

    def run(one: int) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "tests.chaos", f"--seed={seed}", f"--only={one}"]
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(run, range(number))


def play_one(seed: int, number: int) -> int:
    """Play one round, in this process, which adopts all that is left of it."""
    processes.watch_forks()
    with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
        report = play.Player(rounds.draw(seed, number), Path(directory)).play()
    print(report)
    if report.problems:
        print(
            *(f"  | {line}" for line in report.log.splitlines()[-play.LOG_TAIL_LINES :]), sep="\n"
        )
        print(f"  again: python -m tests.chaos --seed {seed} --only {number}")
    return int(bool(report.problems))


if __name__ == "__main__":
    sys.exit(main())
