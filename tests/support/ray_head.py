"""Run a command beside a Ray cluster of its own: python -m tests.support.ray_head COMMAND ...

Its processes are none of the command's, which looks for what its tests leave behind.
"""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.support import poll

CPUS, GPUS = 8, 8  # Ray only counts; for each CPU it has a process ready
START_S = 240.0  # beside whatever else this machine does
STARTS_MAX = 3  # Ray gives up after 30 s of its own, which cannot be set


def run(command: Sequence[str]) -> int:
    """Start Ray, run the command, end Ray; return the command's exit status."""
    # By itself Ray gives its workers, and so our ranks, a nice value of 15: beside anybody else who
    # computes here they get next to nothing.
    even = {"RAY_worker_niceness": "0"}
    quiet = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
    env = os.environ | quiet | even
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        for attempt in range(STARTS_MAX):
            with started(Path(folder, str(attempt)), env) as address:
                if address:
                    return subprocess.run(command, env=env | {"RAY_ADDRESS": address}).returncode
    return 1


@contextlib.contextmanager
def started(folder: Path, env: Mapping[str, str]) -> Iterator[str]:
    """Start Ray, and end it; yield its address, or "" if it has not come up."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    folder.mkdir()
    words = [
        *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"),
        *(f"--port={port}", "--node-ip-address=127.0.0.1", f"--temp-dir={folder}/r"),
        *(f"--num-cpus={CPUS}", f"--num-gpus={GPUS}", "--object-store-memory=100000000"),
        *("--include-dashboard=false", "--disable-usage-stats"),
    ]
    log = folder / "head.log"
    with log.open("w") as output:
        head = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env
        )
    try:
        poll.until(
            lambda: "Ray runtime started" in log.read_text() or head.poll() is not None,
            timeout_s=START_S,
            what=f"Ray to start:\n{log.read_text()}",
        )
        if head.poll() is not None:
            print(log.read_text(), file=sys.stderr)
        yield f"127.0.0.1:{port}" if head.poll() is None else ""
    finally:
        head.terminate()
        head.wait()


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
