"""Which GPU a process uses, and how much of it, as nvidia-smi says it: asked without waiting."""

import atexit
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable
from typing import IO, Any

# It takes a second and more, and where the driver is in trouble, for ever.
ASK_AGAIN_S = 1.0
GIVE_UP_S = 30.0
FORMAT = "--format=csv,noheader,nounits"
QUERY = (
    f"nvidia-smi --query-gpu=uuid,index,utilization.gpu,memory.total {FORMAT} && echo && "
    f"nvidia-smi --query-compute-apps=gpu_uuid,pid,used_memory {FORMAT}"
)


class _Asking:
    """One nvidia-smi after the other; what the last one said is known meanwhile."""

    def __init__(self) -> None:
        self.said: dict[int, dict[str, Any]] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[str] | None = None
        self._began = -ASK_AGAIN_S

    def go_on(self) -> None:
        """Take in what the running one has said, or start the next, if it is time."""
        age = time.monotonic() - self._began
        if self._process is not None and self._output is not None:
            if self._process.poll() is None:
                if age > GIVE_UP_S:
                    self.give_up()
                return
            with self._output as output:
                output.seek(0)
                self.said = parse(output.read())
            self._process = self._output = None
        if age >= ASK_AGAIN_S and shutil.which("nvidia-smi") is not None:
            self._began = time.monotonic()
            self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed when it is read
            self._process = subprocess.Popen(
                ["sh", "-c", QUERY],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    def give_up(self) -> None:
        """End the one that runs, and what it has started."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)


_asking = _Asking()
# A server that ends takes it along.
atexit.register(_asking.give_up)


def of_process(pid: int) -> dict[str, Any] | None:
    """Return a process's GPU: its index, what it uses and has (MiB), and how busy it is (per cent).

    None if it has none, or nobody knows yet.
    """
    with contextlib.suppress(OSError):  # no descriptors are left, say
        _asking.go_on()
    return _asking.said.get(pid)


def parse(text: str) -> dict[int, dict[str, Any]]:
    """Return by pid what the two tables of QUERY say."""
    gpus_text, _, processes_text = text.partition("\n\n")
    gpus, found = {}, dict[int, dict[str, Any]]()
    for uuid, index, percent, total in _rows(gpus_text.splitlines(), 4):
        gpus[uuid] = {"index": index, "percent": _number(percent), "total_mib": _number(total)}
    for uuid, pid, used in _rows(processes_text.splitlines(), 3):
        if uuid in gpus and pid.isdigit():
            found[int(pid)] = {**gpus[uuid], "used_mib": _number(used)}
    return found


def _rows(lines: Iterable[str], columns: int) -> list[list[str]]:
    rows = [[word.strip() for word in line.split(",")] for line in lines]
    return [row for row in rows if len(row) == columns]


def _number(text: str) -> int | None:
    """Return a number, or None for what a GPU does not tell, such as [N/A]."""
    return int(text) if text.isdigit() else None
