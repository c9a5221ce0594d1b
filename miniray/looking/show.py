"""Show what was seen: the verdict first, then the ranks' stacks, equal ones together."""

import html
import textwrap
from collections.abc import Sequence

from miniray.looking.activity import STOPPED
from miniray.looking.seen import Seen
from miniray.looking.stacks import Frame, Stack
from miniray.looking.verdict import names, tell

INDENT = "    "
FRAMES_MAX = 12
HTML_COLUMNS = 100


def as_text(verdict: str, everybody: Sequence[Seen], width: int) -> str:
    """Return all of it for a terminal of that many columns."""
    lines = textwrap.wrap(verdict, width, break_long_words=False, break_on_hyphens=False)
    lines += [_hint(one) for one in everybody if one.does.kind == STOPPED]
    for group in _alike(everybody):
        lines += ["", *textwrap.wrap(_head(group), width, subsequent_indent=INDENT)]
        for number, stack in enumerate(group[0].stacks):
            lines += _show_stack(stack, number, width)
    return "\n".join(lines)


def _hint(one: Seen) -> str:
    return f"To let {names([one])} go on: kill -CONT {one.pid}, on {one.node}."


def as_html(verdict: str, everybody: Sequence[Seen]) -> str:
    """Return all of it for a notebook."""
    text = as_text(verdict, everybody, HTML_COLUMNS).removeprefix(verdict)
    return f"<p><b>{html.escape(verdict)}</b></p><pre>{html.escape(text)}</pre>"


def _alike(everybody: Sequence[Seen]) -> list[list[Seen]]:
    """Return those together that are in the same calls, the smallest groups first."""
    groups: dict[object, list[Seen]] = {}
    for one in everybody:
        calls = tuple(tuple(map(str, stack)) for stack in one.stacks)
        alone = one.name if not calls or one.rank is None else ""
        groups.setdefault((one.does.kind, calls, one.problem, alone), []).append(one)
    return sorted(groups.values(), key=len)


def _head(group: Sequence[Seen]) -> str:
    where: dict[str, list[int]] = {}
    for one in group:
        where.setdefault(one.node, []).append(one.pid or 0)
    places = [
        f"{node}" + (f", pid {', '.join(map(str, pids))}" if any(pids) else "")
        for node, pids in where.items()
    ]
    return f"{names(group)} ({'; '.join(places)}) {tell(group)}"


def _show_stack(stack: Stack, number: int, width: int) -> list[str]:
    """Return a stack's lines: the user's calls, the innermost first, and what they have called."""
    users = [frame for frame in stack if frame.is_users]
    inside = stack[: stack.index(users[0])] if users else ()
    lines = [f"{INDENT}in another thread:"] if number and users else []
    lines += [f"{INDENT}{frame}" for frame in users[:FRAMES_MAX]]
    if users and inside:
        calls = ", ".join(_short(frame) for frame in inside[:3])
        lines += textwrap.wrap(
            f"inside of {users[0].function}'s call: {calls}",
            width,
            initial_indent=INDENT * 2,
            subsequent_indent=INDENT * 2,
        )
    return lines


def _short(frame: Frame) -> str:
    return f"{frame.function} ({frame.short_file}:{frame.line})"
