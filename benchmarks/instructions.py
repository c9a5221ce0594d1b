"""Count the processor's instructions for one small message: python -m benchmarks.instructions.

Time depends on who else is at work; this does not. Valgrind's callgrind counts what a process does
that sends a small dict to itself and receives it, at two numbers of messages; the difference is the
messages'. What the kernel does is not counted. `--write` makes the figure the one that a test
compares with.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

COUNTS = Path(__file__).with_name("instructions.json")
FEW, MANY = 500, 1500
GROWTH_MAX = 1.1
SCRIPT = """
import socket, sys
from miniray import Channel
from benchmarks.small import MESSAGE

left, right = map(Channel, socket.socketpair())
for _ in range(int(sys.argv[1])):
    left.send(MESSAGE)
    right.recv()
"""


def count_one_message() -> int:
    """Return the instructions of one send and its receive, by this Python."""
    _count(1)  # whatever is done once, such as compiling what is imported, is done now
    return (_count(MANY) - _count(FEW)) // (MANY - FEW)


def _count(messages: int) -> int:
    counted = subprocess.run(
        [
            *("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"),
            *(sys.executable, "-c", SCRIPT, str(messages)),
        ],
        env={**os.environ, "PYTHONHASHSEED": "0"},
        cwd=COUNTS.parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r"Collected : (\d+)", counted.stderr)
    if found is None:
        raise RuntimeError(f"callgrind did not count:\n{counted.stderr}")
    return int(found[1])


def committed() -> dict[str, int]:
    """Return the figures that are compared with, by Python's version."""
    figures: dict[str, int] = json.loads(COUNTS.read_text())
    return figures


def main() -> int:
    """Print what one message takes; return 1 if that is more than a tenth above what it was."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__)
    parser.add_argument("--write", action="store_true", help="commit to this figure")
    options = parser.parse_args()
    python, now = platform.python_version(), count_one_message()
    if options.write:
        COUNTS.write_text(json.dumps({**committed(), python: now}, indent=2) + "\n")
    before = committed().get(python)
    print(f"{now} instructions a message; {before or 'no figure'} is committed for {python}")
    return int(before is not None and now > GROWTH_MAX * before)


if __name__ == "__main__":
    sys.exit(main())
