"""What waiting for many has to do."""

import os
import resource
import socket
import time
from types import ModuleType
from typing import Any

from exercises.checking import expect, note

HIGH = 1100  # beyond what select's bit mask holds


def _pair(answer: ModuleType) -> tuple[Any, socket.socket]:
    ours, theirs = socket.socketpair()
    return answer.Connection(ours), theirs


def _names(found: Any, connections: list[Any]) -> str:
    if not isinstance(found, list):
        return repr(found)
    return f"numbers {[connections.index(one) for one in found if one in connections]}"


def check_order(answer: ModuleType) -> None:
    """wait for five connections, of which numbers 3 and 1 have received bytes"""
    pairs = [_pair(answer) for _ in range(5)]
    connections = [one for one, _ in pairs]
    for number in (3, 1):
        pairs[number][1].sendall(b"x")
    given = list(reversed(connections))
    happened = _names(answer.wait(given, 1.0), given)
    expect(
        happened == "numbers [1, 3]", expected="numbers [1, 3] of those given", happened=happened
    )


def check_pending(answer: ModuleType) -> None:
    """wait for two connections; number 1 has nothing in its socket, and six bytes pending"""
    pairs = [_pair(answer) for _ in range(2)]
    connections = [one for one, _ in pairs]
    connections[1].pending = b"second"
    note("number 1 had six bytes pending, and no socket had any")
    happened = _names(answer.wait(connections, None), connections)
    expect(happened == "numbers [1]", expected="numbers [1], at once", happened=happened)


def check_pending_and_socket(answer: ModuleType) -> None:
    """wait for three connections; number 0 has bytes pending, number 2 has some in its socket"""
    pairs = [_pair(answer) for _ in range(3)]
    connections = [one for one, _ in pairs]
    connections[0].pending = b"first"
    pairs[2][1].sendall(b"third")
    happened = _names(answer.wait(connections, 1.0), connections)
    expect(happened == "numbers [0, 2]", expected="numbers [0, 2]", happened=happened)


def check_end_of_file(answer: ModuleType) -> None:
    """wait for two connections, of which number 0 has been hung up on"""
    pairs = [_pair(answer) for _ in range(2)]
    connections = [one for one, _ in pairs]
    pairs[0][1].close()
    happened = _names(answer.wait(connections, 1.0), connections)
    expect(happened == "numbers [0]", expected="numbers [0]", happened=happened)


def check_timeout(answer: ModuleType) -> None:
    """wait for 0.2 seconds for a connection that says nothing"""
    connection, _theirs = _pair(answer)
    note("a timeout of 0.2 seconds had been asked for")
    started = time.monotonic()
    found = answer.wait([connection], 0.2)
    seconds = time.monotonic() - started
    expect(found == [], expected="[]", happened=repr(found))
    waited = "less than a tenth" if seconds < 0.1 else "0.2 or more"
    expect(seconds >= 0.1, expected="[] after 0.2 seconds", happened=f"[] after {waited}")


def check_many(answer: ModuleType) -> None:
    """wait for a connection whose descriptor has the number 1100"""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard <= HIGH:
        return  # this machine does not allow so many
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, HIGH + 10), hard))
    ours, theirs = socket.socketpair()
    connection = answer.Connection(socket.socket(fileno=os.dup2(ours.fileno(), HIGH)))
    theirs.sendall(b"x")
    happened = _names(answer.wait([connection], 1.0), [connection])
    expect(happened == "numbers [0]", expected="numbers [0]", happened=happened)
