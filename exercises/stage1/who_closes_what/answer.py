"""Fork a worker that holds one end of a socketpair, and nothing else."""

import os
import socket
import sys
import traceback
from collections.abc import Callable


def start_worker(
    work: Callable[[socket.socket], None],
    ours: socket.socket,
    theirs: socket.socket,
    siblings: list[socket.socket],
) -> int:
    """Fork a child that runs `work(theirs)`; return its pid.

    `ours` is the parent's end of the pair, and `siblings` are its ends of the pairs of workers that
    it started before. The child ends with status 0, or with 1 and a traceback on stderr if `work`
    raises. It never returns from here.
    """
    sys.stdout.flush()  # else the child would print what is in the buffer once more
    pid = os.fork()
    # begin yours
    # end yours
    return pid
