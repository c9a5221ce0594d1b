"""The coordinator of a detached run: no terminal, a log, and an exit status at the end."""

import argparse
import functools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from miniray.cli.common import INTERRUPTED, run_command
from miniray.cli.runs import RUNNING, Run

STARTED_S = 30.0
LATE_S = 30.0  # beyond the time that the ranks have to start; nobody waits for longer
LOOK_AGAIN_S = 0.01
ADVICE = (
    "between the hosts of a detached run, ssh needs a key that this host itself holds, and it has "
    "to know the others: an agent that is forwarded would leave with you, and is not used"
)
_NO_KEY = re.compile(r"Permission denied \(|Host key verification failed")
LOGIND = ("org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager")


def start(facts: dict[str, Any], cwd: str, code: str | None = None) -> Run:
    """Start a run's coordinator, out of reach of terminals and sessions, and return the run.

    `code` is the folder with MiniRay in it if that will not stay: the run gets a copy. Raises
    OSError, in words, if the coordinator does not start.
    """
    run = Run.create({**facts, "cwd": cwd})
    place = Path(__file__).parents[2] if code is None else run.copy_code(code)
    program = (
        f"import sys; sys.path.insert(0, {str(place)!r}); from miniray.cli import detached; "
        f"detached.main({str(run.folder)!r})"
    )
    # -P: a random.py where the run begins is not Python's.
    words = [sys.executable, "-Pc", program]
    # On a host, the lock on the copy of the folder goes along.
    has_lock = code is not None
    scope = _scope(run)
    has_started = bool(scope) and _has_started(run, [*scope, *words], cwd, has_lock)
    # Also after a manager that does not answer.
    if not has_started and not _has_started(run, words, cwd, has_lock):
        said = run.log.read_text(errors="replace").strip()
        raise OSError(f"the coordinator did not start: {said or 'it said nothing'}")
    return run


def begin(facts: dict[str, Any], cwd: str, code: str | None = None) -> Iterator[dict[str, Any]]:
    """Start a run, and yield what there is to say of it until its ranks are up, or it has failed.

    {"run": its id, "problem": what will end it early, or None}, {"text": of the run}; at last
    {"is_up": whether, "is_over": whether, "status": its exit status, if it has one}.
    """
    run = start(facts, cwd, code)
    yield {"run": run.id, "problem": why_not_for_long()}
    deadline = time.monotonic() + facts["options"]["start_timeout"] + LATE_S
    news = run.follow_start(deadline)
    is_up = False
    while True:
        try:
            data = next(news)
        except StopIteration as end:
            is_up = end.value
            break
        yield {"text": data.decode(errors="surrogateescape")} if data else {}
    yield {"is_up": is_up, "is_over": run.state() != RUNNING, "status": run.status()}


def _scope(run: Run) -> list[str]:
    """Return what starts a command in a scope of its own, if the user has a systemd to ask for it.

    A session of its own is enough where a logout ends nothing but terminals. Some systems end all
    that the session has started (KillUserProcesses=yes): a scope is not the session's.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    has_manager = bool(runtime) and os.path.exists(f"{runtime}/systemd/private")
    if not has_manager or shutil.which("systemd-run") is None:
        return []
    unit = f"--unit=miniray-run-{run.id}"
    return ["systemd-run", "--user", "--scope", "--quiet", "--collect", unit, "--"]


def _has_started(run: Run, words: list[str], cwd: str, has_lock: bool) -> bool:
    with open(run.log, "ab") as log:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=cwd,
            start_new_session=True,  # no terminal's end reaches it
            close_fds=not has_lock,
        )
    deadline = time.monotonic() + STARTED_S
    while True:
        has_ended = process.poll() is not None  # first: it may have been quick
        if run.pid() is not None or run.status() is not None:
            return True
        if has_ended or time.monotonic() > deadline:
            process.kill()  # who is late must not begin beside another, or after we have said no
            process.wait()
            return False
        time.sleep(LOOK_AGAIN_S)


def why_not_for_long() -> str | None:
    """Say what will end a run of this machine, whatever becomes of its coordinator."""
    if os.environ.get("SLURM_JOB_ID"):
        return "it ends with this Slurm allocation: in a batch job nothing needs to be detached"
    if _ask("busctl", "get-property", *LOGIND, "KillUserProcesses") != "b true":
        return None
    if _ask("loginctl", "show-user", str(os.getuid()), "-P", "Linger") == "yes":
        return None
    return "this system ends what users leave running when they log out: loginctl enable-linger"


def _ask(*words: str) -> str:
    try:
        asked = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):  # there is no systemd
        return ""
    return asked.stdout.strip()


def _lacked_a_key(run: Run) -> bool:
    with open(run.log, errors="replace") as log:  # which may be larger than the memory
        return any(_NO_KEY.search(line) for line in log)


def main(folder: str) -> None:
    """Be the coordinator of the run that a folder describes."""
    from miniray.cli import run as command  # it imports this module

    run = Run(Path(folder))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's "&" has it ignored
    run.note_process()
    sys.argv = ["miniray", "run", *shlex.split(run.facts()["command"])]
    status = 1
    try:
        options = argparse.Namespace(**{"own_address": None, **run.facts()["options"]})
        options.log_dir = options.log_dir and Path(options.log_dir)
        status = run_command(functools.partial(command.run, when_up=run.note_up), options)
        if status and options.own_address and _lacked_a_key(run):
            print(f"miniray run: {ADVICE}", file=sys.stderr)
    except KeyboardInterrupt:  # before it was under way
        status = INTERRUPTED
    except Exception:
        traceback.print_exc()
    finally:
        run.note_status(status)
