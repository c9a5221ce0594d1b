"""The processes below the test process: which there are, which are zombies, and how to end them."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

from tests.support import poll

PR_SET_CHILD_SUBREAPER = 36

forked_here: dict[int, float] = {}
"""Every process that this process forked itself, as opposed to the orphans it adopted.

With the time of its start: in a long run the system uses a number again.
"""

exempt_pids: set[int] = set()
"""Processes that fixtures keep over several tests, such as an sshd; not their children."""


def watch_forks() -> None:
    """Adopt orphaned grandchildren from now on, and note which children were forked here."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for module, name in ((os, "fork"), (os, "posix_spawn"), (subprocess, "_fork_exec")):
        if hasattr(module, name):
            setattr(module, name, _noting(getattr(module, name)))


def _noting(spawn: Any) -> Any:
    def spawn_and_note(*args: Any, **kwargs: Any) -> int:
        pid: int = spawn(*args, **kwargs)
        if pid:
            with contextlib.suppress(psutil.NoSuchProcess):  # reaped by another thread
                forked_here[pid] = psutil.Process(pid).create_time()
        return pid

    return spawn_and_note


def descendants() -> set[psutil.Process]:
    """Return every process below this one, zombies included and exempt ones left out."""
    found = set()
    for pid in _pids_below(os.getpid()):
        with contextlib.suppress(psutil.NoSuchProcess):
            if pid not in exempt_pids and not _reap_adopted(process := psutil.Process(pid)):
                found.add(process)
    return found


def _pids_below(pid: int) -> list[int]:
    """Return them as the kernel lists them; psutil looks at every process of the machine."""
    if sys.platform != "linux":
        return [process.pid for process in psutil.Process(pid).children(recursive=True)]
    children, tasks = list[int](), list[Path]()
    with contextlib.suppress(FileNotFoundError):  # it has just ended
        tasks += Path(f"/proc/{pid}/task").glob("*/children")
    for task in tasks:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # so has this one
            children += map(int, task.read_text().split())
    return children + [one for child in children for one in _pids_below(child)]


def _reap_adopted(process: psutil.Process) -> bool:
    # An orphan that ended in good order would have been reaped by init; here it is ours to reap. A
    # zombie forked here stays: whoever forked it forgot it, and the test should fail.
    if forked_here.get(process.pid) == process.create_time() or not _is_zombie(process):
        return False
    try:
        return os.waitpid(process.pid, os.WNOHANG)[0] != 0
    except ChildProcessError:  # another process's child, and that one has to reap it
        return False


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def describe(process: psutil.Process) -> str:
    """Say in one line what a process is."""
    try:
        if _is_zombie(process):
            return f"zombie {process.pid} ({process.name()})"
        command = " ".join(process.cmdline())[:160] or process.name()
        return f"process {process.pid}, child of {process.ppid()}: {command}"
    except psutil.NoSuchProcess:
        return f"process {process.pid}, just ended"


def is_running(pid: int) -> bool:
    """Say whether `pid` exists and is no zombie."""
    try:
        return not _is_zombie(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return False


def wait_until_gone(pids: Iterable[int], *, timeout_s: float = 30.0) -> None:
    """Wait until none of `pids` runs, or raise TimeoutError that names those which still do."""
    waited_for = list(pids)
    try:
        poll.until(lambda: not any(map(is_running, waited_for)), timeout_s=timeout_s)
    except TimeoutError:
        left = [describe(psutil.Process(pid)) for pid in waited_for if is_running(pid)]
        raise TimeoutError(f"still running after {timeout_s}s: {left}") from None


def end(processes: Iterable[psutil.Process]) -> None:
    """Kill the processes, by pid, and reap those that are children of this one."""
    for process in processes:
        # psutil compares the start time first, so a pid that was used again is never hit.
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    for process in processes:
        with contextlib.suppress(psutil.TimeoutExpired, psutil.NoSuchProcess):
            process.wait(timeout=2)
