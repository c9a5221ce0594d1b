"""What a worker at the other end of a TCP connection promises, from stage 2 on."""

import contextlib
import os
import select
import socket
import struct
import tempfile
import unittest
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .channel import Channel, wait
from .errors import ProtocolError, WorkerDied, WorkerExited, WorkerFailed
from .remote_worker import RemoteWorker
from .test_worker import echo, obey
from .worker import Worker
from .worker_server import WorkerServer

T = 20.0
PRELUDE = struct.Struct("!4sBI")


def setUpModule() -> None:
    """Keep to a key of our own, in the stages that have one."""
    directory = tempfile.TemporaryDirectory()
    unittest.addModuleCleanup(directory.cleanup)
    unittest.addModuleCleanup(os.environ.pop, "MINIRAY_KEY_FILE", None)
    os.environ["MINIRAY_KEY_FILE"] = str(Path(directory.name, "key"))


@contextlib.contextmanager
def serving(work_fn: Callable[[Channel], Any]) -> Iterator[tuple[str, int]]:
    """Run a server in a process of its own, and yield where it listens."""

    def serve(channel: Channel) -> None:
        server = WorkerServer(work_fn)
        channel.send([server.host, server.port])
        server.serve_forever()

    process = Worker(serve)
    try:
        host, port = process.recv()
        yield host, port
    finally:
        process.close(timeout=0.2)


def make_pair() -> tuple[Channel, socket.socket]:
    """Return a channel and the bare other end of its socket."""
    ours, theirs = socket.socketpair()
    return Channel(ours), theirs


def frame_of(message: Any) -> bytes:
    """Return the bytes that a channel sends for a message."""
    channel, other = make_pair()
    with channel, other:
        channel.send(message)
        return other.recv(1 << 16)


class TestMessages(unittest.TestCase):
    def test_it_behaves_as_a_local_worker_does(self) -> None:
        with serving(echo) as address, RemoteWorker(*address) as worker:
            messages: list[Any] = [None, 0.5, "ü€😀", [], {"a": [1, {"b": True}]}]
            for message in messages:
                worker.send(message)
                assert worker.recv(T) == message

    def test_a_message_larger_than_any_buffer_arrives_whole(self) -> None:
        with serving(echo) as address, RemoteWorker(*address) as worker:
            message = ["x" * 1_000_000] * 8
            worker.send(message)
            assert worker.recv(T) == message

    def test_the_next_client_gets_a_fresh_conversation(self) -> None:
        with serving(echo) as address:
            for number in range(5):
                with RemoteWorker(*address) as worker:
                    worker.send(number)
                    assert worker.recv(T) == number

    def test_a_frame_may_arrive_byte_by_byte(self) -> None:
        message = {"weights": [0.5, -1.0], "name": "é"}
        channel, other = make_pair()
        with channel, other:
            for byte in frame_of(message) + frame_of("next"):
                other.send(bytes([byte]))
                with contextlib.suppress(TimeoutError):
                    assert channel.recv(timeout=0.0) in (message, "next")
            channel.send("still usable")

    def test_nothing_beyond_the_current_frame_is_read(self) -> None:
        channel, other = make_pair()
        with channel, other:
            other.sendall(frame_of("first") + frame_of("second"))
            assert channel.recv(T) == "first"
            assert select.select([channel], [], [], 0)[0] == [channel]
            assert channel.recv(T) == "second"
            assert select.select([channel], [], [], 0)[0] == []


class TestTimeouts(unittest.TestCase):
    def test_a_recv_that_was_late_leaves_the_channel_usable(self) -> None:
        with serving(echo) as address, RemoteWorker(*address) as worker:
            with self.assertRaisesRegex(TimeoutError, r"sent nothing for 0\.05s"):
                worker.recv(timeout=0.05)
            worker.send("still here")
            assert worker.recv(T) == "still here"

    def test_a_recv_that_was_late_in_the_middle_of_a_frame_resumes_there(self) -> None:
        channel, other = make_pair()
        with channel, other:
            frame = frame_of("a message in two halves")
            other.sendall(frame[:15])
            with self.assertRaises(TimeoutError):
                channel.recv(timeout=0.05)
            other.sendall(frame[15:])
            assert channel.recv(T) == "a message in two halves"

    def test_a_send_that_was_late_ends_the_channel(self) -> None:
        channel, other = make_pair()
        with channel, other:
            message = ["x" * 1_000_000] * 20
            for _ in range(2):
                with self.assertRaisesRegex(TimeoutError, r"took nothing in for 0\.1s"):
                    channel.send(message, timeout=0.1)


class TestEndings(unittest.TestCase):
    def test_a_function_that_returns_is_done(self) -> None:
        with serving(obey) as address, RemoteWorker(*address) as worker:
            worker.send("return")
            for _ in range(2):
                with self.assertRaisesRegex(WorkerExited, "is done"):
                    worker.recv(T)

    def test_an_exception_arrives_with_its_traceback(self) -> None:
        with serving(obey) as address, RemoteWorker(*address) as worker:
            worker.send("raise")
            with self.assertRaisesRegex(WorkerFailed, "raised ValueError: no such batch: 7") as it:
                worker.recv(T)
            assert "in obey" in str(it.exception)

    def test_a_worker_that_is_killed_has_died(self) -> None:
        with serving(obey) as address, RemoteWorker(*address) as worker:
            worker.send(9)
            for _ in range(2):
                with self.assertRaises(WorkerDied):
                    worker.recv(T)

    def test_nobody_there_is_a_clear_error(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        with self.assertRaisesRegex(ConnectionError, f"cannot connect to 127.0.0.1:{port}: .*ref"):
            RemoteWorker("127.0.0.1", port)


class TestStrangers(unittest.TestCase):
    def test_bytes_that_are_no_frame_raise_protocol_error_now_and_ever_after(self) -> None:
        for name, data in {
            "another protocol": b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n",
            "another version": PRELUDE.pack(b"MRY0", 1, 2) + b"{}",
            "an unknown kind": PRELUDE.pack(b"MRY1", 99, 2) + b"{}",
            "no length": PRELUDE.pack(b"MRY1", 1, 0),
            "too long": PRELUDE.pack(b"MRY1", 1, 2**32 - 1),
            "no JSON": PRELUDE.pack(b"MRY1", 1, 4) + b"\xff\xfe{{",
            "very deep JSON": PRELUDE.pack(b"MRY1", 1, 100_000) + b"[" * 100_000,
        }.items():
            channel, other = make_pair()
            with self.subTest(name), channel, other:
                other.sendall(data)
                for _ in range(2):
                    with self.assertRaises(ProtocolError):
                        channel.recv(T)

    def test_garbage_on_the_port_does_not_disturb_the_next_client(self) -> None:
        with serving(echo) as address:
            for garbage in (b"", b"GET / HTTP/1.1\r\n\r\n", b"MRY1", bytes(100)):
                with socket.create_connection(address) as stranger:
                    stranger.sendall(garbage)
            with RemoteWorker(*address) as worker:
                worker.send("served")
                assert worker.recv(T) == "served"


class TestWait(unittest.TestCase):
    def test_wait_returns_those_with_something_to_say_in_order(self) -> None:
        with Worker(obey) as one, Worker(obey) as two, Worker(obey) as three:
            workers = [one, two, three]
            assert wait(workers, timeout=0.05) == []
            two.send("pid")
            assert wait(workers, T) == [two]
            assert two.recv() == two.pid
            three.send(9)
            assert wait(workers, T) == [three]
            with self.assertRaises(WorkerDied):
                three.recv()
            assert wait(workers, 0.05) == [three]

    def test_wait_works_over_more_than_a_thousand(self) -> None:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard < 2500:
            self.skipTest(f"only {hard} descriptors are allowed here")
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2500), hard))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        pairs = [make_pair() for _ in range(1100)]
        pairs[-1][1].sendall(frame_of("here"))
        assert wait([channel for channel, _ in pairs], T) == [pairs[-1][0]]
        for channel, other in pairs:
            channel.close()
            other.close()


if __name__ == "__main__":
    unittest.main()
