"""How a work function ends: told in a last frame, and read on the other side."""

import contextlib
import copy
import sys
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from miniray import wire
from miniray.errors import ProtocolError, WorkerFailed

if TYPE_CHECKING:
    from miniray.channel import Channel

TEXT_CHARS_MAX = 64 * 1024

AnyError = TypeVar("AnyError", bound=BaseException)


def run_work(work_fn: "Callable[[Channel], Any]", channel: "Channel") -> int:
    """Run a work function, tell the other side how it ended, and return the exit status.

    Anything but a return, sys.exit() and sys.exit(0) is a failure, which comes with a traceback.
    """
    try:
        work_fn(channel)
    except BaseException as error:
        if is_ending(error, channel.ended):
            # A function that did not expect the coordinator to leave has ended all the same.
            return 0 if isinstance(error, EOFError) else 1
        code = _exit_code(error)
        if code:
            with contextlib.suppress(OSError, ValueError, AttributeError):  # disk full, no stderr
                sys.stderr.write(_what_python_prints(error))
            channel.say_ending(wire.ERROR, _describe(error, code))
            return code
    channel.say_ending(wire.EXIT, {})
    return 0


def _exit_code(error: BaseException) -> int:
    """Return what Python would exit with: sys.exit takes a number, None, or a text to print."""
    if not isinstance(error, SystemExit):
        return 1
    return error.code & 0xFF if isinstance(error.code, int) else int(error.code is not None)


def _what_python_prints(error: BaseException) -> str:
    if not isinstance(error, SystemExit):
        return _format(error)
    return "" if isinstance(error.code, int) else f"{error}\n"


def without_frames_of(trace: TracebackType | None, *modules: str) -> TracebackType | None:
    """Return a traceback from the first frame on that is in none of these parts of miniray."""
    ours = {f"miniray.{module}" for module in modules}
    while trace and trace.tb_frame.f_globals.get("__name__") in ours:
        trace = trace.tb_next
    return trace


def _format(error: BaseException) -> str:
    trace = without_frames_of(error.__traceback__, "endings", "calls")
    try:
        return "".join(traceback.format_exception(type(error), error, trace))
    except Exception as nested:  # an attribute of the user's own may do anything, too
        lines = "".join(traceback.format_tb(trace))
        return f"{lines}{type(error).__name__}: <cannot be shown: {type(nested).__name__}>\n"


def _describe(error: BaseException, code: int) -> dict[str, Any]:
    text = _text_of(error)
    if isinstance(error, SystemExit):
        said = "" if isinstance(error.code, int) else f": {text}"
        text = f"exited with status {code}{said}"
    failed_at = _noted(error, "failed_at")
    return {
        "type": type(error).__name__,
        "message": text,
        "traceback": _format(error)[-TEXT_CHARS_MAX:],
        "code": code,
        # A process group notes both before it is torn down, which makes the other ranks fail.
        "time": failed_at if type(failed_at) is float else time.time(),
        "in_collective": _noted(error, "in_collective") is True,
    }


def _noted(error: BaseException, name: str) -> Any:
    """Return an attribute of an exception, whatever the exception makes of that."""
    with contextlib.suppress(Exception):  # the user's own may have anything under this name
        return getattr(error, name, None)


def _text_of(error: BaseException) -> str:
    try:
        return str(error)[:TEXT_CHARS_MAX]
    except Exception as nested:  # a __str__ may do anything, and must not hide the traceback
        return f"<its __str__ raised {type(nested).__name__}>"


def read_ending(frame: wire.Frame, name: str, goodbye: Exception) -> Exception:
    """Return what a frame that is no message says about the end of the other side."""
    body = frame.body
    if frame.kind == wire.EXIT:
        return goodbye
    if frame.kind != wire.ERROR or type(body) is not dict:
        return ProtocolError(f"{name} sent a frame of kind {frame.kind} in mid-conversation")
    kind, text, trace = (str(body.get(key)) for key in ("type", "message", "traceback"))
    code, failed_at = body.get("code"), body.get("time")
    happened = text if kind == "SystemExit" else f"raised {kind}: {text}"
    return WorkerFailed(
        f"{name} {happened}\n\nIts traceback:\n{trace}",
        remote_type=kind,
        remote_traceback=trace,
        failed_at=failed_at if type(failed_at) is float else 0.0,
        exit_code=code if type(code) is int else 1,
        in_collective=body.get("in_collective") is True,
    )


def is_ending(error: BaseException, ended: Exception | None) -> bool:
    """Return whether an exception is what a channel raises that has ended like this."""
    return ended is not None and type(error) is type(ended) and error.args == ended.args


def keep(error: AnyError) -> AnyError:
    """Return an exception that is to be kept, which holds nobody's frames from now on.

    Both its own and its causes' tracebacks would, and what the user was handling meanwhile.
    """
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = link.__context__ = None
        link = link.__cause__
    return error


def again(error: AnyError) -> AnyError:
    """Return a new exception that says the same as one that is kept, to be raised.

    Raising the kept one itself would tie it to the frames, and all their variables, of everybody
    whom it has been raised to.
    """
    new = copy.copy(error)
    new.__cause__ = error.__cause__
    return new
