"""See whether this machine has what the stages and exercises need, and say how to get it."""

import contextlib
import os
import resource
import shutil
import socket
import sys
from collections.abc import Callable

from exercises.report import command, paint
from stages import torch_here

DESCRIPTORS_MIN = 256


def main() -> int:
    """Print a line for each need; return 0 if all that is required is there, else 2."""
    bad = 0
    for what, check, required in (
        ("Python 3.11 or newer", _python, True),
        ("Linux, with pidfd", _pidfd, True),
        ("fork", _fork, True),
        ("loopback", _loopback, True),
        ("open files", _descriptors, True),
        ("ssh", _ssh, False),
        ("torch", _torch, False),
    ):
        remedy = check()
        mark = paint("ok     ", "green") if remedy is None else paint("missing", "red")
        if remedy and not required:
            mark = paint("without", "yellow")
        print(f"  {mark}  {what:22} {remedy or ''}".rstrip())
        bad += bool(remedy and required)
    print()
    print(f"next: {command('')}" if not bad else "next: get what is missing, then doctor again")
    return 2 if bad else 0


Check = Callable[[], str | None]


def _python() -> str | None:
    if sys.version_info >= (3, 11):  # noqa: UP036  # whoever asks may have an older one
        return None
    return f"this is {sys.version.split()[0]}; https://www.python.org has newer ones"  # type: ignore[unreachable]


def _pidfd() -> str | None:
    if hasattr(os, "pidfd_open"):
        return None
    return "the stages wait for processes with it; on a Mac, use a Linux container"


def _fork() -> str | None:
    pid = os.fork()
    if pid == 0:
        os._exit(7)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7:
        return None
    return "a forked process did not end as it should"


def _loopback() -> str | None:
    with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname(), 2.0):
            return None
    return "127.0.0.1 cannot be reached: ip link set lo up"


def _descriptors() -> str | None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= DESCRIPTORS_MIN:
        return None
    return f"only {soft}: ulimit -n 1024"


def _ssh() -> str | None:
    return None if shutil.which("ssh") else "for stage 4 on other machines: openssh-client"


def _torch() -> str | None:
    if remedy := torch_here.remedy():
        return f"for stage 5: {remedy}"
    return None
