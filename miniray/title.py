"""What ps and top call a process of ours."""

import contextlib
import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

COMM_CHARS_MAX = 15
# Of /proc/self/stat, behind the name.
_ARGUMENTS_BEGIN, _ARGUMENTS_END = 45, 46


def set_title(who: str, work: str | Callable[..., Any]) -> None:
    """Have ps show this process as "miniray WHO: WORK", as far as there is room; on Linux alone.

    It takes the place of the command line, in memory that the kernel shows to ps, and of which
    Python has had a copy since its start. The name that `top` shows has 15 characters.
    """
    if not isinstance(work, str):
        work = getattr(work, "func", work)  # a partial's arguments are nobody else's business
        work = f"{work.__module__}.{getattr(work, '__qualname__', type(work).__qualname__)}"
    title = f"miniray {who}: {work}"
    name = f"miniray {who.partition(' of ')[0]}"
    if len(name) > COMM_CHARS_MAX:
        name = name.removeprefix("miniray ")
    with contextlib.suppress(OSError, ValueError, IndexError):  # no /proc, or not such a one
        Path("/proc/self/comm").write_text(name)
        numbers = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        begin, end = int(numbers[_ARGUMENTS_BEGIN]), int(numbers[_ARGUMENTS_END])
        old = Path("/proc/self/cmdline").read_bytes()
        # Where the kernel does not read what stands there, it is not what it seems to be.
        if 0 < len(old) == end - begin and ctypes.string_at(begin, len(old)) == old:
            new = title.encode(errors="replace")[: len(old) - 1]
            ctypes.memmove(begin, new.ljust(len(old), b"\0"), len(old))
