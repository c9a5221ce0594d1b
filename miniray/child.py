"""What a forked child does: first, at its end, and whatever happens."""

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from miniray import kernel_fork, torch_fork

PR_SET_PDEATHSIG = 1


def run_child(
    run: Callable[[], int], parent: int, death_signal: int, torch_state: bool
) -> NoReturn:
    """Run a function and leave by its exit code, or by 1; never return into the caller."""
    code = 1
    try:
        os.setsid()  # also its own group, and Linux shares a core out among sessions
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if death_signal and sys.platform == "linux":
            import ctypes

            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, death_signal)
            if os.getppid() != parent:
                os._exit(code)  # it died before the kernel knew whom to watch
        kernel_fork.calm_child()
        torch_fork.calm_child(torch_state)
        code = run() & 0xFF  # as the kernel would: os._exit raises on what is no C int
        flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def flush() -> None:
    """Write out what stdout and stderr hold in their buffers."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):  # None, or closed
            stream.flush()
