"""Show what was seen: the verdict first, then the ranks' stacks, equal ones together."""

import html
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from miniray.looking.activity import STOPPED
from miniray.looking.seen import Seen
from miniray.looking.stacks import Frame, Stack
from miniray.looking.verdict import names, tell

INDENT, CUT = "    ", "..."
FRAMES_MAX = 12
LIBRARY_FRAMES_MAX = 2
PIDS_MAX = 8
HTML_COLUMNS = 100
NO_LIMIT = 10_000  # for what scrolls, or is a file


def as_text(
    verdict: str, everybody: Sequence[Seen], width: int, line_chars_max: int | None = None
) -> str:
    """Return all of it for that many columns; calls have `line_chars_max`, or are as long as that.

    Where a call stands is not cut off in any case, and its file's name only at the beginning.
    """
    line_chars_max = line_chars_max or width
    lines = textwrap.wrap(verdict, width, break_long_words=False, break_on_hyphens=False)
    lines += [_hint(one) for one in everybody if one.does.kind == STOPPED]
    for group in _alike(everybody):
        lines += ["", *_wrap(_head(group), width)]
        lines += _wrap_indented(_transfers(group), width) if len(group) == 1 else []
        for number, stack in enumerate(group[0].stacks):
            lines += _show_stack(group[0], stack, number, line_chars_max)
    return "\n".join(lines)


def as_html(verdict: str, everybody: Sequence[Seen]) -> str:
    """Return all of it for a notebook."""
    lines = as_text("", everybody, HTML_COLUMNS, NO_LIMIT)
    return f"<p><b>{html.escape(verdict)}</b></p><pre>{html.escape(lines.strip())}</pre>"


def _hint(one: Seen) -> str:
    return f"To let {names([one])} go on: kill -CONT {one.pid}, on {one.node}."


def _alike(everybody: Sequence[Seen]) -> list[list[Seen]]:
    """Return those together that are in the same calls, the smallest groups first."""
    groups: dict[object, list[Seen]] = {}
    for one in everybody:
        calls = tuple(tuple(map(str, stack)) for stack in one.stacks)
        alone = "" if (calls or one.problem) and one.rank is not None else one.name
        groups.setdefault((one.does.kind, calls, one.problem, alone), []).append(one)
    return sorted(groups.values(), key=len)


def _head(group: Sequence[Seen]) -> str:
    """Return who is in a group, where, and what they do there, but not at which line."""
    where: dict[str, list[Seen]] = {}
    for one in group:
        where.setdefault(one.node, []).append(one)
    shows_pids = len(group) <= PIDS_MAX and all(one.pid for one in group)
    places = [
        node + (f", pid {', '.join(str(one.pid) for one in some)}" if shows_pids else "")
        for node, some in where.items()
    ]
    return f"{names(group)} ({'; '.join(places)}): {tell(group, with_place=False)}"


def _transfers(group: Sequence[Seen]) -> str:
    """Return how much one has sent and received, and when."""
    facts: Mapping[str, Any] = group[0].facts
    if "sent_s_ago" not in facts:
        return ""
    text = f"last sent something {facts['sent_s_ago']:.1f} s ago, "
    text += f"and got something {facts['received_s_ago']:.1f} s ago"
    if facts.get("unread_bytes"):
        text += f"; {facts['unread_bytes']} bytes that have come it has not read"
    return text


def _show_stack(one: Seen, stack: Stack, number: int, width: int) -> list[str]:
    """Return a stack's lines: the user's calls, the innermost first, and what they have called."""
    users = [frame for frame in stack if frame.is_users]
    if not users:
        return []
    lines = [f"{INDENT}in another thread:"] if number else []
    for frame in users[:FRAMES_MAX]:
        lines.append(INDENT + _fit(frame, width - len(INDENT)))
        if frame == users[0] == one.does.place and one.source:
            lines.append(_cut(f"{INDENT * 2}{one.source}", width))
        if frame is users[0]:
            called = [one for one in stack[: stack.index(frame)] if not one.is_ours]
            for inner in called[:LIBRARY_FRAMES_MAX]:
                lines.append(_cut(f"{INDENT * 2}in {_short(inner)}", width))
    return lines


def _fit(frame: Frame, width: int) -> str:
    """Return a call with as much of its file's path as there is room for, and all of the rest."""
    file, rest = frame.short_file, str(frame).removeprefix(frame.short_file)
    room = max(width - len(rest), len(PurePath(file).name) + len(CUT))
    return f"{file if len(file) <= room else CUT + file[len(CUT) - room :]}{rest}"


def _short(frame: Frame) -> str:
    return f"{frame.function} ({frame.short_file}:{frame.line})"


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent=INDENT, break_on_hyphens=False)


def _wrap_indented(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=INDENT, subsequent_indent=INDENT)


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: width - len(CUT)]}{CUT}"
