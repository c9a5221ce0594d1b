"""What a server promises to those who hold the key, and to itself, from stage 3 on."""

import contextlib
import os
import resource
import signal
import socket
import stat
import tempfile
import time
import unittest
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

from . import auth, process, test_remote_worker, worker_server
from .channel import Channel
from .errors import AuthenticationError, WorkerDied, WorkerFailed
from .remote_worker import RemoteWorker
from .test_remote_worker import T, serving
from .test_worker import echo, is_gone, obey
from .worker import Worker
from .worker_server import WorkerServer

KEY, NONCES = b"k" * 64, ("a" * 64, "b" * 64)


def setUpModule() -> None:
    """Have servers whose patience is short, for those who wait for its end."""
    test_remote_worker.setUpModule()
    patience = mock.patch.object(process, "STOP_S", 0.6)
    patience.start()
    unittest.addModuleCleanup(patience.stop)


def until(condition: Callable[[], Any], what: str) -> None:
    """Wait for something that will be so."""
    deadline = time.monotonic() + T
    while not condition():
        assert time.monotonic() < deadline, f"waited {T}s for {what}"
        time.sleep(0.01)


def has_ended(pid: int) -> bool:
    """Return whether a process has ended; an orphan may wait for somebody else to reap it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@contextlib.contextmanager
def server_process(work_fn: Callable[[Channel], Any]) -> Iterator[tuple[Worker, tuple[str, int]]]:
    """Run a server, and yield its process as well as its address."""

    def serve(channel: Channel) -> None:
        server = WorkerServer(work_fn)
        channel.send([server.host, server.port])
        server.serve_forever()

    with Worker(serve) as process:
        host, port = process.recv()
        yield process, (host, port)
        process.close(timeout=0.2)


class TestForking(unittest.TestCase):
    def test_each_client_gets_a_worker_of_its_own_all_at_once(self) -> None:
        with serving(obey) as address, contextlib.ExitStack() as stack:
            workers = [stack.enter_context(RemoteWorker(*address)) for _ in range(5)]
            for worker in workers:
                worker.send("pid")
            pids = [worker.recv(T) for worker in workers]
            assert pids == [worker.pid for worker in workers]
            assert len({*pids, os.getpid()}) == 6

    def test_a_worker_that_dies_takes_nobody_along(self) -> None:
        with serving(obey) as address, RemoteWorker(*address) as other:
            with RemoteWorker(*address) as worker:
                worker.send(int(signal.SIGKILL))
                with self.assertRaises(WorkerDied):
                    worker.recv(T)
            with RemoteWorker(*address) as later:
                for one in (other, later):
                    one.send("pid")
                    assert one.recv(T) == one.pid

    def test_a_closed_connection_is_seen_however_many_siblings_there_are(self) -> None:
        with serving(obey) as address:
            first, second = RemoteWorker(*address), RemoteWorker(*address)
            first.close()
            until(lambda: is_gone(first.pid), "the first worker to end and to be reaped")
            second.send("pid")
            assert second.recv(T) == second.pid
            second.close()
            until(lambda: is_gone(second.pid), "the second as well")

    def test_a_worker_that_hangs_is_ended_when_its_client_leaves(self) -> None:
        with serving(obey) as address:
            with RemoteWorker(*address) as worker:
                worker.send("hang")
                assert worker.recv(T) == "hanging"
            until(lambda: is_gone(worker.pid), "the hanging worker to be ended")

    def test_sigterm_ends_the_server_and_every_worker(self) -> None:
        with server_process(obey) as (parent, address):
            workers = [RemoteWorker(*address) for _ in range(3)]
            os.kill(parent.pid, signal.SIGTERM)
            assert parent.wait(T) == 0
            assert all(is_gone(worker.pid) for worker in workers)
            for worker in workers:
                worker.close()


class TestHowItEnded(unittest.TestCase):
    def test_a_signal_is_named(self) -> None:
        for number, words in {
            signal.SIGKILL: r"was killed by SIGKILL \(probably out of memory\)",
            signal.SIGTERM: "was killed by SIGTERM",
        }.items():
            with serving(obey) as address, RemoteWorker(*address) as worker:
                worker.send(int(number))
                with self.assertRaisesRegex(WorkerDied, words) as it:
                    worker.recv(T)
                assert (it.exception.signal, it.exception.exit_code) == (number, None)

    def test_a_hard_exit_tells_its_status(self) -> None:
        with serving(obey) as address, RemoteWorker(*address) as worker:
            worker.send("hard exit")
            with self.assertRaisesRegex(WorkerDied, "exited with status 7") as it:
                worker.recv(T)
            assert (it.exception.signal, it.exception.exit_code) == (None, 7)

    def test_a_server_reaps_even_if_it_can_open_nothing_more(self) -> None:
        def starve(channel: Channel) -> None:
            child = process.fork(lambda: 7)
            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
            with contextlib.ExitStack() as stack:
                with contextlib.suppress(OSError):
                    while True:
                        stack.callback(os.close, os.dup(0))
                until(lambda: child.poll() is not None, "the child to be reaped")
            channel.send(child.poll())

        with Worker(starve) as worker:
            assert worker.recv() == 7

    def test_sys_exit_with_a_status_is_a_failure(self) -> None:
        with serving(obey) as address:
            for failure in (3, "fatal: no data"):
                with RemoteWorker(*address) as worker:
                    worker.send({"exit": failure})
                    with self.assertRaisesRegex(
                        WorkerFailed, f"(raised SystemExit|exited with status).*{failure}"
                    ):
                        list(worker)
            for success in (0, None):
                with RemoteWorker(*address) as worker:
                    worker.send({"exit": success})
                    assert list(worker) == []

    def test_a_server_that_is_gone_is_said_to_be(self) -> None:
        with server_process(obey) as (parent, address), RemoteWorker(*address) as worker:
            worker.send("hang")
            assert worker.recv(T) == "hanging"
            os.kill(parent.pid, signal.SIGKILL)
            parent.wait(T)
            with contextlib.suppress(ProcessLookupError):  # from stage 4 on it dies with its server
                os.kill(worker.pid, signal.SIGKILL)
            with self.assertRaisesRegex(WorkerDied, "is lost: its server does not answer"):
                worker.recv(T)
            until(lambda: has_ended(worker.pid), "the worker to end")


class TestStrangers(unittest.TestCase):
    def test_without_the_key_nobody_is_served_and_nothing_is_forked(self) -> None:
        with serving(echo) as address:
            for key in (b"another key of at least 32 characters", b""):
                with self.assertRaisesRegex(AuthenticationError, "different key"):
                    RemoteWorker(*address, key=key)
            for garbage in (b"", b"GET / HTTP/1.1\r\n\r\n", b"MRY1\x01\xff\xff\xff\xff"):
                with socket.create_connection(address) as stranger:
                    stranger.sendall(garbage)
            with RemoteWorker(*address) as worker:
                assert worker.worker_id == 1

    def test_one_that_says_nothing_takes_nobodys_place_for_long(self) -> None:
        with (
            mock.patch.object(worker_server, "STRANGER_S", 0.7),
            serving(echo) as address,
            socket.create_connection(address) as stranger,
        ):
            with RemoteWorker(*address) as worker:
                worker.send("served")
                assert worker.recv(T) == "served"
            stranger.settimeout(T)
            assert stranger.recv(1) == b""


class TestHandshake(unittest.TestCase):
    request: ClassVar[auth.Message] = {"type": "worker"}

    def test_both_sides_of_a_good_one_agree(self) -> None:
        hello = auth.hello(NONCES[0])
        challenge = auth.challenge(KEY, hello, NONCES[1])
        response = auth.response(KEY, hello, challenge, self.request)
        assert auth.read_response(KEY, hello, challenge, response) == self.request

    def test_a_server_with_another_key_is_found_out(self) -> None:
        hello = auth.hello(NONCES[0])
        challenge = auth.challenge(b"x" * 64, hello, NONCES[1])
        with self.assertRaises(AuthenticationError):
            auth.response(KEY, hello, challenge, self.request)

    def test_a_response_is_good_for_its_own_handshake_and_request_only(self) -> None:
        hello = auth.hello(NONCES[0])
        challenge = auth.challenge(KEY, hello, NONCES[1])
        response = auth.response(KEY, hello, challenge, self.request)
        later = auth.challenge(KEY, hello, "c" * 64)
        with self.assertRaises(AuthenticationError):
            auth.read_response(KEY, hello, later, response)
        with self.assertRaises(AuthenticationError):
            forged = {**response, "request": {"type": "status"}}
            auth.read_response(KEY, hello, challenge, forged)

    def test_a_proof_cannot_be_said_back(self) -> None:
        hello = auth.hello(NONCES[0])
        challenge = auth.challenge(KEY, hello, NONCES[1])
        reflected = {"request": self.request, "proof": challenge["proof"]}
        with self.assertRaises(AuthenticationError):
            auth.read_response(KEY, hello, challenge, reflected)

    def test_what_is_no_handshake_raises_nothing_else(self) -> None:
        strange: list[Any] = [{}, {"version": 1}, {"version": 2, "nonce": NONCES[0]}]
        strange += [{"version": 1, "nonce": nonce} for nonce in (None, "short", ["a"] * 64)]
        strange += [{"version": [1], "nonce": NONCES[0]}, {**auth.hello(NONCES[0]), "more": 1}]
        for message in strange:
            with self.subTest(message), self.assertRaises(AuthenticationError):
                auth.challenge(KEY, message, NONCES[1])


class TestKeyFile(unittest.TestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.addCleanup(os.environ.__setitem__, "MINIRAY_KEY_FILE", os.environ["MINIRAY_KEY_FILE"])
        self.file = Path(directory.name, "a folder", "key")
        os.environ["MINIRAY_KEY_FILE"] = str(self.file)

    def test_it_is_made_once_for_its_owner_alone(self) -> None:
        key = auth.load_key()
        assert len(key) >= 32
        assert auth.load_key() == key
        assert stat.S_IMODE(self.file.stat().st_mode) == 0o600
        assert [*self.file.parent.iterdir()] == [self.file]

    def test_it_is_refused_if_others_can_read_it(self) -> None:
        auth.load_key()
        self.file.chmod(0o644)
        with self.assertRaisesRegex(PermissionError, "644.*chmod 600"):
            auth.load_key()


if __name__ == "__main__":
    unittest.main()
