"""Why a cluster cannot start, in words: one text for all of its nodes."""

import difflib
import os
import pkgutil
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from miniray.work_fn import AnyFunction, name_of

if TYPE_CHECKING:
    from miniray.node import Node


class Fault(Exception):
    """What keeps a node from being of use, in words, and the traceback of the user's module."""

    def __init__(self, text: str, traceback: str = "") -> None:
        super().__init__(text)
        self.traceback = traceback


def check_start(work_fn: str | AnyFunction) -> str:
    """Return a work function's name; raise what is wrong with it, or with the moment to start."""
    if module := os.environ.get("MINIRAY_IMPORTING"):
        raise RuntimeError(
            f"module {module} starts a cluster when it is imported, which each node does as well; "
            'put what only the coordinator is to do below: if __name__ == "__main__":'
        )
    return name_of(work_fn)


def list_faults(
    faults: "dict[Node, Any]", first: "Node | None", seconds: float, modules: Iterable[str]
) -> str:
    """Return one text with every node's fault, and at its end the first culprit's traceback."""
    guilty = [node for node, fault in faults.items() if fault or (fault is False and not first)]
    lines = [f"{len(guilty)} of {len(faults)} nodes failed to start; nothing was left running:"]
    for node, fault in faults.items():
        if fault is False:
            because = f" because of {first.label}" if first else ""
            lines.append(f"  {node.label}: given up after {seconds:.1f}s{because}")
        elif fault:
            lines.append(f"  {node.label}: {fault}{_did_you_mean(str(fault), modules)}")
    for node in sorted(guilty, key=lambda one: one is not first):
        if trace := getattr(faults[node], "traceback", ""):
            lines.append(f"\nThe traceback at {node.label}:\n{trace.rstrip()}")
            break
    return "\n".join(lines)


def _did_you_mean(fault: str, modules: Iterable[str]) -> str:
    """Suggest a module that is here for one that is not there."""
    if not (missing := re.search(r"No module named '([\w.]+)'", fault)):
        return ""
    here = [*modules, *(module.name for module in pkgutil.iter_modules())]
    close = difflib.get_close_matches(missing[1], here, 1)
    return f"; did you mean {close[0]}?" if close else ""
