"""What doctor says: for people, in the width of their terminal, or in JSON."""

import json
import textwrap
from collections.abc import Sequence
from typing import Any, TextIO

from miniray.cli.doctor_findings import Check, Findings
from miniray.cli.run_screen import paint

WIDTH_MIN, WIDTH_MAX = 40, 120
MARKS = {"ok": "ok", "note": "note", "wrong": "WRONG", "untested": "-"}
COLOURS = {"ok": 32, "note": 33, "wrong": 31, "untested": 2}
NAME_COLUMNS = 10


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
        shown = [one for one in own if one.state == "wrong" or not is_brief]
        lines.append(paint(_title(findings, own), 1, stream))
        for one in shown:
            lines += _check_lines(one, width, stream)
        if shown:
            lines.append("")
    return "\n".join([*lines, *_sum_up(nodes, checks, width)])


def _title(findings: Findings, checks: Sequence[Check]) -> str:
    count = sum(one.state == "wrong" for one in checks)
    system = findings.fact("system")
    about = f"{system['system']}, {system['cpus']} CPUs" if system else ""
    state = f"{count} wrong" if count else "well"
    return f"{findings.name}: {state}" + (f"; {about}" if about else "")


def _check_lines(check: Check, width: int, stream: TextIO) -> list[str]:
    mark = MARKS[check.state].ljust(5)
    indent = " " * (5 + 2 + NAME_COLUMNS + 2)
    first = f"{mark}  {check.name.ljust(NAME_COLUMNS)}  {check.says}"
    lines = _wrap(first, width, indent)
    lines[0] = paint(mark, COLOURS[check.state], stream) + lines[0][len(mark) :]
    if check.fix:
        lines += _wrap(f"{indent}-> {check.fix}", width, f"{indent}   ")
    return lines


def _wrap(text: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        width,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
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
            {"name": one.name, "state": one.state, "says": one.says, "fix": one.fix or None}
            for one in checks
        ],
        "facts": findings.facts,
    }
