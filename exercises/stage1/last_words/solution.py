"""Run a work function, and have every ending told."""

import traceback
from collections.abc import Callable
from typing import Any

# What a worker says last, besides its messages: {"kind": ..., and what goes with it}
Say = Callable[[dict[str, Any]], None]


def run_work(work: Callable[[], None], say: Say) -> int:
    """Run `work()`, say once how it ended, and return the exit status of the process.

    It returned: {"kind": "exit", "code": 0}. It called sys.exit: the same with its code, where
    None is 0 and a text is 1. It raised anything else: {"kind": "error", "type": the name of the
    exception's class, "message": its text, "traceback": as Python prints it}, and status 1.
    """
    # begin yours
    try:
        work()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        report = {"kind": "error", "type": type(error).__name__, "message": str(error)}
        say({**report, "traceback": traceback.format_exc()})
        return 1
    say({"kind": "exit", "code": code})
    return code
    # end yours
