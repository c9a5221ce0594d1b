"""Run a work function in its worker, and report how it ended."""

import contextlib
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from miniray import wire
from miniray.channel import Channel

TEXT_CHARS_MAX = 64 * 1024


def run_work(work_fn: Callable[[Channel], Any], channel: Channel) -> int:
    """Run a work function, tell the other side how it ended, and return the exit status.

    Anything but a return, sys.exit() and sys.exit(0) is a failure, which comes with a traceback.
    """
    try:
        work_fn(channel)
    except BaseException as error:
        # A function that did not expect the coordinator to leave has ended all the same.
        if channel.is_my_ending(error):
            return 0 if isinstance(error, EOFError) else 1
        code = _exit_code(error)
        if code:
            _print_to_stderr(error)
            channel.say_ending(wire.ERROR, _describe(error, code))
            return code
    channel.say_ending(wire.EXIT, {"code": 0, "time": time.time()})
    return 0


def _exit_code(error: BaseException) -> int:
    """Return what Python would exit with: sys.exit takes a number, None, or a text to print."""
    if not isinstance(error, SystemExit):
        return 1
    if isinstance(error.code, int):
        return error.code & 0xFF
    return int(error.code is not None)


def _print_to_stderr(error: BaseException) -> None:
    is_text = isinstance(error, SystemExit)
    text = f"{error}\n" if is_text else "".join(traceback.format_exception(error))
    with contextlib.suppress(OSError, ValueError, AttributeError):  # a full disk, or no stderr
        sys.stderr.write(text)


def _describe(error: BaseException, code: int) -> dict[str, Any]:
    trace = "".join(traceback.format_exception(error))
    message = _text_of(error)
    if isinstance(error, SystemExit):
        message = f"exited with status {code}" + (
            "" if isinstance(error.code, int) else f": {message}"
        )
    failed_at = _noted(error, "failed_at")
    return {
        "type": type(error).__name__,
        "message": message,
        "traceback": trace[-TEXT_CHARS_MAX:],
        "code": code,
        # A process group notes both before it is torn down, which makes the other ranks fail.
        "time": failed_at if type(failed_at) is float else time.time(),
        "in_collective": _noted(error, "in_collective") is True,
    }


def _noted(error: BaseException, name: str) -> Any:
    """Return an attribute of an exception, whatever the exception makes of that."""
    try:
        return getattr(error, name, None)
    except Exception:  # an exception of the user's may have anything under this name
        return None


def _text_of(error: BaseException) -> str:
    try:
        return str(error)[:TEXT_CHARS_MAX]
    except Exception as nested:  # a __str__ may do anything, and must not hide the traceback
        return f"<its __str__ raised {type(nested).__name__}>"
