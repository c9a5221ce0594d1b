"""Play rounds: python -m tests.chaos --rounds 60 --seed 1; to repeat one: --only 17 --seed 1."""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.chaos import play, report, rounds, scene
from tests.chaos.measures import MEASURES
from tests.support import processes

ACTS = {act for acts in rounds.ACTS.values() for act in acts}
Result = dict[str, Any]


def main() -> int:
    """Play rounds, several at once, each in a process of its own; print what went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="play this round alone")
    parser.add_argument("--act", help=f"of one act only: {', '.join(sorted(ACTS))}")
    parser.add_argument("--jobs", type=int, default=3, help="how many are played at once")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write down how they went")
    parser.add_argument(
        "--measure", nargs="*", metavar="NAME", help=f"{', '.join(MEASURES)}; or all"
    )
    options = parser.parse_args()
    if options.measure is not None:
        return measure(options.measure or list(MEASURES), options.json)
    if options.only is not None:
        return play_one(options.seed, options.only, options.json)
    conditions = report.conditions(options.jobs)
    records = []
    drawn = (one for one in itertools.count() if fits(options.seed, one, options.act))
    numbers = itertools.islice(drawn, options.rounds)
    for text, record in run_many(options.seed, numbers, options.jobs):
        print(text, end="", flush=True)
        records.append(record)
        if options.json:
            options.json.write_text(report.as_json(conditions, records))
    failed = sum(bool(record["problems"]) for record in records)
    print(f"{options.rounds - failed} of {options.rounds} rounds went as promised")
    return int(failed > 0)


def fits(seed: int, number: int, act: str | None) -> bool:
    """Say whether a round is one of those asked for."""
    return act is None or rounds.draw(seed, number).act == act


def measure(names: list[str], file: Path | None) -> int:
    """Measure how soon things are noticed; print it, and write it down."""
    conditions, measured = report.conditions(1), []
    for name in names:
        for one in MEASURES[name]():
            measured.append(one)
            print(report.line(one), flush=True)
    if file:
        file.write_text(report.as_json(conditions, measured))
    return int(any(one["met"] is False for one in measured))


def run_many(seed: int, numbers: Iterable[int], jobs: int) -> Iterator[tuple[str, Result]]:
    """Yield what each round printed, and how it went, in order."""
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(lambda number: run_one(seed, number), numbers)


def run_one(seed: int, number: int) -> tuple[str, Result]:
    """Play a round in a process of its own; return what it printed, and how it went."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
        file = Path(directory, "result")
        command = [sys.executable, "-m", "tests.chaos", f"--seed={seed}", f"--only={number}"]
        done = subprocess.run(
            [*command, f"--json={file}"],
            cwd=scene.REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        text = done.stdout.decode(errors="replace")
        if not file.exists():  # the harness itself has failed
            return text, {"seed": seed, "number": number, "problems": [text[-1000:]]}
        result: Result = json.loads(file.read_text())
        return text, result


def play_one(seed: int, number: int, file: Path | None) -> int:
    """Play one round, in this process, which adopts all that is left of it."""
    processes.watch_forks()
    one = rounds.draw(seed, number)
    if reason := scene.missing(one):
        print(f"{one}: not played: {reason}")
        record = {"seed": seed, "number": number, "not_played": reason, "problems": []}
    else:
        with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
            played = play.Player(one, Path(directory)).play()
        print(played)
        if played.problems:
            lines = played.log.splitlines()[-play.LOG_TAIL_LINES :]
            print(*(f"  | {line}" for line in lines), sep="\n")
            print(f"  again: python -m tests.chaos --seed {seed} --only {number}")
        record = played.as_json()
    if file:
        file.write_text(json.dumps(record))
    return int(bool(record["problems"]))


if __name__ == "__main__":
    sys.exit(main())
