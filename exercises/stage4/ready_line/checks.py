"""What waiting for a server has to do."""

import io
import json
import os
import select
import threading
import time
from collections.abc import Callable
from typing import Any

from exercises.checking import expect, note

PATIENCE_S = 20.0

# Prints with the function that it gets, each piece once the one before is read, and its marker.
Server = Callable[[Callable[[bytes], None], bytes], None]


def _node(answer: Any, run: Server, **options: Any) -> Any:
    """Return a node whose server runs with a function that prints, and with its marker."""
    config = answer.cluster.NodeConfig("node1", **options)
    node = answer.cluster.Node(config, "node1", io.StringIO())
    read, write = os.pipe()
    if os.fork() == 0:

        def say(text: bytes) -> None:
            os.write(write, text)
            while select.select([read], [], [], 0)[0]:  # nobody has read it yet
                time.sleep(0.005)
            time.sleep(0.05)

        run(say, node._marker.encode())
        os._exit(0)
    os.close(write)
    node._stdout = io.FileIO(read)
    node._logger = threading.Thread(target=lambda: None)
    node._logger.start()
    return node


def _prints(*pieces: bytes) -> Server:
    """Return a server that prints these, with MARK for its marker, and then lives on."""

    def run(say: Callable[[bytes], None], marker: bytes) -> None:
        for piece in pieces:
            say(piece.replace(b"MARK", marker))
        time.sleep(60)

    return run


def _report(port: int, **more: Any) -> bytes:
    return json.dumps({"host": "10.0.0.7", "port": port, **more}).encode() + b"\n"


def _wait(node: Any) -> str | None:
    said: str | None = node.wait_until_ready(time.monotonic() + PATIENCE_S)
    return said


def _expect_ready(node: Any, host: str, port: int) -> None:
    said = _wait(node)
    expect(said is None, expected="None: it is ready", happened=repr(said))
    got = (node._host, node._port)
    expect(
        got == (host, port), expected=f"{host}, port {port}", happened=f"{got[0]}, port {got[1]}"
    )


def check_plain(answer: Any) -> None:
    """start a server that prints its ready line, with the port 41825, at once"""
    note("the ready line had come, and the server was waiting to be connected to")
    _expect_ready(_node(answer, _prints(b"MARK" + _report(41825))), "10.0.0.7", 41825)


def check_noise(answer: Any) -> None:
    """start a server behind an rc file that prints two lines"""
    note("two lines of noise and the ready line had come")
    server = _prints(b"Welcome to node1\n{3: updates}\n" + b"MARK" + _report(40127))
    _expect_ready(_node(answer, server), "10.0.0.7", 40127)


def check_a_prompt(answer: Any) -> None:
    """start a server behind a shell that prints a prompt, and no end of line"""
    note("a prompt and the ready line had come")
    _expect_ready(_node(answer, _prints(b"node1> " + b"MARK" + _report(40128))), "10.0.0.7", 40128)


def check_pieces(answer: Any) -> None:
    """start a server whose ready line, with the port 40961, comes in two pieces"""
    note("the ready line had come in two pieces")
    whole = _report(40961)
    _expect_ready(
        _node(answer, _prints(b"hello\nMARK" + whole[:20], whole[20:])), "10.0.0.7", 40961
    )


def check_a_cut_marker(answer: Any) -> None:
    """start a server whose marker comes in two pieces"""
    note("the marker had come in two pieces, and all of the ready line")

    def run(say: Callable[[bytes], None], marker: bytes) -> None:
        say(b"hello\n" + marker[:11])
        say(marker[11:] + _report(40962))

    _expect_ready(_node(answer, run), "10.0.0.7", 40962)


def check_an_address(answer: Any) -> None:
    """start a server that says 10.0.0.7, on a node with NodeConfig(address="192.168.1.4")"""
    server = _prints(b"MARK" + _report(41003))
    _expect_ready(_node(answer, server, address="192.168.1.4"), "192.168.1.4", 41003)


def check_an_error(answer: Any) -> None:
    """start a server that reports: ImportError: no module train"""
    error = json.dumps({"error": "ImportError: no module train"}).encode() + b"\n"
    said = _wait(_node(answer, _prints(b"MARK" + error)))
    right = "node1" in str(said) and "no module train" in str(said)
    expect(right, expected="node1, and what it reported", happened=repr(said))


def check_one_that_ends(answer: Any) -> None:
    """start a server that says "python3: not found" on its stderr, and ends"""
    node = _node(answer, lambda say, marker: say(b"hi\n"))
    node._last_lines.append("sh: 1: python3: not found")
    note("it had said python3: not found, and ended")
    said = _wait(node)
    right = "node1" in str(said) and "python3: not found" in str(said)
    expect(right, expected="node1, and what it said", happened=repr(said))


def check_a_past_deadline(answer: Any) -> None:
    """wait for a server that says nothing, with a deadline half a second ago"""
    note("the deadline had passed before anybody waited")
    said = _node(answer, _prints()).wait_until_ready(time.monotonic() - 0.5)
    expect("node1" in str(said), expected="that node1 is not ready", happened=repr(said))


def check_one_that_chatters(answer: Any) -> None:
    """wait 0.2 s for a server that prints a line each 0.05 s, and is never ready"""

    def run(say: Callable[[bytes], None], marker: bytes) -> None:
        while True:
            say(b"still resolving\n")

    node = _node(answer, run)
    select.select([node._stdout], [], [])  # it has begun
    note("0.2 s had been up long ago, and lines kept coming")
    said = node.wait_until_ready(time.monotonic() + 0.2)
    expect("node1" in str(said), expected="that node1 is not ready", happened=repr(said))


def check_one_that_is_loud(answer: Any) -> None:
    """make READY_NOISE_BYTES_MAX 1000, and start a server that prints without end"""
    answer.cluster.READY_NOISE_BYTES_MAX = 1000

    def run(say: Callable[[bytes], None], marker: bytes) -> None:
        while True:
            say(b"." * 500)

    note("thousands of bytes had come, no marker among them, and 20 s were not over")
    said = _wait(_node(answer, run))
    expect("node1" in str(said), expected="that node1 is not ready", happened=repr(said))


def check_noise_in_another_alphabet(answer: Any) -> None:
    """wait for a server whose login shell greets in Latin-1, which is no UTF-8"""
    node = _node(answer, _prints(b"caf\xe9 ouvert\n", b"MARK" + _report(4002)))
    note("the ready line had come, after a line that is no UTF-8")
    _expect_ready(node, "10.0.0.7", 4002)


def check_one_that_is_silent(answer: Any) -> None:
    """wait 0.2 seconds for a server that prints nothing at all"""
    node = _node(answer, _prints())
    note("the deadline was over, and nothing had been printed")
    said = node.wait_until_ready(time.monotonic() + 0.2)
    expect(said, expected="what is wrong", happened=repr(said))
