"""Reap every worker that has ended, and nobody else."""

import os


def reap(workers: dict[int, str]) -> dict[str, int]:
    """Reap, without waiting, every worker that has ended; return their exit codes by name.

    `workers` are names by pid, and those that have ended are taken out of it. The exit code is -N
    for signal N. Other children of this process are not ours to reap. A worker whose status
    somebody else has taken has the exit code 255.
    """
    # begin yours
    # end yours
