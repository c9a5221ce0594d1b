"""Deterministic simulation of what does no I/O: the same seed, the same world, on every machine.

`frames` is a conversation cut anywhere; `strangers` is a server's front door with many clients at
once; `group` is the end of ranks that live and end together. All run the package's own code; the
sockets, the loop, the servers' answers and the clock are made up, and the clock jumps.
"""

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def replaced(*names: tuple[Any, str, Any]) -> Iterator[None]:
    """Set (module, name, value) for a while: what mock.patch does, thousands of times a second."""
    before = [(module, name, getattr(module, name)) for module, name, _ in names]
    try:
        for module, name, value in names:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
