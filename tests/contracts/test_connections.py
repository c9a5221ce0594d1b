"""Contracts of a worker over TCP, of its server, and of those who should not be there."""

import contextlib
import os
import select
import signal
import socket
import struct
from collections.abc import Iterator
from typing import Any
from unittest import mock

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contracts import Implementation, contract
from tests.contracts.work import obey
from tests.support import poll, processes
from tests.support.proxy import Proxy

T = 20.0
PRELUDE = struct.Struct("!4sBI")


@contextlib.contextmanager
def serving(its: Implementation, work_fn: Any = obey) -> Iterator[Any]:
    """Run a server in a process of its own; yield a Worker that is that process."""

    def serve(channel: Any) -> None:
        server = its.worker_server.WorkerServer(work_fn)
        channel.send([server.host, server.port])
        server.serve_forever()

    with mock.patch.object(its.process, "STOP_S", 0.6), its.worker.Worker(serve) as process:
        process.address = tuple(process.recv())
        yield process
        with contextlib.suppress(ProcessLookupError):  # a test may have killed it
            os.kill(process.pid, signal.SIGTERM)
        process.wait(T)


def connect(its: Implementation, process: Any, **options: Any) -> Any:
    return its.remote_worker.RemoteWorker(*process.address, **options)


def make_pair(its: Implementation) -> tuple[Any, socket.socket]:
    ours, theirs = socket.socketpair()
    return its.channel.Channel(ours), theirs


def frame_of(its: Implementation, message: Any) -> bytes:
    channel, other = make_pair(its)
    with channel, other:
        channel.send(message)
        return other.recv(1 << 16)


@contract("tcp")
def test_a_remote_worker_does_what_a_local_one_does(its: Implementation) -> None:
    with serving(its) as server, connect(its, server) as worker:
        for message in ({"a": [1, None, "ü"]}, "x" * 5_000_000, 0.25):
            worker.send(message)
            assert worker.recv(T) == message
        worker.send("raise")
        with pytest.raises(its.errors.WorkerFailed, match="LookupError: no rank 12 here: ü"):
            worker.recv(T)


@contract("tcp")
def test_a_connection_in_small_pieces_is_a_connection(its: Implementation) -> None:
    with (
        serving(its) as server,
        Proxy(server.address, chunk_bytes=3) as proxy,
        its.remote_worker.RemoteWorker("127.0.0.1", proxy.port) as worker,
    ):
        worker.send({"text": "in pieces of three bytes" * 10})
        assert worker.recv(T) == {"text": "in pieces of three bytes" * 10}


@contract("timeouts")
def test_a_late_recv_resumes_wherever_it_was(its: Implementation) -> None:
    frame = frame_of(its, {"n": 1, "text": "é"})
    for cut in range(len(frame)):
        channel, other = make_pair(its)
        with channel, other:
            other.sendall(frame[:cut])
            with pytest.raises(TimeoutError, match=r"sent nothing for 0\.0s"):
                channel.recv(timeout=0.0)
            other.sendall(frame[cut:])
            assert channel.recv(T) == {"n": 1, "text": "é"}


@pytest.mark.thorough
@contract("timeouts")
def test_a_late_send_ends_the_channel(its: Implementation) -> None:
    with serving(its) as server, connect(its, server) as worker:
        worker.send("do not read")
        assert worker.recv(T) == "not reading"
        message = ["x" * 1_000_000] * 60
        for _ in range(2):
            with pytest.raises(TimeoutError, match=r"took nothing in for 0\.2s"):
                worker.send(message, timeout=0.2)


@contract("wait")
def test_wait_and_select_agree(its: Implementation) -> None:
    pairs = [make_pair(its) for _ in range(30)]
    channels = [channel for channel, _ in pairs]
    for index in (3, 17, 29):
        pairs[index][1].sendall(frame_of(its, index) * 2)
    for _ in range(2):
        ready = its.wait(channels, T)
        assert ready == select.select(channels, [], [], 0)[0]
        assert [channel.recv(T) for channel in ready] == [3, 17, 29]
    assert its.wait(channels, 0.01) == []
    for channel, other in pairs:
        channel.close()
        other.close()


@contract("hostile-bytes")
def test_hostile_bytes_raise_protocol_error_and_nothing_else(its: Implementation) -> None:
    good = frame_of(its, {"numbers": [1, 2.5], "text": "é", "nested": {"a": [None]}})

    def receive_all(data: bytes) -> None:
        channel, other = make_pair(its)
        with channel, other:
            other.sendall(data)
            other.close()
            endings = its.errors.MiniRayError, ConnectionError, EOFError
            with contextlib.suppress(*endings):
                while True:
                    channel.recv(T)
            with pytest.raises(endings):
                channel.recv(T)

    @settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
    @given(st.data())
    def mutate(data: st.DataObject) -> None:
        frame = bytearray(good)
        for _ in range(data.draw(st.integers(1, 4))):
            frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
        receive_all(bytes(frame[: data.draw(st.integers(0, len(frame)))]))

    @settings(max_examples=60)
    @given(st.sampled_from([1, 2, 3, 4, 129, 255]), st.binary(min_size=1, max_size=200))
    def invent(kind: int, body: bytes) -> None:
        receive_all(PRELUDE.pack(b"MRY1", kind, len(body)) + body)

    mutate()
    invent()


@contract("hostile-bytes")
def test_a_claim_of_4_gib_costs_no_memory(its: Implementation) -> None:
    channel, other = make_pair(its)
    with channel, other:
        before = psutil.Process().memory_info().rss
        other.sendall(PRELUDE.pack(b"MRY1", 1, 2**32 - 1))
        with pytest.raises(its.errors.ProtocolError):
            channel.recv(T)
        assert psutil.Process().memory_info().rss - before < 64 << 20


@contract("forking")
def test_workers_of_one_server_are_many_at_once_and_alone_in_death(its: Implementation) -> None:
    with serving(its) as server:
        workers = [connect(its, server) for _ in range(12)]
        workers[4].send("die")
        workers[5].send("raise")
        for index, worker in enumerate(workers):
            if index in (4, 5):
                with pytest.raises(its.errors.WorkerError):
                    worker.recv(T)
            else:
                worker.send("pid")
                assert worker.recv(T) == worker.pid
        poll.until(
            lambda: len(psutil.Process(server.pid).children()) == 10,
            timeout_s=T,
            what="the two that have ended to be reaped",
        )
        for worker in workers:
            worker.close()
        poll.until(lambda: not psutil.Process(server.pid).children(), timeout_s=T)


@contract("forking")
def test_a_worker_has_its_own_connection_and_no_other(its: Implementation) -> None:
    with serving(its) as server:
        workers = [connect(its, server) for _ in range(4)]
        counts = []
        for worker in workers:
            worker.send("sockets")
            counts.append(worker.recv(T))
        for worker in workers:
            worker.close()
    assert counts == [1, 1, 1, 1]


@contract("post-mortem")
@pytest.mark.parametrize(
    ("order", "error", "words"),
    [
        ("return", "WorkerExited", "is done"),
        ("exit", "WorkerFailed", r"(raised SystemExit: |exited with status )3"),
        ("die", "WorkerDied", r"was killed by SIGKILL \(probably out of memory\)"),
        ("hard exit", "WorkerDied", "exited with status 7"),
    ],
)
def test_how_a_remote_worker_ended_is_known(
    its: Implementation, order: str, error: str, words: str
) -> None:
    with serving(its) as server, connect(its, server, name="rank3") as worker:
        worker.send(order)
        with pytest.raises(getattr(its.errors, error), match=f"rank3 {words}") as caught:
            worker.recv(T)
        if error == "WorkerDied":
            expected = (signal.SIGKILL, None) if order == "die" else (None, 7)
            assert (caught.value.signal, caught.value.exit_code) == expected


@contract("post-mortem")
def test_a_server_that_died_is_told_from_a_worker_that_did(its: Implementation) -> None:
    with serving(its) as server, connect(its, server) as worker:
        os.kill(server.pid, signal.SIGKILL)
        server.wait(T)
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(its.errors.WorkerDied, match="its server does not answer"):
            worker.recv(T)


@contract("handshake")
def test_a_wrong_key_is_told_and_the_server_goes_on(its: Implementation) -> None:
    with serving(its) as server:
        for _ in range(3):
            with pytest.raises(its.errors.AuthenticationError, match="different key"):
                connect(its, server, key=b"x" * 64)
        with connect(its, server) as worker:
            assert worker.worker_id == 1


@contract("handshake")
def test_a_replayed_handshake_is_refused(its: Implementation) -> None:
    """Record what a good client says, and say it again: the server's nonce is another one."""
    recorded = bytearray()

    class Recorder:
        def __init__(self, sock: socket.socket) -> None:
            self._sock = sock

        def __getattr__(self, name: str) -> Any:
            return getattr(self._sock, name)

        def send(self, data: Any, *flags: Any) -> int:
            sent = self._sock.send(data, *flags)
            recorded.extend(memoryview(data)[:sent])
            return sent

    with serving(its) as server:
        with pytest.MonkeyPatch.context() as patch:
            module = its.module_with("_connect")
            connect_socket = module._connect
            patch.setattr(module, "_connect", lambda *args: Recorder(connect_socket(*args)))
            connect(its, server).close()
        with socket.create_connection(server.address) as stranger:
            stranger.settimeout(T)
            stranger.sendall(recorded)
            answer = b""
            with contextlib.suppress(ConnectionError):
                while piece := stranger.recv(1 << 16):
                    answer += piece
        assert b'"worker"' not in answer
        with connect(its, server) as worker:
            assert worker.worker_id == 2


@contract("handshake")
def test_strangers_fork_nothing_and_disturb_nobody(its: Implementation) -> None:
    with serving(its) as server, connect(its, server) as worker:
        for garbage in (b"", b"\0" * 5000, b"GET / HTTP/1.1\r\n\r\n", b"MRY1\x01\0\0\0\x02{}"):
            with socket.create_connection(server.address) as stranger:
                stranger.settimeout(T)
                with contextlib.suppress(OSError):  # hung up on already
                    stranger.sendall(garbage)
                    stranger.shutdown(socket.SHUT_WR)
                    assert stranger.recv(1) == b""
            worker.send("undisturbed")
            assert worker.recv(T) == "undisturbed"
        assert [child.pid for child in psutil.Process(server.pid).children()] == [worker.pid]


@contract("handshake")
def test_the_key_file_is_made_once_however_many_ask_for_it(
    its: Implementation, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINIRAY_KEY_FILE", str(tmp_path / "new" / "key"))
    workers = [
        its.worker.Worker(lambda channel: channel.send(its.auth.load_key().decode()))
        for _ in range(8)
    ]
    keys = {worker.recv() for worker in workers}
    for worker in workers:
        worker.close()
    assert len(keys) == 1
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["key"]
    assert not processes.is_running(workers[0].pid)
