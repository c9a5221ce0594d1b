"""Why a cluster cannot start, in words: one text for all of its nodes."""

import difflib
import os
import pkgutil
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

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
    nodes: "Sequence[Node]",
    faults: "Mapping[Node, BaseException | None]",
    seconds: float,
    modules: Iterable[str],
    *,
    what_is_left: str = "nothing was left running",
) -> str:
    """Return one text with every node's fault, and at its end the first culprit's traceback.

    `faults` begin with the first culprit; a node that was not done has None.
    """
    raised = [node for node, fault in faults.items() if fault is not None]
    failed = f"{len(raised or faults)} of {len(nodes)} nodes failed to start"
    lines = [f"{failed}; {what_is_left}:"]
    because = f" because of {raised[0].label}" if raised else ""
    for node in nodes:
        if (fault := faults.get(node)) is not None:
            lines.append(f"  {node.label}: {fault}{_did_you_mean(str(fault), modules)}")
        elif node in faults:
            lines.append(f"  {node.label}: given up after {seconds:.1f}s{because}")
    for node in raised:
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
