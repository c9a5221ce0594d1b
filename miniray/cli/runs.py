"""The runs that were started with --detach: a folder each, which says what became of it.

~/.miniray/runs/ID has run.json (what was to be run), process.json (the coordinator), log (all that
it printed), up (once its ranks were, how long the log was) and, once it has ended, status.
"""

import contextlib
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

KEPT_RUNS = 20  # of those that have ended
STATUS_CHARS = 8
CHUNK_BYTES = 48 * 1024
LOOK_AGAIN_S = 0.05
RUNNING, ELSEWHERE = "running", "on"


def folder_of_runs() -> Path:
    """Return where all runs of this user are; raises OSError for a user who has no home."""
    try:
        return Path("~/.miniray/runs").expanduser()
    except RuntimeError:
        raise OSError("runs are kept at home, and this user has none: set HOME") from None


class Run:
    """One run: what its folder says."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.id = folder, folder.name
        self.log = folder / "log"
        self._new_status = folder / "status.new"

    @classmethod
    def create(cls, facts: dict[str, Any]) -> "Run":
        """Make the folder of a new run, whose id is the next number; drop the oldest ones."""
        above = folder_of_runs()
        try:
            above.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            problem = f"cannot keep runs in {above}: {error.strerror}"
            raise OSError(f"{problem}; HOME says where that is") from error
        number = max((int(run.id) for run in all_runs()), default=0)
        while True:
            number += 1
            run = cls(above / str(number))
            with contextlib.suppress(FileExistsError):  # somebody was faster
                run.folder.mkdir(mode=0o700)
                break
        run.log.touch(mode=0o600)
        run._new_status.write_text(" " * STATUS_CHARS)
        run._write("run.json", {**facts, "host": socket.gethostname(), "began": time.time()})
        _prune()
        return run

    def facts(self) -> dict[str, Any]:
        """Return what was to be run, where, and when it began."""
        facts: dict[str, Any] = json.loads((self.folder / "run.json").read_text())
        return facts

    def copy_code(self, folder: str) -> Path:
        """Keep a copy of some code, which is about to go; return where."""
        return Path(shutil.copytree(folder, self.folder / "code"))

    def note_process(self) -> None:
        """Note that this process is the run's coordinator."""
        self._write("process.json", {"pid": os.getpid(), "started": start_of(os.getpid())})

    def note_up(self) -> None:
        """Note that all ranks are up, for the first time."""
        if self._up_at() is None:
            self._write("up", self.log.stat().st_size)

    def _up_at(self) -> int | None:
        try:
            return int((self.folder / "up").read_text())
        except FileNotFoundError:
            return None

    def note_status(self, status: int) -> None:
        """Note the exit status: the run has ended.

        It has had its place from the beginning: a run may end because the disk is full.
        """
        with open(self._new_status, "r+") as file:
            file.write(str(status))
        self._new_status.replace(self.folder / "status")

    def _write(self, name: str, value: object) -> None:
        new = self.folder / f"{name}.new"
        new.write_text(json.dumps(value))
        new.replace(self.folder / name)  # whole, or not at all

    def pid(self) -> int | None:
        """Return the coordinator's pid if it runs: a number that is used again is not it."""
        try:
            process = json.loads((self.folder / "process.json").read_text())
        except FileNotFoundError:
            return None
        is_it = start_of(process["pid"]) == process["started"]
        return int(process["pid"]) if is_it else None

    def interrupt(self) -> bool:
        """Do what Ctrl-C in its terminal would; return whether the coordinator was there."""
        if (pid := self.pid()) is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            if not hasattr(os, "pidfd_open"):
                os.kill(pid, signal.SIGINT)
                return True
            descriptor = os.pidfd_open(pid)
            try:
                if self.pid() == pid:  # then the descriptor is its, and of nobody who came later
                    signal.pidfd_send_signal(descriptor, signal.SIGINT)
            finally:
                os.close(descriptor)
        return True

    def status(self) -> int | None:
        """Return the exit status, or None if it still runs, or has been killed."""
        try:
            return int((self.folder / "status").read_text())
        except FileNotFoundError:
            return None

    def state(self) -> str:
        """Say how the run is, or how it ended."""
        is_running = self.pid() is not None  # first: it may end in between
        if (status := self.status()) is not None:
            return f"exit status {status}"
        if (host := self.facts()["host"]) != socket.gethostname():
            return f"{ELSEWHERE} {host}"  # they share this folder, and no processes
        if is_running:
            return RUNNING
        return "was killed" if (self.folder / "process.json").exists() else "never started"

    def follow(self, *, tail: int | None = None) -> Iterator[bytes]:
        """Yield what the run has printed, and prints, until it ends; b"" when there is no news."""
        with open(self.log, "rb") as log:
            if tail is not None:
                log.seek(_start_of_tail(self.log, tail))
            while True:
                has_ended = self.state() != RUNNING  # first: what comes before is in the log
                while data := log.read(CHUNK_BYTES):
                    yield data
                if has_ended:
                    return
                yield b""
                time.sleep(LOOK_AGAIN_S)

    def follow_start(self, deadline: float) -> Generator[bytes, None, bool]:
        """Yield what the run prints until its ranks are up; return whether they are.

        It may end before, or take longer than until `deadline`, of time.monotonic().
        """
        with open(self.log, "rb") as log:
            while True:
                is_over = time.monotonic() > deadline or self.state() != RUNNING
                up_at = self._up_at()  # second: who has ended has noted it by now
                end = math.inf if up_at is None else up_at
                while data := log.read(int(min(CHUNK_BYTES, end - log.tell()))):
                    yield data
                if is_over or up_at is not None:
                    return up_at is not None
                yield b""
                time.sleep(LOOK_AGAIN_S)


def _start_of_tail(log: Path, lines: int) -> int:
    """Return where the last lines of a file begin."""
    with open(log, "rb") as file:
        size = position = file.seek(0, os.SEEK_END)
        ends = lines  # of the lines before, so many from the end
        while position and lines:
            begin = max(position - CHUNK_BYTES, 0)
            file.seek(begin)
            data = file.read(position - begin)
            if position == size and data.endswith(b"\n"):
                ends += 1  # that of the last line
            if (found := data.count(b"\n")) >= ends:
                for _ in range(ends):
                    position = begin + data.rindex(b"\n", 0, position - begin)
                return position + 1
            ends, position = ends - found, begin
        return position if lines else size


def all_runs() -> list[Run]:
    """Return all runs that this machine knows of, the newest last."""
    folders = [one for one in folder_of_runs().glob("*") if one.name.isdecimal()]
    there = (one for one in folders if (one / "run.json").exists())
    return [Run(one) for one in sorted(there, key=lambda one: int(one.name))]


def find_run(run_id: str) -> Run:
    """Return the run with an id; raises ValueError, with those that there are, if it is none."""
    runs = {run.id: run for run in all_runs()}
    if run_id not in runs:
        known = f"there are {', '.join(runs)}" if runs else "there is none at all"
        raise ValueError(f"there is no run {run_id} on {socket.gethostname()}: {known}")
    return runs[run_id]


def _prune() -> None:
    ended = [run for run in all_runs() if not run.state().startswith((RUNNING, ELSEWHERE))]
    for run in ended[:-KEPT_RUNS]:
        shutil.rmtree(run.folder, ignore_errors=True)


def start_of(pid: int) -> str | None:
    """Return what tells a process from an earlier or later one of the same number; None: no such.

    One that has ended and is not yet buried is none.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return None if fields[0] in "ZX" else f"{fields[19]} ticks after boot {boot}"
    except (FileNotFoundError, ProcessLookupError):
        if os.path.exists("/proc/self/stat"):
            return None
    asked = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True)
    return asked.stdout.strip() or None
