"""Labs: break something real, predict what happens, and measure what is left."""

import difflib
import importlib
import sys

from exercises.labs.lab import SET_UP, Lab, perform
from exercises.report import command, paint

NAMES = (
    "kill-worker",
    "half-frame",
    "slow-reader",
    "stranger",
    "cut-link",
    "orphan",
    "dead-rank",
)


def main(name: str | None, *, ask: bool) -> int:
    """Run a lab, or list them without a name.

    Returns 0 if what was left is as the lab says, 1 if not, 2 if there is no such lab or it lacks
    something here.
    """
    if name is None:
        print(overview())
        return 0
    name = name.replace("_", "-")
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, 1)
        also = f"; did you mean {near[0]}?" if near else f"; {command('lab')} lists them"
        print(f"there is no lab {name!r}{also}", file=sys.stderr)
        return SET_UP
    return perform(load(name), name, ask=ask)


def load(name: str) -> Lab:
    """Return the lab of this name, one of NAMES."""
    module = importlib.import_module(f"exercises.labs.{name.replace('-', '_')}")
    lab: Lab = module.LAB
    return lab


def overview() -> str:
    """Return a line for each lab, and the command that runs one."""
    labs = [(name, load(name)) for name in NAMES]
    lines = [f"  {name:12} stage {lab.stage}  {lab.title}" for name, lab in labs]
    step = paint(command("lab kill-worker"), "blue")
    return "\n".join([paint("Labs", "bold"), "", *lines, "", f"next: {step}"])
