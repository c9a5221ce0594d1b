"""What may happen while ranks agree on a place to meet."""

import contextlib
import socket
from types import ModuleType

from exercises.checking import expect, note

HERE = "127.0.0.1"
NODE = "127.0.0.7"  # every address that begins with 127 is this machine
ELSEWHERE = "127.0.0.8"  # where no other program has a port of the same number


def _connects(address: str, port: int) -> str:
    """Return how a connection goes, in words."""
    try:
        socket.create_connection((address, port), timeout=5).close()
    except OSError as error:
        return f"{type(error).__name__}"
    return "connected"


def check_two_runs(answer: ModuleType) -> None:
    """open two rendezvous on one machine, for two runs"""
    told: list[int] = []
    with (
        answer.open_rendezvous(HERE, told.append),
        answer.open_rendezvous(HERE, told.append),
    ):
        happened = f"ports {told}"
        expect(len(set(told)) == 2, expected="two ports", happened=happened)


def check_a_rank_that_connects(answer: ModuleType) -> None:
    """connect from another rank, after the answer has returned"""
    told: list[int] = []
    with answer.open_rendezvous(HERE, told.append):
        expect(len(told) == 1, expected="one port to be told", happened=f"{told} was told")
        happened = _connects(HERE, told[0])
        expect(happened == "connected", expected="connected", happened=happened)


def check_a_thief(answer: ModuleType) -> None:
    """let another program bind the port, if it is free, at the moment when it is told"""
    with contextlib.ExitStack() as stack:

        def steal(port: int) -> None:
            thief = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                thief.bind((HERE, port))
                thief.listen()
                note(f"another program had port {port}")

        stack.enter_context(answer.open_rendezvous(HERE, steal))


def check_a_fast_rank(answer: ModuleType) -> None:
    """connect from another rank at the very moment when the port is told"""
    results: list[str] = []
    with answer.open_rendezvous(HERE, lambda port: results.append(_connects(HERE, port))):
        pass
    expect(results == ["connected"], expected="connected", happened=", ".join(results))


def check_a_sharer(answer: ModuleType) -> None:
    """let another program of ours listen on the same port, if the system lets it"""
    shared: list[int] = []
    with contextlib.ExitStack() as stack:

        def share(port: int) -> None:
            other = stack.enter_context(socket.socket())
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            with contextlib.suppress(OSError):
                other.bind((HERE, port))
                other.listen()
                shared.append(port)

        stack.enter_context(answer.open_rendezvous(HERE, share))
    happened = "another run listens there as well, and gets some of the ranks"
    expect(not shared, expected="the port to be ours alone", happened=happened)


def check_the_address(answer: ModuleType) -> None:
    """open one at 127.0.0.7, as the address that the other nodes know, and connect there"""
    told: list[int] = []
    with answer.open_rendezvous(NODE, told.append):
        happened = _connects(NODE, told[0])
        expect(happened == "connected", expected="connected", happened=happened)
        happened = _connects(ELSEWHERE, told[0])
        expected = f"nobody listening at {ELSEWHERE}, which was not asked for"
        expect(happened != "connected", expected=expected, happened="somebody listens there")


def check_many_ranks(answer: ModuleType) -> None:
    """connect from 8 ranks at once, before anybody is accepted"""
    told: list[int] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(answer.open_rendezvous(HERE, told.append))
        connected = 0
        with contextlib.suppress(TimeoutError):
            for _ in range(8):
                stack.enter_context(socket.create_connection((HERE, told[0]), timeout=0.5))
                connected += 1
    happened = f"{connected}: there was no room for more to wait"
    expect(connected == 8, expected="8 of 8 connected", happened=happened)
