"""A limit of memory that the kernel enforces by killing: a cgroup, of version 1 or 2."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from tests.support import poll

ROOT = Path("/sys/fs/cgroup")


def missing() -> str | None:
    """Say what this machine lacks to make such a cgroup, or None."""
    if _place() is None or os.geteuid() != 0:
        return "a limit of memory needs root, and a writable memory cgroup"
    return None


@contextlib.contextmanager
def limited(name: str, limit_bytes: int) -> Iterator[Path]:
    """Yield a new cgroup for the length of a `with` block; a pid in its cgroup.procs is in it."""
    place = _place()
    assert place is not None
    parent, limit = place
    group = parent / name
    group.mkdir()
    try:
        (group / limit).write_text(f"{limit_bytes}\n")
        yield group
    finally:
        poll.until(lambda: not (group / "cgroup.procs").read_text(), what=f"the end of {group}")
        group.rmdir()


def _place() -> tuple[Path, str] | None:
    """Return where such groups are made, and the name of the file that has the limit."""
    if (ROOT / "memory/memory.limit_in_bytes").exists():
        return ROOT / "memory", "memory.limit_in_bytes"
    with contextlib.suppress(OSError):
        if "memory" in (ROOT / "cgroup.subtree_control").read_text().split():
            return ROOT, "memory.max"
    return None
