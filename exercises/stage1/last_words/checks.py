"""What a worker has to say at its end."""

import sys
from types import ModuleType
from typing import Any

from exercises.checking import expect


def _run(answer: ModuleType, work: Any) -> tuple[list[dict[str, Any]], Any]:
    said: list[dict[str, Any]] = []
    try:
        return said, answer.run_work(work, said.append)
    except BaseException as error:
        return said, f"{type(error).__name__} came out of run_work"


def check_returns(answer: ModuleType) -> None:
    """run a function that returns"""
    said, status = _run(answer, lambda: None)
    expect(
        (said, status) == ([{"kind": "exit", "code": 0}], 0),
        expected="one exit with code 0, and status 0",
        happened=f"{said}, status {status}",
    )


def check_raises(answer: ModuleType) -> None:
    """run a function that raises KeyError("rank 12")"""

    def work() -> None:
        raise KeyError("rank 12")

    said, status = _run(answer, work)
    kinds = [one.get("kind") for one in said]
    expect(kinds == ["error"], expected="one error", happened=f"said {kinds}, status {status}")
    expect(
        (said[0].get("type"), said[0].get("message"), status) == ("KeyError", "'rank 12'", 1),
        expected="type KeyError, message 'rank 12', status 1",
        happened=f"type {said[0].get('type')}, message {said[0].get('message')}, status {status}",
    )
    trace = str(said[0].get("traceback"))
    expect(
        "in work" in trace and "KeyError" in trace,
        expected="a traceback that names the function work",
        happened=f"{trace[-60:]!r}",
    )


def check_sys_exit(answer: ModuleType) -> None:
    """run functions that call sys.exit with 3, None, and a text"""
    for argument, code in ((3, 3), (None, 0), ("out of data", 1)):
        said, status = _run(answer, lambda argument=argument: sys.exit(argument))
        expect(
            (said, status) == ([{"kind": "exit", "code": code}], code),
            expected=f"one exit with code {code} for sys.exit({argument!r})",
            happened=f"{[one.get('kind') for one in said]}, status {status!r}",
        )


def check_interrupt(answer: ModuleType) -> None:
    """run a function that is interrupted by Ctrl-C"""

    def work() -> None:
        raise KeyboardInterrupt

    said, status = _run(answer, work)
    kinds = [one.get("type") for one in said]
    expect(
        (kinds, status) == (["KeyboardInterrupt"], 1),
        expected="one error of type KeyboardInterrupt, and status 1",
        happened=f"said {kinds}, status {status}",
    )
