"""What doctor says: for people, in the width of their terminal, or in JSON."""

import json
import re
import textwrap
from collections.abc import Sequence
from typing import Any, TextIO

from miniray.cli.doctor_findings import Check, Findings
from miniray.cli.run_screen import paint
from miniray.worker_log import printable

WIDTH_MIN, WIDTH_MAX = 40, 120
MARKS = {"ok": "ok", "note": "note", "wrong": "WRONG", "untested": "-"}
BOLD, CYAN = 1, 36
NO_BREAK = "\N{NO-BREAK SPACE}"
COLOURS = {"ok": 32, "note": 33, "wrong": 31, "untested": 2}


def as_text(
    nodes: Sequence[Findings],
    checks: Sequence[Sequence[Check]],
    *,
    columns: int,
    stream: TextIO,
    is_brief: bool,
) -> str:
    """Return a paragraph a node, and what it comes to."""
    width = min(max(columns, WIDTH_MIN), WIDTH_MAX)
    lines: list[str] = []
    for findings, own in zip(nodes, checks, strict=True):
        shown = [one for one in _fold(own) if one.state == "wrong" or not is_brief]
        lines.append(paint(_title(findings, own), BOLD, stream))
        name_columns = max((len(one.name) for one in shown), default=0)
        for one in shown:
            lines += _check_lines(one, width, name_columns, stream)
        if shown:
            lines.append("")
    blank = [""] * bool(lines and lines[-1])
    return "\n".join([*lines, *blank, *_sum_up(nodes, checks, width)])


def _fold(checks: Sequence[Check]) -> list[Check]:
    """Return checks in which those that something else comes before are one."""
    shown = [one for one in checks if not one.is_waiting]
    waiting = [one for one in checks if one.is_waiting]
    if waiting:
        names = ", ".join(one.name for one in waiting)
        shown.append(Check("the rest", "untested", f"{waiting[0].says}: {names}"))
    return shown


def _title(findings: Findings, checks: Sequence[Check]) -> str:
    count = sum(one.state == "wrong" for one in checks)
    system = findings.fact("system")
    about = f"; {system['system']}, {system['cpus']} CPUs" if system else ""
    return f"{findings.name}: {f'{count} wrong' if count else 'well'}{about}"


def _check_lines(check: Check, width: int, name_columns: int, stream: TextIO) -> list[str]:
    mark, says, fix = MARKS[check.state].ljust(5), printable(check.says), printable(check.fix)
    indent = " " * (5 + 2 + name_columns + 2)
    lines = _wrap(f"{mark}  {check.name.ljust(name_columns)}  {says}", width, indent)
    lines[0] = paint(mark, COLOURS[check.state], stream) + lines[0][len(mark) :]
    if fix:
        # A command stays in one piece, however long, so that it can be copied.
        fix = re.sub("`.*?`", lambda one: one[0].replace(" ", NO_BREAK), fix)
        lines += _wrap(f"{indent}-> {fix}", width, f"{indent}   ")
    # Who copies a line that has nothing but a command wants no comma along.
    lines = [re.sub(r"^(\W*`[^`]*`)[,;]$", r"\1", line).replace(NO_BREAK, " ") for line in lines]
    return [re.sub("`(.*?)`", lambda one: _paint_command(one, stream), line) for line in lines]


def _paint_command(command: re.Match[str], stream: TextIO) -> str:
    painted = paint(command[1], CYAN, stream)
    return command[0] if painted == command[1] else painted


def _wrap(text: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(
        text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _sum_up(nodes: Sequence[Findings], checks: Sequence[Sequence[Check]], width: int) -> list[str]:
    seconds = max(one.seconds for one in nodes)
    ill = {
        findings.name: list(dict.fromkeys(one.name for one in own if one.state == "wrong"))
        for findings, own in zip(nodes, checks, strict=True)
    }
    ill = {name: wrong for name, wrong in ill.items() if wrong}
    count = f"{len(nodes)} node{'s' * (len(nodes) > 1)}"
    if not ill:
        return [f"miniray doctor: {count}, all well, after {seconds:.1f} s"]
    names = "; ".join(f"{name}: {', '.join(wrong)}" for name, wrong in ill.items())
    return _wrap(
        f"miniray doctor: {len(ill)} of {count} not well, after {seconds:.1f} s ({names})",
        width,
        "  ",
    )


def as_json(nodes: Sequence[Findings], checks: Sequence[Sequence[Check]]) -> str:
    """Return the same, with the facts, as the guide describes it."""
    return json.dumps(
        {
            "version": 1,
            "ok": not any(one.state == "wrong" for own in checks for one in own),
            "nodes": [_describe(*pair) for pair in zip(nodes, checks, strict=True)],
        },
        indent=2,
    )


def _describe(findings: Findings, checks: Sequence[Check]) -> dict[str, Any]:
    return {
        "name": findings.name,
        "host": findings.config.host,
        "ranks": findings.config.num_workers,
        "ok": not any(one.state == "wrong" for one in checks),
        "seconds": round(findings.seconds, 3),
        "checks": [
            {
                "name": one.name,
                "state": one.state,
                "says": one.says,
                "fix": one.fix or None,
            }
            for one in checks
        ],
        "facts": findings.facts,
    }
