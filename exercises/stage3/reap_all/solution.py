"""Reap every worker that has ended, and nobody else."""

import os


def reap(workers: dict[int, str]) -> dict[str, int]:
    """Reap, without waiting, every worker that has ended; return their exit codes by name.

    `workers` are names by pid, and those that have ended are taken out of it. The exit code is -N
    for signal N. Other children of this process are not ours to reap. A worker whose status
    somebody else has taken has the exit code 255.
    """
    # begin yours
    ended = {}
    for pid in list(workers):
        try:
            found, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            found, status = pid, 255 << 8
        if found:
            ended[workers.pop(pid)] = os.waitstatus_to_exitcode(status)
    return ended
    # end yours
