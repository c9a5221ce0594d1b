"""What a worker has to say at its end."""

import sys
from collections.abc import Callable
from typing import Any

from exercises.checking import expect


class Said:
    """What run_work has of a channel: how to say a last thing."""

    name = "coordinator"

    def __init__(self, answer: Any) -> None:
        self.said: list[tuple[str, Any]] = []
        self._names = {answer.wire.ERROR: "ERROR", answer.wire.EXIT: "EXIT"}

    def _send_last(self, kind: int, body: Any, flags: int = 0) -> None:
        self.said.append((self._names.get(kind, repr(kind)), body))

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.said]


def _run(answer: Any, work: Callable[[], Any]) -> tuple[Said, Any]:
    channel = Said(answer)
    try:
        return channel, answer.channel.run_work(lambda channel: work(), channel)
    except BaseException as error:
        return channel, f"{type(error).__name__} came out of run_work"


def check_returns(answer: Any) -> None:
    """run a function that returns None, and one that returns 7"""
    for returned in (None, 7):
        channel, status = _run(answer, lambda returned=returned: returned)
        expect(
            (channel.kinds, status) == (["EXIT"], 0),
            expected="one EXIT, and status 0",
            happened=f"{channel.kinds}, status {status}",
        )


def check_raises(answer: Any) -> None:
    """run a function that raises KeyError("rank 12")"""

    def work() -> None:
        raise KeyError("rank 12")

    channel, status = _run(answer, work)
    happened = f"said {channel.kinds}, status {status}"
    expect(channel.kinds == ["ERROR"], expected="one ERROR", happened=happened)
    body = channel.said[0][1]
    expect(
        (body.get("type"), body.get("message"), status) == ("KeyError", "'rank 12'", 1),
        expected="type KeyError, message 'rank 12', status 1",
        happened=f"type {body.get('type')}, message {body.get('message')}, status {status}",
    )
    trace = str(body.get("traceback"))
    expect(
        "in work" in trace and trace.strip().endswith("KeyError: 'rank 12'"),
        expected="a traceback with the function work in it, and the error at its end",
        happened=f"{trace[-60:]!r}",
    )


def check_sys_exit(answer: Any) -> None:
    """run functions that call sys.exit with 3, None, 0, and a text"""
    for argument, kind, code in (
        (3, "ERROR", 3),
        (None, "EXIT", 0),
        (0, "EXIT", 0),
        ("out of data", "ERROR", 1),
    ):
        channel, status = _run(answer, lambda argument=argument: sys.exit(argument))
        expect(
            (channel.kinds, status) == ([kind], code),
            expected=f"one {kind} and status {code} for sys.exit({argument!r})",
            happened=f"{channel.kinds}, status {status!r} for sys.exit({argument!r})",
        )


def check_a_traceback(answer: Any) -> None:
    """run a function that raises ValueError, and read the traceback's last line"""

    def work() -> None:
        raise ValueError("no data")

    body = _run(answer, work)[0].said[0][1]
    trace = body.get("traceback")
    expect(isinstance(trace, str), expected="a str", happened=f"a {type(trace).__name__}")
    last = trace.rstrip().rpartition("\n")[2]
    expect(last == "ValueError: no data", expected="'ValueError: no data'", happened=repr(last))


def check_a_code_of_its_own(answer: Any) -> None:
    """run a function that raises an exception whose attribute `code` is 0"""

    class RefusedError(Exception):
        code = 0

    def work() -> None:
        raise RefusedError

    channel, status = _run(answer, work)
    happened = f"{channel.kinds}, status {status}"
    right = (channel.kinds, status) == (["ERROR"], 1)
    expect(right, expected="one ERROR, and status 1", happened=happened)
