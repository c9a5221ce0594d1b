"""Run a command beside a Ray cluster of its own: python -m tests.support.ray_head COMMAND ...

Its processes are none of the command's, which looks for what its tests leave behind.
"""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.support import poll

CPUS, GPUS = 8, 8  # Ray only counts; for each CPU it has a process ready
START_S = 240.0  # beside whatever else this machine does


def run(command: Sequence[str]) -> int:
    """Start Ray, run the command, end Ray; return the command's exit status."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    # By itself Ray gives its workers, and so our ranks, a nice value of 15: beside anybody else who
    # computes here they get next to nothing.
    even = {"RAY_worker_niceness": "0"}
    quiet = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
    env = os.environ | quiet | even
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        log = Path(folder, "head.log")
        options = [
            "--head",
            "--block",
            f"--port={port}",
            f"--num-cpus={CPUS}",
            f"--num-gpus={GPUS}",
        ]
        options += ["--include-dashboard=false", f"--temp-dir={folder}/r"]
        options += [
            "--disable-usage-stats",
            "--node-ip-address=127.0.0.1",
            "--object-store-memory=100000000",
        ]
        ray = str(Path(sys.executable).with_name("ray"))
        with log.open("w") as output:
            head = subprocess.Popen(
                [ray, "start", *options], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env=env,
            )  # fmt: skip
        try:
            poll.until(
                lambda: "Ray runtime started" in log.read_text() or head.poll() is not None,
                timeout_s=START_S,
                what=f"Ray to start:\n{log.read_text()}",
            )
            if head.poll() is not None:
                print(log.read_text(), file=sys.stderr)
                return 1
            return subprocess.run(
                command, env=env | {"RAY_ADDRESS": f"127.0.0.1:{port}"}
            ).returncode
        finally:
            head.terminate()
            head.wait()


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
