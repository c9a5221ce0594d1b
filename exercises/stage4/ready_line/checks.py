"""What waiting for a server has to do."""

import os
import select
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

from exercises.checking import expect, expect_raises, note

MARKER = b"ready-8f3a21c6"
TIMEOUT_S = 20.0


def _server(run: Callable[[Callable[[bytes], object]], None]) -> int:
    """Fork a process that runs with a function that prints; return what its output is read from."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.close(read)
        run(lambda text: os.write(write, text))
        os._exit(0)
    os.close(write)
    return read


def _ready(answer: ModuleType, *pieces: bytes, timeout_s: float = TIMEOUT_S) -> Any:
    """Wait for a server that prints these pieces, and then lives on until it is not read."""
    read, write = os.pipe()
    go_on, told = os.pipe()
    if os.fork() == 0:
        os.close(told)
        for piece in pieces:
            os.write(write, piece)
            time.sleep(0.05)
        os.read(go_on, 1)
        os._exit(0)
    os.close(go_on)
    os.close(write)
    port, after = answer.wait_until_ready(read, MARKER, timeout_s)
    if select.select([read], [], [], 0)[0]:  # one that has read no further is right as well
        after += os.read(read, 4096)
    os.close(told)
    os.wait()
    return port, after


def check_plain(answer: ModuleType) -> None:
    """start a server that prints its ready line, with the port 41825, at once"""
    note("the ready line had come, and the server was waiting to be connected to")
    got = _ready(answer, MARKER + b" 41825\n")
    expect(got == (41825, b""), expected="(41825, b'')", happened=repr(got))


def check_noise(answer: ModuleType) -> None:
    """start a server behind an rc file that prints two lines, and the command with the marker"""
    echo = b"+ exec python3 -m server --say " + MARKER + b" --port 0\n"
    note("two lines of noise and the ready line had come")
    got = _ready(answer, b"Welcome to node1, 3 updates\n\n" + echo + MARKER + b" 40127\n")
    expect(got == (40127, b""), expected="(40127, b'')", happened=repr(got))


def check_pieces(answer: ModuleType) -> None:
    """start a server whose ready line, with the port 40961, comes in two pieces"""
    note("the ready line had come in two pieces")
    got = _ready(answer, b"hello\n" + MARKER + b" 40", b"961\n")
    expect(got == (40961, b""), expected="(40961, b'')", happened=repr(got))


def check_what_comes_after(answer: ModuleType) -> None:
    """start a server that prints its ready line and the first line of its log in one piece"""
    note("the ready line and the first line of the log had come")
    got = _ready(answer, b"hi\n" + MARKER + b" 41003\nrank 5: loading\n")
    expected = "(41003, b'rank 5: loading\\n')"
    expect(got == (41003, b"rank 5: loading\n"), expected=expected, happened=repr(got))


def check_one_that_ends(answer: ModuleType) -> None:
    """start a server that says "python3: not found" and ends"""
    read = _server(lambda say: say(b"sh: 1: python3: not found"))
    note("it had said python3: not found, and ended")
    with expect_raises(EOFError, when="when the output ends"):
        try:
            answer.wait_until_ready(read, MARKER, TIMEOUT_S)
        except EOFError as error:
            happened = f"EOFError: {error}"
            expected = "an EOFError that shows what it said"
            expect("python3: not found" in str(error), expected=expected, happened=happened)
            raise
    os.wait()


def check_one_that_chatters(answer: ModuleType) -> None:
    """wait 0.4 s for a server that prints a line each 0.1 s, and is never ready"""

    def run(say: Callable[[bytes], object]) -> None:
        while True:
            say(b"still resolving\n")
            time.sleep(0.1)

    read = _server(run)
    note("0.4 s had been up long ago, and lines kept coming")
    with expect_raises(TimeoutError, when="after 0.4 s in all"):
        try:
            answer.wait_until_ready(read, MARKER, 0.4)
        except TimeoutError as error:
            happened = f"TimeoutError: {error}"
            expected = "a TimeoutError that shows what it said"
            expect("still resolving" in str(error), expected=expected, happened=happened)
            raise
