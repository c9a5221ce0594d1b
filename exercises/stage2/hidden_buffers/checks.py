"""What waiting for many has to do."""

import os
import resource
import socket
import time
from typing import Any

from exercises.checking import expect, note

HIGH = 1100  # beyond what select's bit mask holds


def _pair(answer: Any) -> tuple[Any, socket.socket]:
    ours, theirs = socket.socketpair()
    return answer.channel.Channel(ours), theirs


def _end(channel: Any) -> None:
    channel._ended = ConnectionResetError("it is gone")


def _names(found: Any, channels: list[Any]) -> str:
    if not isinstance(found, list):
        return repr(found)
    return f"numbers {[channels.index(one) for one in found if one in channels]}"


def check_order(answer: Any) -> None:
    """wait for five channels, of which numbers 3 and 1 have received bytes"""
    pairs = [_pair(answer) for _ in range(5)]
    channels = [one for one, _ in pairs]
    for number in (3, 1):
        pairs[number][1].sendall(b"x")
    given = list(reversed(channels))
    happened = _names(answer.channel.wait(given, 1.0), given)
    expect(
        happened == "numbers [1, 3]", expected="numbers [1, 3] of those given", happened=happened
    )


def check_any_iterable(answer: Any) -> None:
    """wait for what a generator yields: two channels, of which number 1 has received bytes"""
    pairs = [_pair(answer) for _ in range(2)]
    channels = [one for one, _ in pairs]
    pairs[1][1].sendall(b"x")
    happened = _names(answer.channel.wait((one for one in channels), 1.0), channels)
    expect(happened == "numbers [1]", expected="numbers [1]", happened=happened)


def check_ended(answer: Any) -> None:
    """wait, as long as it takes, for two channels, of which number 1 has ended"""
    pairs = [_pair(answer) for _ in range(2)]
    channels = [one for one, _ in pairs]
    _end(channels[1])
    note("number 1 had ended, and no socket had any bytes")
    happened = _names(answer.channel.wait(channels, None), channels)
    expect(happened == "numbers [1]", expected="numbers [1], at once", happened=happened)


def check_closed(answer: Any) -> None:
    """wait for two channels, of which number 0 has been closed"""
    pairs = [_pair(answer) for _ in range(2)]
    channels = [one for one, _ in pairs]
    channels[0].close()
    happened = _names(answer.channel.wait(channels, 1.0), channels)
    expect(happened == "numbers [0]", expected="numbers [0]", happened=happened)


def check_ended_and_socket(answer: Any) -> None:
    """wait for three channels; number 0 has ended, number 2 has bytes in its socket"""
    pairs = [_pair(answer) for _ in range(3)]
    channels = [one for one, _ in pairs]
    _end(channels[0])
    pairs[2][1].sendall(b"third")
    happened = _names(answer.channel.wait(channels, 1.0), channels)
    expect(happened == "numbers [0, 2]", expected="numbers [0, 2]", happened=happened)


def check_socket_and_ended(answer: Any) -> None:
    """wait for three channels; number 0 has bytes in its socket, number 2 has ended"""
    pairs = [_pair(answer) for _ in range(3)]
    channels = [one for one, _ in pairs]
    pairs[0][1].sendall(b"first")
    _end(channels[2])
    happened = _names(answer.channel.wait(channels, 1.0), channels)
    expect(happened == "numbers [0, 2]", expected="numbers [0, 2]", happened=happened)


def check_end_of_file(answer: Any) -> None:
    """wait for two channels, of which number 0 has been hung up on"""
    pairs = [_pair(answer) for _ in range(2)]
    channels = [one for one, _ in pairs]
    pairs[0][1].close()
    happened = _names(answer.channel.wait(channels, 1.0), channels)
    expect(happened == "numbers [0]", expected="numbers [0]", happened=happened)


def check_timeout(answer: Any) -> None:
    """wait for 0.2 seconds for a channel that says nothing"""
    channel, _theirs = _pair(answer)
    note("a timeout of 0.2 seconds had been asked for")
    started = time.monotonic()
    found = answer.channel.wait([channel], 0.2)
    seconds = time.monotonic() - started
    expect(found == [], expected="[]", happened=repr(found))
    waited = "less than a tenth" if seconds < 0.1 else "0.2 or more"
    expect(seconds >= 0.1, expected="[] after 0.2 seconds", happened=f"[] after {waited}")


def check_past_deadline(answer: Any) -> None:
    """wait for -0.5 seconds, which is what is left until a deadline that has passed"""
    channel, _theirs = _pair(answer)
    note("the deadline had passed before wait was called")
    found = answer.channel.wait([channel], -0.5)
    expect(found == [], expected="[], at once", happened=repr(found))


def check_many(answer: Any) -> None:
    """wait for a channel whose descriptor has the number 1100"""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard <= HIGH:
        return  # this machine does not allow so many
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, HIGH + 10), hard))
    ours, theirs = socket.socketpair()
    channel = answer.channel.Channel(socket.socket(fileno=os.dup2(ours.fileno(), HIGH)))
    theirs.sendall(b"x")
    happened = _names(answer.channel.wait([channel], 1.0), [channel])
    expect(happened == "numbers [0]", expected="numbers [0]", happened=happened)


def check_no_time_at_all(answer: Any) -> None:
    """wait for 0 seconds for a channel that says nothing"""
    channel, _theirs = _pair(answer)
    note("there was no time to wait, and nothing had come")
    found = answer.channel.wait([channel], 0)
    expect(found == [], expected="[], at once", happened=repr(found))
