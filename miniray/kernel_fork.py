"""What a child that is forked from a notebook's kernel must not use: its streams, and its prompt.

They are sockets, with threads and locks that the child has only copies of. A print would wait for
ever for a lock that some thread held at the fork. The kernel shows what its own descriptors 1 and 2
bring, so that is where the child writes.
"""

import builtins
import os
import sys
from typing import Any, NoReturn


def calm_child() -> None:
    """Have a forked child print to its descriptors, and wait for no input, if this is a kernel."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream: Any = getattr(sys, name)
        if type(stream).__module__ == "ipykernel.iostream":
            plain = os.fdopen(number, "w", 1, errors="backslashreplace", closefd=False)
            # In the stream itself: logging's handlers hold it, too.
            stream.write, stream.flush = plain.write, plain.flush
            builtins.input = _refuse_input


def _refuse_input(prompt: object = "") -> NoReturn:
    raise EOFError("a worker has nobody to ask; send what it needs")
