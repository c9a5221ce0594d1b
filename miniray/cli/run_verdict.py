"""How a run ended: who failed first, of what, and the exit status that says so."""

import dataclasses
import re
from collections.abc import Sequence

from miniray import RemoteWorker, WorkerDied, WorkerError, WorkerFailed

_OURS = re.compile(
    r'  File "(?:[^"\n]*[/\\]miniray[/\\](?:cli[/\\]run_rank|endings)\.py|<frozen runpy>'
    r'|<frozen importlib[^"\n]*|[^"\n]*[/\\]importlib[/\\]__init__\.py)", line .*\n'
    r'(?:(?!  File ")(?:    .*\n))*'
)


_MISSING = re.compile(r"raised ModuleNotFoundError: No module named '([\w.]+)'")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Who failed first, in one line, with its traceback and the run's exit status.

    `rank` is None if it is not known to be one rank's fault.
    """

    rank: int | None
    summary: str
    traceback: str
    status: int


def find_verdict(error: WorkerError, workers: Sequence[RemoteWorker]) -> Verdict:
    """Say whose error it is that ended the run; the exit status is the one of that rank.

    A signal is 128 and its number, as in a shell. Who left early, with status 0, has not failed
    itself, but the run has: 1.
    """
    text, trace, status = str(error), "", 1
    if isinstance(error, WorkerFailed):
        status = error.exit_code or 1
        if error.remote_type != "SystemExit":  # which says all in one line
            trace = error.remote_traceback
    elif isinstance(error, WorkerDied):
        status = 128 + error.signal if error.signal else error.exit_code or 1
        if error.exit_code == 0:
            text, _, trace = text.partition(" What one of them said:\n")
    trace = _OURS.sub("", trace).rstrip()
    line = text.partition("\n")[0].rstrip(". ")
    for rank, worker in enumerate(workers):
        if text.startswith(f"{worker.name} "):
            node = worker.name.removeprefix(f"rank {rank} at ").rpartition(":")[0]
            happened = line.removeprefix(worker.name).strip().replace("its work function", "it")
            return Verdict(
                rank, f"rank {rank} on {node} failed first: it {happened}", trace, status
            )
    return Verdict(None, line, trace, status)


def remedy(verdict: Verdict, python: str) -> str:
    """Return what may help after such an end, or nothing."""
    if missing := _MISSING.search(verdict.summary):
        return f"the ranks' Python is {python}; if another one has {missing[1]}: --python NAME"
    return ""


def explain_start(problem: str, start_timeout: float, *, imports_torch: bool) -> str:
    """Return why ranks do not start in terms of what this command runs, and of its options."""
    imported = "torch" if imports_torch else "what a rank needs"
    problem = problem.replace("imported miniray.cli.run_rank", f"imported {imported}")
    if "not ready after" in problem:
        problem += f"\n  to wait longer than {start_timeout:g} s: --start-timeout SECONDS"
    return problem
