"""What holding a lease means."""

import contextlib
import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from exercises.checking import expect, is_running, note

Say = Callable[[bytes], object]


class Node:
    """A node that keeps a lease, of which we hold the other end."""

    def __init__(
        self,
        answer: Any,
        serve: Callable[[Say, Any], int],
        stop_s: float = 10.0,
        *,
        in_pieces: bool = False,
    ) -> None:
        lease, self.coordinator = os.pipe()
        self.output, say = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.coordinator)
            os.close(self.output)
            os.dup2(lease, 0)
            os.close(lease)
            sys.stdin = os.fdopen(0, closefd=False)  # a test runner may have put another there
            answer.process.STOP_S = stop_s
            keeper = os.getpid()

            def serve_node(settings: Any) -> int:
                if os.getpid() == keeper:
                    main = threading.current_thread() is threading.main_thread()
                    by = "keep_node itself" if main else "a thread of keep_node"
                    os.write(say, f"serve_node was run by {by}".encode())
                    os._exit(1)
                return serve(lambda text: os.write(say, text), settings)

            answer.worker_server.serve_node = serve_node
            try:
                answer.worker_server.keep_node()
                os._exit(0)
            except BaseException as error:
                os.write(say, f"{type(error).__name__}: {error}".encode())
                os._exit(1)
        os.close(say)
        settings = json.dumps({"number": 7}).encode() + b"\n"
        if in_pieces:
            os.write(self.coordinator, settings[:5])
            while select.select([lease], [], [], 0)[0] and is_running(self.pid):  # not read yet
                time.sleep(0.005)
            settings = settings[5:]
        os.close(lease)
        with contextlib.suppress(BrokenPipeError):  # then it has said why
            os.write(self.coordinator, settings)

    def hear(self) -> bytes:
        """Return what the server says next; nothing, once nobody can say anything any more."""
        return os.read(self.output, 200)

    def lose_the_coordinator(self) -> None:
        os.close(self.coordinator)

    def end(self) -> int:
        """Return the exit status of the node."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _work(say: Say, *_: object) -> int:
    say(b"ready")
    while True:
        signal.pause()


def check_settings(answer: Any) -> None:
    """send the settings, and go on holding the lease"""

    def serve(say: Say, settings: Any) -> int:
        say(f"settings {settings}".encode())
        return 0

    node = Node(answer, serve)
    note("the settings had been sent, and the coordinator was well")
    said = node.hear().decode()
    expect(said == "settings {'number': 7}", expected="settings {'number': 7}", happened=said)


def check_a_server_that_ends(answer: Any) -> None:
    """keep the lease of a server that ends, while the coordinator is well"""
    node = Node(answer, lambda say, settings: 3)
    note("the server had ended, and the coordinator was well")
    code = node.end()
    expect(code == 0, expected="keep_node to return", happened=f"{node.hear()!r}")


def check_a_lease_that_ends(answer: Any) -> None:
    """keep the lease of a server that tidies up on SIGTERM; its coordinator goes"""

    def serve(say: Say, settings: Any) -> int:
        def tidy_up(*_: object) -> None:
            time.sleep(0.1)
            say(b"tidied up")
            os._exit(5)

        signal.signal(signal.SIGTERM, tidy_up)
        return _work(say)

    node = Node(answer, serve)
    node.hear()
    node.lose_the_coordinator()
    note("the coordinator was gone, and the server at work, with 20 s to end")
    node.end()
    said = node.hear()
    expect(said == b"tidied up", expected="tidied up", happened=f"{said!r}: it was killed")


def check_one_that_ignores_sigterm(answer: Any) -> None:
    """keep the lease of a server that ignores SIGTERM; its coordinator goes; STOP_S is 0.1"""

    def serve(say: Say, settings: Any) -> int:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return _work(say)

    node = Node(answer, serve, stop_s=0.1)
    node.hear()
    node.lose_the_coordinator()
    note("SIGTERM had been ignored, and the time was over")
    node.end()
    left = node.hear()
    expect(left == b"", expected="nobody left", happened=repr(left))


def check_the_whole_family(answer: Any) -> None:
    """keep the lease of a server with a child that ignores SIGTERM; its coordinator goes"""

    def serve(say: Say, settings: Any) -> int:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            _work(lambda text: say(str(os.getpid()).encode()))
        while True:
            signal.pause()

    node = Node(answer, serve, stop_s=0.1)
    child = int(node.hear())
    node.lose_the_coordinator()
    note("the coordinator was gone, and the server and its child at work")
    node.end()
    deadline = time.monotonic() + 0.5
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    expect(not is_running(child), expected="nobody left", happened="the server's child runs on")


def check_settings_in_pieces(answer: Any) -> None:
    """send 5 bytes of the settings, and the rest once they are read"""

    def serve(say: Say, settings: Any) -> int:
        say(f"settings {settings}".encode())
        return 0

    node = Node(answer, serve, in_pieces=True)
    note("all of the settings had been sent")
    said = node.hear().decode()
    expect(said == "settings {'number': 7}", expected="settings {'number': 7}", happened=said)
