"""Run the benchmarks: python -m benchmarks [--only NAME] [--quick] [--json FILE]."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from benchmarks import report
from benchmarks.measure import Curve, Figure
from miniray import Channel, Worker, WorkerError

NAMES = (
    *("small", "stream", "tensor", "gloo", "start", "fsdp", "recovery"),
    *("growth", "network", "many", "coordinator"),
)


def main() -> int:
    """Print the table line by line as it is measured, write the JSON, return 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", choices=NAMES, help="run this one alone")
    parser.add_argument("--quick", action="store_true", help="few repetitions: a check, no figures")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help=f"write the results there (a full run without it: {report.RESULTS.name})",
    )
    options = parser.parse_args()
    names = [options.only] if options.only else NAMES
    machine = report.describe_machine()
    print(report.machine_line({"machine": machine}))
    print(f"load before the run: {machine['load_before']}\n")
    print(report.heading(), flush=True)
    measured: list[Figure | Curve] = []
    for name in names:
        for one in run_benchmark(name, options.quick):
            measured.append(one)
            print(report.rows(one), flush=True)
    missed = [one.name for one in measured if one.verdict == "missed"]
    print(f"\n{len(missed)} targets missed" + "".join(f"\n  MISSED: {name}" for name in missed))
    file = options.json
    if file is None and not options.only and not options.quick:
        file = report.RESULTS
    if file is not None:
        file.write_text(json.dumps(report.as_json(machine, measured), indent=2) + "\n")
        print(f"written: {file}")
    return 0


def run_benchmark(name: str, quick: bool) -> Iterator[Figure | Curve]:
    """Run one benchmark in a process of its own, so that no other one's memory weighs on it."""

    def run(channel: Channel) -> None:
        for one in import_module(f"benchmarks.{name}").run(quick):
            channel.send((type(one) is Curve, dataclasses.asdict(one)))

    with Worker(run, name=name) as worker:
        try:
            while True:
                is_curve, fields = worker.recv()
                yield Curve(**fields) if is_curve else Figure(**fields)
        except WorkerError as ending:
            if type(ending).__name__ != "WorkerExited":
                raise


if __name__ == "__main__":
    sys.exit(main())
