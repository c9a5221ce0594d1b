"""A stand-in for Slurm's srun, as far as `miniray run` uses it, and as strict as the real one."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO

REPOSITORY = Path(__file__).resolve().parents[2]


def install(folder: Path, nodes: dict[str, Sequence[str]]) -> None:
    """Write an executable `srun` into a folder; `nodes` says how a command gets to each node."""
    srun = folder / "srun"
    srun.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(REPOSITORY)!r})\n"
        f"from tests.support import slurm\nsys.exit(slurm.run(sys.argv[1:], {nodes!r}))\n"
    )
    srun.chmod(0o755)


def run(arguments: Sequence[str], nodes: dict[str, Sequence[str]]) -> int:
    """Run one task on one node of the allocation, and relay its three streams."""
    if "SLURM_JOB_ID" not in os.environ:
        return _refuse("Unable to allocate resources: no allocation")
    options, words = {}, list(arguments)
    while words and words[0].startswith("-"):
        name, equals, value = words.pop(0).partition("=")
        if name not in ("--overlap", "--nodes", "--ntasks", "-w"):
            return _refuse(f"unrecognized option '{name}'")
        options[name] = words.pop(0) if name == "-w" else value
        if (name == "--overlap") == bool(equals) and name != "-w":
            return _refuse(f"option '{name}' is not used like this")
    host = options.get("-w", "")
    if host not in nodes:
        return _refuse("Requested nodes are not in this job's allocation")
    if "--overlap" not in options:
        return _refuse("Job step creation temporarily disabled, retrying (Requested nodes busy)")
    task = subprocess.Popen(
        [*nodes[host], *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        start_new_session=True,  # slurmstepd's child, and not srun's
        env=os.environ
        | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_ID": "0"}
        | {"SLURMD_NODENAME": host, "SLURM_STEP_NODELIST": host, "SLURM_NTASKS": "1"},
    )
    assert task.stdin is not None
    assert task.stdout is not None
    assert task.stderr is not None
    signal.signal(signal.SIGINT, lambda *_: _refuse("interrupt (one more within 1 sec to abort)"))
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(task.pid, signal.SIGTERM))
    relays = [
        threading.Thread(target=_relay, args=(task.stdout, 1)),
        threading.Thread(target=_relay, args=(task.stderr, 2)),
    ]
    for relay in relays:
        relay.start()
    threading.Thread(target=_feed, args=(task.stdin,), daemon=True).start()
    for relay in relays:
        relay.join()
    code = task.wait()
    if code:
        how = f"Exited with exit code {code}" if code > 0 else signal.strsignal(-code)
        _refuse(f"{host}: task 0: {how}")
    sys.stdout.flush()
    os._exit(code if code >= 0 else 128 - code)  # the thread that feeds may be reading


def _relay(stream: IO[bytes], number: int) -> None:
    while data := os.read(stream.fileno(), 1 << 16):
        with contextlib.suppress(OSError):
            os.write(number, data)


def _feed(stdin: IO[bytes]) -> None:
    with contextlib.suppress(OSError):  # the task has ended
        while data := os.read(0, 1 << 16):
            stdin.write(data)
    stdin.close()  # what ends on srun's side ends on the task's


def _refuse(problem: str) -> int:
    print(f"srun: error: {problem}", file=sys.stderr, flush=True)
    return 1
