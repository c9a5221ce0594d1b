"""Whether torch is here, which stage 5 needs, and how to get it: in words for whoever lacks it."""

import importlib.util

from stages.snapshots import REPOSITORY


def remedy() -> str | None:
    """Return how to get torch; None if this Python has it."""
    if importlib.util.find_spec("torch") is not None:
        return None
    if any(REPOSITORY.glob(".venv/lib/python*/site-packages/torch")):
        return "this clone's .venv has it: type .venv/bin/python for python"
    return "python -m pip install torch, or make demo, which puts it into .venv"
