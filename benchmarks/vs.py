"""Run the same small task in seven systems: python -m benchmarks.vs [--write]

What is not installed is left out. The task: four workers square a number each; then two hundred
round trips of one number. Start-up counts from the first line of the program to the four squares.
"""

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tools.count_lines import REPOSITORY, count_code_lines

SCRIPTS = REPOSITORY / "docs" / "vs"
RESULTS = SCRIPTS / "results.json"
RUNS = 5
LIMIT_S = 120
SYSTEMS = {  # script's name: (name, module that it needs, how to start it)
    "miniray": ("MiniRay", "miniray", []),
    "ray": ("Ray", "ray", []),
    "torchrun": ("torchrun", "torch", [sys.executable, "-m", "torch.distributed.run"]),
    "torchrunx": ("torchrunx", "torchrunx", []),
    "monarch": ("Monarch", "monarch", []),
    "dask": ("Dask", "distributed", []),
    "mpi": ("MPI", "mpi4py", ["mpiexec", "-n", "4"]),
}


def is_installed(system: str) -> bool:
    """Return whether a system can run here."""
    _, module, start = SYSTEMS[system]
    found = importlib.util.find_spec(module) is not None
    return found and (not start or shutil.which(start[0], path=_path()) is not None)


def run(system: str) -> dict[str, Any]:
    """Run the task once; return {"squares", "first_s", "trip_s"}. Raises RuntimeError."""
    _, _, start = SYSTEMS[system]
    script = str(SCRIPTS / f"with_{system}.py")
    command = {
        "torchrun": [*start, "--nproc-per-node", "4", script],
        "mpi": [*start, sys.executable, script],
    }.get(system, [sys.executable, script])
    with tempfile.TemporaryDirectory() as folder:  # some leave logs where they are started
        return _read(command, folder)


def _read(command: list[str], folder: str) -> dict[str, Any]:
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ
        | {"BEGAN": str(time.time()), "PATH": _path(), "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"squares"')]
    if done.returncode or not lines:
        raise RuntimeError(f"{command}: {done.stdout}{done.stderr}")
    result: dict[str, Any] = json.loads(lines[0])
    return result


def count_lines(system: str) -> int:
    """Return how many lines of code the task takes."""
    return count_code_lines((SCRIPTS / f"with_{system}.py").read_text())


def as_markdown(results: dict[str, Any]) -> str:
    """Return the table for the site."""
    rows = [
        "| | version | lines | four squares after | a round trip |",
        "|---|---|---:|---:|---:|",
    ]
    for system, (name, *_) in SYSTEMS.items():
        one = results["systems"].get(system)
        cells = ["not installed", str(count_lines(system)), "", ""]
        if one:
            trip = f"{one['trip_s'] * 1e6:.0f} us"
            cells = [one["version"], str(count_lines(system)), f"{one['first_s']:.2f} s", trip]
        rows.append(f"| [{name}](#{system}) | {' | '.join(cells)} |")
    return "\n".join([*rows, "", f"Medians of {RUNS} runs, in turns. {results['machine']}"])


def read_results() -> dict[str, Any]:
    """Return the results of the last measurement that was kept."""
    results: dict[str, Any] = json.loads(RESULTS.read_text())
    return results


def main() -> int:
    """Measure what is installed, in turns, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vs", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"to {RESULTS.name}, for the site")
    arguments = parser.parse_args()
    found = [system for system in SYSTEMS if is_installed(system)]
    runs: dict[str, list[dict[str, Any]]] = {system: [] for system in found}
    for number in range(RUNS + 1):  # the first turn fills caches and is not counted
        for system in found:
            print(f"turn {number} of {RUNS}: {system}", file=sys.stderr, flush=True)
            result = run(system)
            if number:
                runs[system].append(result)
    results = {
        "machine": _machine(),
        "systems": {
            system: {
                "version": _version(system),
                "first_s": statistics.median(one["first_s"] for one in runs[system]),
                "trip_s": statistics.median(one["trip_s"] for one in runs[system]),
            }
            for system in found
        },
    }
    if arguments.write:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(as_markdown(results))
    return 0


def _version(system: str) -> str:
    from importlib import metadata

    _, module, _ = SYSTEMS[system]
    if system == "miniray":
        import miniray

        return miniray.__version__
    return metadata.version({"monarch": "torchmonarch"}.get(module, module)).partition("+")[0]


def _machine() -> str:
    from benchmarks import report

    return report.machine_line({"machine": report.describe_machine()})


def _path() -> str:
    return f"{Path(sys.executable).parent}:{os.environ['PATH']}"


if __name__ == "__main__":
    sys.exit(main())
