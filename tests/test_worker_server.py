"""What a WorkerServer does for its clients, and what nobody can do to it."""

import contextlib
import errno
import multiprocessing
import os
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from miniray import (
    AuthenticationError,
    Channel,
    ProtocolError,
    RemoteWorker,
    Worker,
    WorkerDied,
    WorkerError,
    WorkerServer,
    auth,
    listening,
    process,
    strangers,
    wire,
    worker_log,
    worker_server,
)
from miniray.connection import server_status
from miniray.poll_loop import PollLoop
from miniray.worker_log import clean_name
from tests import work
from tests.support import poll, processes
from tests.support.proxy import Proxy
from tests.support.servers import Server, serving

T = 30.0
LINES_DROPPED = re.compile(rb"\[server\] ([\d,]+) bytes of output were dropped")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(work.obey, log=tmp_path / "log", max_workers=2) as one:
        yield one


@contextlib.contextmanager
def serving_in_a_thread(work_fn: Any = work.obey, **options: Any) -> Iterator[WorkerServer]:
    """Run a WorkerServer in a thread of this process."""
    with WorkerServer(work_fn, **options) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        RemoteWorker(server.host, server.port).close()  # it serves
        yield server
    thread.join()


class TestStop:
    def test_two_calls_end_a_patient_stop_at_once(self) -> None:
        with serving_in_a_thread() as server:
            worker = RemoteWorker(server.host, server.port)
            worker.send("hang")
            worker.recv(T)
            server.stop(timeout=1000.0)
            server.stop(timeout=1000.0)
            processes.wait_until_gone([worker.pid], timeout_s=T)
        worker.close()

    def test_its_loop_turns_once_for_a_wake_and_then_waits(self) -> None:
        loop = PollLoop()
        loop.wake()
        loop.turn()
        begun = time.monotonic()
        loop.turn()
        assert time.monotonic() - begun > 0.2  # it looks by itself every half second
        loop.close()

    def test_one_that_has_stopped_holds_no_descriptor(self) -> None:
        before = sorted(os.listdir("/proc/self/fd"))
        with WorkerServer(work.echo) as server:
            pass
        assert sorted(os.listdir("/proc/self/fd")) == before, server

    def test_a_stop_before_the_start_and_in_a_handler_ends_it(self) -> None:
        with WorkerServer(work.echo) as server:
            server.stop()
            server.serve_forever()

    def test_a_stop_after_the_end_writes_nowhere(self) -> None:
        with serving_in_a_thread() as server:
            pass
        # The numbers that the server had are among these, whose every end would tell the other.
        ends = [end for _ in range(20) for end in socket.socketpair()]
        server.stop()
        server.stop()
        told = select.select(ends, [], [], 0)[0]
        for end in ends:
            end.close()
        assert told == []

    def test_it_serves_only_once(self) -> None:
        with serving_in_a_thread() as server:
            with pytest.raises(RuntimeError, match="serves, has served"):
                server.serve_forever()
        with pytest.raises(RuntimeError, match="serves, has served"):
            server.serve_forever()

    def test_one_that_never_served_is_closed_by_its_with_block(self) -> None:
        with WorkerServer(work.echo) as server:
            pass
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((server.host, server.port))

    def test_a_forked_child_neither_serves_nor_waits_for_its_parents_server(self) -> None:
        def use_it() -> int:
            with pytest.raises(RuntimeError, match="serves, has served"), server:
                server.serve_forever()
            return 7

        with serving_in_a_thread() as server:
            assert process.fork(use_it).wait(T) == 7

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    def test_a_signal_ends_it_and_its_workers(self, server: Server, number: int) -> None:
        worker = server.worker()
        os.kill(server.pid, number)
        assert server.child.wait(T) == 0
        processes.wait_until_gone([worker.pid], timeout_s=T)
        with contextlib.suppress(WorkerError, ConnectionError):
            worker.close()


class TestStatus:
    @pytest.mark.thorough
    def test_it_tells_what_runs_since_when_it_is_silent_and_how_it_ended(
        self, server: Server
    ) -> None:
        with server.worker(name="rank7") as worker, server.worker() as other:
            worker.send("hang")
            assert worker.recv(T) == "hanging"
            with pytest.raises(TimeoutError, match=r"rank7 sent nothing for 0\.2s"):
                worker.recv(timeout=0.2)
            other.send("die")
            with pytest.raises(WorkerDied):
                other.recv(T)
            rows = {row["id"]: row for row in server.status()["workers"]}
            alive, dead = rows[worker.worker_id], rows[other.worker_id]
            assert (alive["name"], alive["state"], alive["pid"]) == ("rank7", "running", worker.pid)
            assert alive["silent_s"] >= 0.19
            assert (alive["exit_code"], alive["ended"]) == (None, None)
            assert (dead["state"], dead["exit_code"]) == ("ended", -signal.SIGKILL)
            assert dead["ended"] == "was killed by SIGKILL (probably out of memory)"

    def test_only_so_many_endings_are_kept_and_an_older_one_is_known_to_be_forgotten(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(worker_server, "ENDED_RECORDS_MAX", 3)
        with serving(work.obey, log=tmp_path / "log") as server:
            for _ in range(5):
                with server.worker() as worker:
                    worker.send("return")
                    assert worker.wait(T) == 0
            assert [row["id"] for row in server.status()["workers"]] == [3, 4, 5]
            assert server.status(worker=1)["workers"] == []
            (last,) = server.status(worker=5)["workers"]
            assert last["ended"] == "exited with status 0"

    def test_it_is_sent_whole_however_little_the_connection_takes_at_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def with_a_small_buffer(*arguments: Any, **options: Any) -> socket.socket:
            listener = create_server(*arguments, **options)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            return listener

        create_server = socket.create_server
        monkeypatch.setattr(socket, "create_server", with_a_small_buffer)
        monkeypatch.setattr(worker_server, "__version__", "9" * 1_000_000)
        with serving(work.obey, log=tmp_path / "log") as server:
            assert server.status()["server"]["version"] == "9" * 1_000_000

    def test_an_unknown_request_is_refused_by_name(self, server: Server) -> None:
        from miniray.connection import open_connection

        with pytest.raises(ConnectionRefusedError, match="no request of the type 'lease'"):
            open_connection(server.host, server.port, server.key, {"type": "lease"}, T)


class TestWorkers:
    def test_a_full_server_says_so_and_a_place_is_free_again_later(self, server: Server) -> None:
        with server.worker(), server.worker() as second:
            with pytest.raises(ConnectionRefusedError, match="all 2 workers are taken"):
                server.worker()
            second.close()
            poll.until(lambda: server.status()["server"]["workers_running"] == 1, timeout_s=T)
            with server.worker() as third:
                third.send("in")
                assert third.recv(T) == "in"

    def test_an_ending_is_seen_within_a_second_of_the_fault(self, server: Server) -> None:
        with server.worker() as worker:
            worker.send("die")
            begun = time.monotonic()
            with pytest.raises(WorkerDied):
                worker.recv()
            assert time.monotonic() - begun < 10  # the promise is 1, on a machine that is not busy

    def test_a_death_is_seen_though_a_descendant_holds_the_connection(self) -> None:
        def leave_a_child(channel: Channel) -> None:
            os.dup(channel.descriptor())  # as C code does, or a fork that Python knows nothing of
            has_left, leaves = os.pipe()
            child = os.fork()
            if child == 0:
                os.setsid()  # until then it would end with the worker's group
                os.write(leaves, b"!")
                signal.pause()
            os.read(has_left, 1)
            channel.send(child)
            channel.recv()
            os.kill(os.getpid(), signal.SIGKILL)

        with serving(leave_a_child, log=os.open(os.devnull, os.O_WRONLY)) as server:
            with server.worker(name="rank0") as worker:
                child = worker.recv(T)
                try:
                    worker.send("die")
                    with pytest.raises(WorkerDied, match="rank0 was killed by SIGKILL"):
                        worker.recv(T)
                    assert processes.is_running(child)
                finally:
                    os.kill(child, signal.SIGKILL)

    def test_a_worker_has_no_descriptor_but_its_streams_its_connection_and_its_window(
        self, tmp_path: Path
    ) -> None:
        log = tmp_path / "log"
        inherited_from_us: set[str] = set()  # filled in the server's process, and its workers'

        def prepare() -> None:
            inherited_from_us.update(_sockets_and_pipes())

        def list_descriptors(channel: Channel) -> None:
            channel.send(sorted(_sockets_and_pipes() - inherited_from_us))
            channel.recv()

        with serving(list_descriptors, log=log, prepare=prepare) as server, server.connect():
            with server.worker() as first, server.worker() as second:
                for worker in (first, second):
                    kinds = [target.partition(":")[0] for target in worker.recv(T)]
                    assert kinds == ["pipe", "pipe", "socket"]  # the second is the window's brake

    def test_a_workers_small_messages_leave_at_once_and_a_lost_client_is_noticed(
        self, tmp_path: Path
    ) -> None:
        def tell_options(channel: Channel) -> None:
            with socket.socket(fileno=os.dup(channel.descriptor())) as sock:
                no_delay = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                channel.send([no_delay, sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)])
            channel.recv()

        with serving(tell_options, log=tmp_path / "log") as server, server.worker() as worker:
            assert worker.recv(T) == [1, 1]

    @pytest.mark.parametrize("fork", ["Worker", "os.fork", "multiprocessing"])
    def test_nothing_of_a_server_in_this_process_gets_into_a_child(self, fork: str) -> None:
        harmless = _sockets_and_pipes()
        with serving_in_a_thread() as server, RemoteWorker(server.host, server.port) as worker:
            # The listener, the worker's connection and output, and the two ends of the wake-up.
            private = _sockets_and_pipes() - harmless
            left = {
                "Worker": _left_in_a_worker,
                "os.fork": _left_in_a_fork,
                "multiprocessing": _left_in_a_multiprocessing_child,
            }[fork]()
            assert len(private) >= 5
            assert not private & left
            worker.send("unharmed")
            assert worker.recv(T) == "unharmed"

    def test_a_server_without_standard_streams_serves(self) -> None:
        script = (
            "import os, sys\n"
            "from miniray import WorkerServer\n"
            "from tests.work import obey\n"
            "address = int(sys.argv[1])\n"
            "os.closerange(0, 3)\n"
            "sys.stdin = sys.stdout = sys.stderr = None\n"
            "server = WorkerServer(obey)\n"
            "streams = [os.readlink(f'/proc/self/fd/{number}') for number in range(3)]\n"
            "os.write(address, ' '.join([str(server.port), *streams]).encode())\n"
            "os.close(address)\n"
            "server.serve_forever()\n"
        )
        read_end, write_end = os.pipe()
        child = subprocess.Popen(
            [sys.executable, "-c", script, str(write_end)], pass_fds=[write_end]
        )
        os.close(write_end)
        with open(read_end) as pipe:
            port, *streams = pipe.read().split()
        assert streams == [os.devnull] * 3
        for _ in range(2):
            with RemoteWorker("127.0.0.1", int(port)) as worker:
                worker.send(("print", 3))
                assert worker.recv(T) == "printed"
        child.terminate()
        assert child.wait(T) == 0


def _open_targets() -> list[str]:
    targets = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that lists them is gone by now
            targets.append(os.readlink(f"/proc/self/fd/{number}"))
    return targets


def _sockets_and_pipes() -> set[str]:
    return {target for target in _open_targets() if target.startswith(("socket:", "pipe:"))}


def _send_what_is_left(channel: Channel) -> None:
    channel.send(sorted(_sockets_and_pipes()))


def _left_in_a_worker() -> set[str]:
    with Worker(_send_what_is_left) as worker:
        return set(worker.recv(T))


def _left_in_a_fork() -> set[str]:
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write_end, "\n".join(_sockets_and_pipes()).encode())
        os._exit(0)
    os.close(write_end)
    os.waitpid(child, 0)
    with open(read_end) as pipe:
        return set(pipe.read().split("\n"))


def _left_in_a_multiprocessing_child() -> set[str]:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=lambda: theirs.send(_sockets_and_pipes()))
    child.start()
    with ours, theirs:
        left: set[str] = ours.recv()
    child.join()
    child.close()
    return left


class TestOutOfDescriptors:
    @pytest.mark.thorough
    def test_it_waits_says_so_once_and_serves_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(listening, "PAUSE_S", 0.1)
        monkeypatch.setattr(strangers, "STRANGER_S", 2.0)

        def take_few() -> None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (len(_open_targets()) + 16, 4096))

        with serving(work.obey, log=tmp_path / "log", prepare=take_few) as server:
            begun_s = server.cpu_s()
            crowd = [server.connect() for _ in range(40)]
            poll.until(lambda: "not introduced after 2s" in server.text(), timeout_s=T)
            assert server.cpu_s() - begun_s < 1  # it does not try all the time
            before, _, _ = server.text().partition("not introduced")
            assert before.count("cannot accept connections: Too many open files") == 1
            for stranger in crowd:
                stranger.close()
            with server.worker(timeout=T) as worker:
                worker.send("served")
                assert worker.recv(T) == "served"

    @pytest.mark.parametrize("what", ["pipe", "pidfd_open", "fork"])
    def test_a_fork_that_fails_leaves_no_descriptor_and_no_process(
        self, tmp_path: Path, what: str
    ) -> None:
        genuine = getattr(os, what)
        failures = iter(range(3))

        def fail_three_times(*arguments: Any) -> Any:
            if sys._getframe(1).f_code.co_filename.endswith(("process.py", "worker_log.py")):
                for _ in failures:
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return genuine(*arguments)

        def prepare() -> None:
            setattr(os, what, fail_three_times)

        with serving(work.obey, log=tmp_path / "log", prepare=prepare) as server:
            server.status()
            before = _open_in(server.pid)
            for _ in range(3):
                with pytest.raises((ConnectionRefusedError, ProtocolError, WorkerError)) as caught:
                    ask(server)
                if what != "pidfd_open":  # then the child was there already, and may say welcome
                    assert "cannot fork: " in str(caught.value)
                    assert "Too many open files" in str(caught.value)
            poll.until(lambda: _open_in(server.pid) <= before, timeout_s=T)
            assert not processes_of(server)
            with server.worker() as worker:
                worker.send("served")
                assert worker.recv(T) == "served"


def ask(server: Server) -> None:
    with server.worker() as worker:
        worker.recv(T)


def _open_in(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def processes_of(server: Server) -> list[str]:
    return Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()


def test_it_listens_on_an_ipv6_address() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"there is no IPv6 here: {error}")
    with serving(work.obey, host="::1") as server, server.worker() as worker:
        worker.send("served")
        assert worker.recv(T) == "served"


class TestUnixSocket:
    def test_its_file_is_gone_after_a_clean_stop(self, tmp_path: Path) -> None:
        path = tmp_path / "socket"
        for _ in range(2):
            with serving(work.obey, host=str(path)) as server, server.worker() as worker:
                worker.send("served")
                assert worker.recv(T) == "served"
            assert not path.exists()

    def test_one_that_a_killed_server_left_is_replaced(self, tmp_path: Path) -> None:
        path = tmp_path / "socket"
        killed = Server(work.obey, host=str(path))
        os.kill(killed.pid, signal.SIGKILL)
        killed.child.wait(T)
        assert path.exists()
        with serving(work.obey, host=str(path)) as server, server.worker() as worker:
            worker.send("served")
            assert worker.recv(T) == "served"

    def test_neither_a_living_server_nor_a_file_is_replaced(self, tmp_path: Path) -> None:
        path, file = tmp_path / "socket", tmp_path / "file"
        file.write_text("precious")
        with serving(work.obey, host=str(path)) as server:
            for taken in (path, file):
                with pytest.raises(OSError, match="Address already in use"):
                    WorkerServer(work.obey, host=str(taken))
            with server.worker() as worker:
                worker.send("served")
                assert worker.recv(T) == "served"
        assert file.read_text() == "precious"


class TestStrangers:
    def test_each_is_closed_and_told_of_and_work_goes_on(self, server: Server) -> None:
        hello = auth.hello("0" * 64)
        wrong = wire.encode(wire.AUTH, {"version": 99, "nonce": "0" * 64}).head
        message = wire.encode(wire.MESSAGE, {"cmd": "train"}).head
        begin = wire.encode(wire.AUTH, hello).head
        with server.worker() as worker:
            for data in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(5000), wrong, message, begin * 2):
                with server.connect() as stranger:
                    stranger.sendall(data)
                    stranger.settimeout(T)
                    with contextlib.suppress(ConnectionResetError):
                        while stranger.recv(4096):
                            pass
                worker.send("undisturbed")
                assert worker.recv(T) == "undisturbed"
            for _ in range(20):  # a port scan
                server.connect().close()
            with pytest.raises(Exception, match="different key"):
                RemoteWorker(server.host, server.port, key=auth.make_key())
            assert server.status()["server"]["workers_started"] == 1
            poll.until(
                lambda: refusals_said(server) == 26,
                timeout_s=T,
                what="each stranger is told of, or counted",
            )

    def test_a_hello_in_a_frame_of_another_kind_is_not_answered(self, server: Server) -> None:
        with server.connect() as stranger:
            stranger.settimeout(T)
            stranger.sendall(wire.encode(wire.MESSAGE, auth.hello("0" * 64)).head)
            with contextlib.suppress(ConnectionResetError):
                assert stranger.recv(1) == b""

    @pytest.mark.slow
    def test_slow_ones_take_nobodys_place(self, server: Server) -> None:
        slow = [server.connect() for _ in range(strangers.STRANGERS_MAX + 10)]
        try:
            for stranger in slow[20:]:
                with contextlib.suppress(ConnectionError):  # it had to make room already
                    stranger.sendall(b"MRY1")
            with server.worker() as first, server.worker() as second:
                for worker in (first, second):
                    worker.send("served")
                    assert worker.recv(T) == "served"
            for stranger in slow:
                stranger.settimeout(T)
                with contextlib.suppress(ConnectionResetError):
                    assert stranger.recv(1) == b""  # closed, the last after STRANGER_S
        finally:
            for stranger in slow:
                stranger.close()

    @pytest.mark.parametrize(
        "response",
        [
            {"request": {"type": "worker"}, "proof": "\ud800"},
            {"request": {"type": "\ud800"}, "proof": "\ud800" * 64},
            {"request": {"type": "worker"}, "proof": 10**1000},
            {"request": {"$": "x"}, "proof": {"$": "buffer", "index": 0}},
            [],
        ],
        ids=["a lone surrogate", "many", "a number", "marks", "no object"],
    )
    def test_a_server_outlives_any_response(self, server: Server, response: Any) -> None:
        with Channel(server.connect(), name="server", handshake=True) as stranger:
            stranger.send_frame(wire.AUTH, auth.hello("c" * 64))
            stranger.recv_frame(wire.AUTH)
            stranger.send_frame(wire.AUTH, response)
            with pytest.raises(ConnectionResetError):
                stranger.recv_frame(wire.AUTH)
        with server.worker() as worker:
            worker.send("alive")
            assert worker.recv(T) == "alive"

    def test_a_server_outlives_what_somebody_adds_to_a_response(self, server: Server) -> None:
        """Who sits in between has no key, and need not have one to add to what is said."""
        depths = iter(range(1000, 800, -1))  # as deep as can be read, and too deep to be proven

        def add(is_up: bool, chunk: bytes) -> bytes:
            if not is_up or b'"request"' not in chunk:
                return chunk
            depth = next(depths)
            text = chunk[wire.PRELUDE.size : -2] + b',"x":' + b"[" * depth + b"]" * depth + b"}}"
            return wire.PRELUDE.pack(wire.MAGIC, wire.AUTH, len(text)) + text

        with Proxy((server.host, server.port), edit=add) as proxy:
            for _ in range(200):
                with pytest.raises((ProtocolError, ConnectionError)):
                    server_status(server.host, proxy.port, key=server.key)
        assert server.status()["server"]["workers_started"] == 0

    @pytest.mark.thorough
    @pytest.mark.parametrize("says_hello", [False, True], ids=["mute", "says hello"])
    def test_a_flood_from_one_address_keeps_no_distant_client_out(
        self, server: Server, says_hello: bool
    ) -> None:
        with flood(server, "127.0.0.2", says_hello), Proxy((server.host, server.port)) as distant:
            poll.until(lambda: is_flooded(server), timeout_s=T)
            for _ in range(5):
                assert enters_from_afar(distant, server)
        assert server.stop() == 0
        assert len(server.text()) < 10_000

    def test_a_flood_from_a_clients_own_address_does_not_keep_it_out_for_long(
        self, server: Server
    ) -> None:
        with flood(server, "127.0.0.1", False), Proxy((server.host, server.port)) as distant:
            poll.until(lambda: is_flooded(server), timeout_s=T)
            assert any(enters_from_afar(distant, server) for _ in range(40))

    def test_many_refusals_are_counted_and_said_a_line_a_second(self, server: Server) -> None:
        began = time.monotonic()
        for _ in range(1000):
            server.connect().close()
        server.status()
        assert server.stop() == 0
        lines = re.findall(r"(?m)^.*closed .*", server.text())
        assert len(lines) <= (time.monotonic() - began) / strangers.REFUSALS_S + 2
        assert refusals_said(server) == 1000

    def test_who_has_another_key_is_told_of_as_such(self, server: Server) -> None:
        with pytest.raises(AuthenticationError, match="different key"):
            RemoteWorker(server.host, server.port, key=auth.make_key())
        poll.until(lambda: refusals_said(server) == 1, timeout_s=T)
        assert "end of the handshake; it probably holds a different key" in server.text()

    def test_who_is_refused_after_the_handshake_is_told_of_too(self, server: Server) -> None:
        with pytest.raises(ConnectionRefusedError, match="encrypt=False"):
            server.worker(encrypt=True)
        poll.until(lambda: refusals_said(server) == 1, timeout_s=T)
        assert "it has been started with encrypt=False; connect with the same" in server.text()

    def test_the_first_is_said_at_once_and_the_rest_while_the_server_goes_on(
        self, server: Server
    ) -> None:
        server.connect().close()
        poll.until(lambda: refusals_said(server) == 1, timeout_s=T)
        assert re.search(r"closed the connection from 127.0.0.1:\d+: left before", server.text())
        for _ in range(50):
            server.connect().close()
        poll.until(lambda: refusals_said(server) == 51, timeout_s=T)
        assert re.search(r"closed \d+ connections, the last from 127.0.0.1:\d+: ", server.text())


def refusals_said(server: Server) -> int:
    """Return how many refusals the log tells of."""
    counts = re.findall(r"closed (the|[\d,]+) connection", server.text())
    return sum(1 if count == "the" else int(count.replace(",", "")) for count in counts)


def is_flooded(server: Server) -> bool:
    return refusals_said(server) > strangers.STRANGERS_MAX


def enters_from_afar(distant: Proxy, server: Server) -> bool:
    """Ask for a worker from 50 ms away, say whether there is one, and leave."""
    distant.delay_s = 0.05
    try:
        worker = RemoteWorker("127.0.0.1", distant.port, key=server.key)
    except ConnectionError:
        return False
    finally:
        distant.delay_s = 0.0
    worker.send("in")
    assert worker.recv(T) == "in"
    worker.close()
    return True


@contextlib.contextmanager
def flood(server: Server, source: str, says_hello: bool) -> Iterator[None]:
    """Connect to a server as often as one process can, a thousand times a second or more."""
    hello = wire.encode(wire.AUTH, auth.hello("0" * 64)).head if says_hello else b""

    def connect_for_ever() -> int:
        held = []
        while True:
            held.append(server.connect(source))
            with contextlib.suppress(OSError):
                held[-1].sendall(hello)
            if len(held) > 2 * strangers.STRANGERS_MAX:
                held.pop(0).close()

    child = process.fork(connect_for_ever)
    try:
        yield
    finally:
        process.stop([child], 0.0)


@pytest.mark.parametrize("host", ["a..b", "nowhere.invalid", "192.0.2.1"])
def test_where_it_cannot_listen_it_says_so_and_what_to_do(host: str) -> None:
    with pytest.raises(OSError, match=rf"cannot listen on {host}:0: .*choose another") as caught:
        WorkerServer("tests.work.echo", host=host, port=0)
    assert caught.value.errno == errno.EADDRNOTAVAIL
    assert "Unknown" not in str(caught.value)


def test_what_is_no_name_cannot_be_connected_to() -> None:
    with pytest.raises(ConnectionError, match=r"cannot connect to a\.\.b:1: "):
        RemoteWorker("a..b", 1)


def test_an_address_that_answers_nothing_leaves_time_for_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with contextlib.ExitStack() as stack:
        mute = stack.enter_context(socket.socket())
        mute.bind(("127.0.0.3", 0))
        mute.listen(0)
        for _ in range(4):  # more than it takes: who comes now gets no answer
            crowd = stack.enter_context(socket.socket())
            crowd.setblocking(False)
            crowd.connect_ex(mute.getsockname())
        server = stack.enter_context(serving(work.echo))
        addresses = mute.getsockname(), (server.host, server.port)
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", one) for one in addresses]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        with RemoteWorker("both", server.port, key=server.key, timeout=8.0) as worker:
            worker.send("served")
            assert worker.recv(T) == "served"


class TestNames:
    @pytest.mark.parametrize(
        ("given", "clean"),
        [
            ("rank 3", "rank 3"),
            ("Käthe-7", "Käthe-7"),
            ("caf\udce9", "caf?"),
            ("\x1b]0;title\x07x", "?(0;title?x".replace("(", ")")),
            ("rank0] all is well\n[node1:rank1", "rank0) all is well?(node1:rank1"),
            ("\N{RIGHT-TO-LEFT OVERRIDE}abc", "?abc"),
            ("a\rb\x9bc\u2028d", "a?b?c?d"),
            (" \t", "?"),
            ("x" * 1000, "x" * 64),
        ],
    )
    def test_a_name_is_what_a_terminal_shows_in_one_line(self, given: str, clean: str) -> None:
        assert clean_name(given) == clean

    def test_no_name_harms_the_server_or_imitates_another_line(self, server: Server) -> None:
        for name in ("\ud800", "x]\n[server] all is well\n[", "server", ""):
            with server.worker() as worker:
                worker.close()
            sock, _ = ask_for_worker(server, name)
            with Channel(sock) as worker:
                worker.send(("print", 1))
                assert worker.recv(T) == "printed"
        assert server.stop() == 0
        prefixes = [line.partition(" x")[0] for line in server.text().splitlines()]
        assert prefixes == ["[?]", "[x)?(server) all is well?(]", "[server (6)]", "[worker 8]"]

    def test_two_workers_of_one_name_can_be_told_apart(self, server: Server) -> None:
        with server.worker(name="rank0"), server.worker(name="rank0"):
            names = [row["name"] for row in server.status()["workers"]]
            assert names == ["rank0", "rank0 (2)"]


def ask_for_worker(server: Server, name: str) -> tuple[socket.socket, Any]:
    from miniray.connection import open_connection

    return open_connection(
        server.host, server.port, server.key, {"type": "worker", "name": name}, T
    )


def write_output(channel: Channel) -> None:
    """Write what each message says to stdout, in one piece, and say so."""
    for data in channel:
        left = memoryview(data)
        while left:
            left = left[os.write(1, left) :]
        channel.send("written")


class TestOutput:
    def test_every_line_of_eight_ranks_arrives_whole(self) -> None:
        def count(channel: Channel) -> None:
            rank = channel.recv()
            for number in range(20_000):
                print(f"rank {rank} line {number} of a job that prints much")
            channel.send("printed")

        with reading_output(count) as (server, read_all):
            workers = [server.worker(name=f"r{rank}") for rank in range(8)]
            for rank, worker in enumerate(workers):
                worker.send(rank)
            for worker in workers:
                assert worker.recv(60) == "printed"
                worker.close()
            assert server.stop() == 0
            lines = read_all().splitlines()
        for rank in range(8):
            mine = [line for line in lines if line.startswith(b"[r%d] " % rank)]
            assert mine == [
                b"[r%d] rank %d line %d of a job that prints much" % (rank, rank, number)
                for number in range(20_000)
            ]

    @pytest.mark.thorough
    def test_a_reader_that_is_slow_gets_everything(self) -> None:
        data = b"".join(b"%07d\n" % number for number in range(500_000))  # 4 MB
        read_end, write_end = os.pipe()
        with serving(write_output, log=write_end) as server:
            os.close(write_end)
            with server.worker(name="r") as worker:
                worker.send(data)
                # Nobody reads yet: it is held up, and nothing is lost.
                poll.until(lambda: _is_full(read_end), timeout_s=T)
                with pytest.raises(TimeoutError):
                    worker.recv(timeout=0.5)
                with open(read_end, "rb") as pipe:
                    got = [pipe.readline() for _ in range(500_000)]
                    assert worker.recv(T) == "written"
        assert got == [b"[r] " + line for line in data.splitlines(keepends=True)]

    def test_work_goes_on_without_a_reader_and_what_is_dropped_is_counted(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(worker_log, "STALL_S", 0.3)
        line = b"x" * 1000 + b"\n"
        read_end, write_end = os.pipe()
        with serving(write_output, log=write_end) as server, server.worker(name="rank0") as worker:
            os.close(write_end)
            for _ in range(20):
                worker.send(line * 1000)
                assert worker.recv(T) == "written"
            output = b""
            while not LINES_DROPPED.search(output):
                output += os.read(read_end, 1 << 16)
            worker.send(b"the end\n")
            while not output.endswith(b"\n[rank0] the end\n"):
                output += os.read(read_end, 1 << 16)
            os.close(read_end)
        *lines, last = output.splitlines()
        assert last == b"[rank0] the end"
        dropped = [LINES_DROPPED.match(text) for text in lines]
        nbytes = sum(int(one[1].replace(b",", b"")) for one in dropped if one)
        whole = [text for text in lines if text == b"[rank0] " + line[:-1]]
        assert len(whole) + len([one for one in dropped if one]) == len(lines)
        assert nbytes + len(whole) * (len(line) + 8) == 20_000 * (len(line) + 8)

    def test_what_is_queued_at_the_servers_end_is_not_lost(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(worker_server, "FLUSH_S", T)
        read_end, write_end = os.pipe()
        with serving(write_output, log=write_end) as server, server.worker(name="r") as worker:
            os.close(write_end)
            worker.send(b"first\n" + b"y" * 400_000 + b"\nlast\n")  # more than a pipe holds
            assert worker.recv(T) == "written"
            os.kill(server.pid, signal.SIGTERM)
            processes.wait_until_gone([worker.pid], timeout_s=T)
            with open(read_end, "rb") as pipe:
                output = pipe.read()
        assert output.startswith(b"[r] first\n")
        assert output.count(b"y") == 400_000
        assert output.endswith(b"\n[r] last\n")

    def test_a_full_disk_does_not_stop_work(self) -> None:
        with serving(work.obey, log=Path("/dev/full")) as server, server.worker() as worker:
            worker.send(("print", 1000))
            assert worker.recv(T) == "printed"

    def test_last_words_come_before_the_news_of_the_death(self, server: Server) -> None:
        with server.worker(name="rank0") as worker:
            worker.send(("print", 5))
            assert worker.recv(T) == "printed"
            worker.send("die")
            with pytest.raises(WorkerDied):
                worker.recv(T)
        assert server.stop() == 0
        lines = server.text().splitlines()
        assert lines[:5] == ["[rank0] " + "x" * 1000] * 5
        assert lines[5] == "[server] rank0 was killed by SIGKILL (probably out of memory)"

    def test_a_line_without_an_end_is_last_words_too(self, tmp_path: Path) -> None:
        def speak_and_die(channel: Channel) -> None:
            os.write(2, b"CUDA error: out of mem")
            os._exit(3)

        with serving(speak_and_die, log=tmp_path / "log") as server:
            with server.worker(name="rank0") as worker, pytest.raises(WorkerDied):
                worker.recv(T)
        assert server.text() == (
            "[rank0] CUDA error: out of mem\n[server] rank0 exited with status 3\n"
        )

    @pytest.mark.parametrize("dies", [True, False], ids=["its parent dies", "its parent lives"])
    def test_a_descendant_that_writes_for_ever_holds_nobody_up(
        self, tmp_path: Path, dies: bool
    ) -> None:
        def leave_a_writer(channel: Channel) -> None:
            writer = subprocess.Popen(["yes"], start_new_session=True)
            channel.send(writer.pid)
            for message in channel:
                if message == "die":
                    os._exit(3)
                channel.send(message)

        with serving(leave_a_writer, log=Path(os.devnull)) as server, server.worker() as other:
            families = [other.recv(T)]
            with server.worker(name="rank0") as worker:
                families.append(worker.recv(T))
                if dies:
                    worker.send("die")
                    with pytest.raises(WorkerDied, match="exited with status 3"):
                        worker.recv(T)
                begun = time.monotonic()
                for number in range(50):
                    other.send(number)
                    assert other.recv(T) == number
                    assert server.status()["server"]["workers_running"] == 2 - dies
                assert time.monotonic() - begun < 10  # of which a free machine needs a tenth
            for pid in families:
                with contextlib.suppress(ProcessLookupError):  # of a closed pipe, already
                    os.kill(pid, signal.SIGKILL)

    @pytest.mark.parametrize(
        ("output", "shown"),
        [
            (b"plain\n", "[r] plain\n"),
            (b"\n\n", "[r] \n[r] \n"),
            (b"dos\r\nlines\r\n", "[r] dos\n[r] lines\n"),
            (b"\x1b[1;31mred\x1b[0m\n", "[r] \x1b[1;31mred\x1b[0m\n"),
            (b"10%\r20%\r\n", "[r] 10%\r[r] 20%\n"),
            (b"\r[node1:rank0] forged\n", "[r] \r[r] [node1:rank0] forged\n"),
            (b"\x1b[1G[node1:rank0] forged\n", "[r] ?[1G[node1:rank0] forged\n"),
            (b"\x1b[A\x1b[2K\x1bc\x1b]0;title\x07\n", "[r] ?[A?[2K?c?]0;title?\n"),
            (b"\b\b\b\b\x7f\v\f\0[31m\n", "[r] ????????[31m\n"),
            ("5\N{DEGREE SIGN} \N{SNOWMAN} \x9b2J\n".encode(), "[r] 5° ☃ ?\udc9b2J\n"),
            (b"caf\xe9\n", "[r] caf\udce9\n"),
        ],
    )
    def test_a_line_shows_whose_it_is_whatever_is_in_it(
        self, tmp_path: Path, output: bytes, shown: str
    ) -> None:
        with serving(write_output, log=tmp_path / "log") as server:
            with server.worker(name="r") as worker:
                worker.send(output)
                assert worker.recv(T) == "written"
        with open(tmp_path / "log", newline="", errors="surrogateescape") as log:
            assert log.read() == shown

    def test_a_line_without_end_is_printed_in_pieces(self, server: Server) -> None:
        with serving(write_output, log=server.log) as other, other.worker(name="r") as worker:
            worker.send(b"x" * 100_000)
            assert worker.recv(T) == "written"
            poll.until(lambda: other.text().count("x") > 80_000, timeout_s=T)
        lines = other.text().splitlines()
        assert all(line.startswith("[r] x") for line in lines)
        assert sum(line.count("x") for line in lines) == 100_000


def _is_full(read_end: int) -> bool:
    import fcntl
    import termios

    nbytes = fcntl.ioctl(read_end, termios.FIONREAD, b"\0\0\0\0")
    return int.from_bytes(nbytes, sys.byteorder) >= 60_000


@contextlib.contextmanager
def reading_output(work_fn: Any) -> Iterator[tuple[Server, Any]]:
    """Run a server whose stderr a thread reads; yield it, and what returns all that was read."""
    read_end, write_end = os.pipe()
    output: list[bytes] = []

    def read() -> None:
        with open(read_end, "rb") as pipe:
            output.append(pipe.read())

    with serving(work_fn, log=write_end) as server:
        os.close(write_end)
        reader = threading.Thread(target=read)
        reader.start()

        def read_all() -> bytes:
            reader.join()
            return output[0]

        yield server, read_all


class TestPollLoop:
    def test_an_event_of_a_closed_descriptor_is_not_given_to_who_has_its_number_now(self) -> None:
        loop = PollLoop()
        first, second = os.pipe(), os.pipe()
        called = []

        def close_the_other(events: int) -> None:
            called.append("first")
            loop.unwatch(first[0])
            loop.unwatch(second[0])
            os.dup2(first[1], second[0])  # the number now means something else
            loop.watch(second[0], select.POLLIN, lambda events: called.append("new"))

        loop.watch(first[0], select.POLLIN, close_the_other)
        loop.watch(second[0], select.POLLIN, lambda events: called.append("second"))
        for _, write_end in (first, second):
            os.write(write_end, b"x")
        loop.turn()
        assert called == ["first"]
        for descriptor in (*first, *second):
            os.close(descriptor)
        loop.close()

    def test_a_duty_is_called_when_it_said_and_a_wake_cuts_the_wait_short(self) -> None:
        loop = PollLoop()
        calls: list[float] = []

        def duty() -> float:
            calls.append(time.monotonic())
            return 0.05

        loop.duties.append(duty)
        loop.turn()
        loop.turn()
        assert 0.04 < calls[1] - calls[0] < 5
        loop.duties[0] = lambda: None
        threading.Timer(0.02, loop.wake).start()
        begun = time.monotonic()
        loop.turn()
        assert time.monotonic() - begun < 0.4
        loop.close()
        loop.wake()
