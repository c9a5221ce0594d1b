"""Encrypted connections: what somebody on the way sees of them, and what he can do to them."""

import contextlib
import io
import itertools
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniray import (
    AuthenticationError,
    Channel,
    Cluster,
    MiniRayError,
    NodeConfig,
    ProtocolError,
    RemoteWorker,
    auth,
    cli,
    encrypted,
    greeting,
    tls,
    wait,
    wire,
    worker_server,
)
from miniray.connection import server_status
from miniray.tls import Tls
from tests import work
from tests.support import poll
from tests.support.proxy import Proxy
from tests.support.servers import Server, serving

T = 20.0
SECRET = "the loss is 0.25 and nobody else's business"
KEY = auth.make_key()
PRELUDE = struct.Struct("!4sBI")


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(work.echo, encrypt=True) as one:
        yield one


def connect(server: Server, port: int = 0, **options: Any) -> RemoteWorker:
    options = {"key": server.key, "encrypt": True, "timeout": T, **options}
    return RemoteWorker(server.host, port or server.port, **options)


def introduce() -> tuple[Tls, Tls]:
    """Return a client's and a server's TLS that have begun to talk."""
    client, server = Tls(is_server=False), Tls(is_server=True)
    said = server.begin(client.begin())
    server.begin(client.begin(said))
    return client, server


@contextlib.contextmanager
def pair() -> Iterator[tuple[Channel, Channel]]:
    """Yield the two ends of an encrypted connection within this process."""
    ours, theirs = socket.socketpair()
    (client, server), frames = introduce(), encrypted.EncryptedFrames
    with Channel(frames(ours, client, b"")) as left, Channel(frames(theirs, server, b"")) as right:
        yield left, right


@contextlib.contextmanager
def half_a_pair() -> Iterator[tuple[Channel, socket.socket, Tls]]:
    """Yield one end, and what the other is made of."""
    ours, theirs = socket.socketpair()
    client, server = introduce()
    with theirs, Channel(encrypted.EncryptedFrames(ours, client, b"")) as channel:
        yield channel, theirs, server


def talk(server: Server, port: int, messages: int = 1, timeout: float = T) -> None:
    """Send messages that have to come back."""
    with connect(server, port, timeout=timeout) as worker:
        for number in range(messages):
            worker.send([number, SECRET], timeout)
            assert worker.recv(timeout) == [number, SECRET]


def frame(message: Any) -> bytes:
    return wire.encode(wire.MESSAGE, message).head


class TestOnTheWay:
    @pytest.mark.parametrize("encrypt", [False, True])
    def test_a_recorder_reads_messages_only_if_they_are_in_clear(self, encrypt: bool) -> None:
        numpy = pytest.importorskip("numpy")
        heard = {True: b"", False: b""}

        def record(is_up: bool, chunk: bytes) -> bytes:
            heard[is_up] += chunk
            return chunk

        pattern = numpy.arange(5000)
        with (
            serving(work.echo, encrypt=encrypt) as server,
            Proxy((server.host, server.port), edit=record) as proxy,
            connect(server, proxy.port, encrypt=encrypt) as worker,
        ):
            worker.send({"text": SECRET, "data": pattern}, T)
            assert worker.recv(T)["text"] == SECRET
        for one in heard.values():
            assert (SECRET.encode() in one) is not encrypt
            assert (pattern.tobytes()[800:1600] in one) is not encrypt
            assert b'"nonce"' in one  # it did hear the handshake, which has no secrets

    @pytest.mark.parametrize("is_up", [False, True])
    @pytest.mark.parametrize("part", range(8))
    def test_a_bit_that_is_changed_ends_it_and_makes_no_other_message(
        self, server: Server, is_up: bool, part: int
    ) -> None:
        """From the first byte of TLS to the last of a message: a bit in each eighth."""
        chance = random.Random(part)
        lengths: list[int] = []

        def measure(up: bool, chunk: bytes) -> bytes:
            if up is is_up and (lengths or chunk[:2] == b"\x16\x03"):
                lengths.append(len(chunk))
            return chunk

        with Proxy((server.host, server.port), edit=measure) as proxy:
            with connect(server, proxy.port) as worker:
                worker.send([0, SECRET], T)
                assert worker.recv(T) == [0, SECRET]
                nbytes = sum(lengths)
        where = nbytes * part // 8 + chance.randrange(nbytes // 8)
        lengths.clear()

        def change(up: bool, chunk: bytes) -> bytes:
            begin = sum(lengths)
            changed = bytearray(measure(up, chunk))
            if begin <= where < sum(lengths):
                changed[where - begin] ^= 1 << chance.randrange(8)
            return bytes(changed)

        with Proxy((server.host, server.port), edit=change) as proxy:
            with pytest.raises((MiniRayError, OSError)):  # of a length, that it never comes
                talk(server, proxy.port, timeout=1.0)

    @pytest.mark.parametrize("is_up", [False, True])
    def test_a_connection_cut_anywhere_ends(self, server: Server, is_up: bool) -> None:
        for nbytes in (1, 200, 330, 700, 900, 1400, 1700, 2000):
            limit = {"up_bytes_max" if is_up else "down_bytes_max": nbytes}
            with Proxy((server.host, server.port), **limit) as proxy:
                with pytest.raises((MiniRayError, ConnectionError)):
                    talk(server, proxy.port, messages=20)

    @pytest.mark.parametrize("encrypt", [False, True])
    def test_a_status_that_was_changed_is_refused(self, encrypt: bool) -> None:
        def flatter(is_up: bool, chunk: bytes) -> bytes:
            return chunk.replace(b'"workers_running":0', b'"workers_running":9')

        with serving(work.echo, encrypt=encrypt) as server:
            assert server.status()["server"]["workers_running"] == 0
            with Proxy((server.host, server.port), edit=flatter) as proxy:
                with pytest.raises(AuthenticationError, match="not what it had promised"):
                    server_status(server.host, proxy.port, key=server.key)

    @pytest.mark.parametrize(
        ("kind", "other"),
        [
            (wire.MESSAGE, '{"$":"bytes"}'),
            (wire.MESSAGE, '{"$":"enum","items":["no.such:E","A"]}'),
            (wire.MESSAGE, "[]"),
            (wire.ERROR, '{"type":"ValueError"}'),
            (wire.EXIT, "{}"),
        ],
    )
    def test_and_so_is_something_else_in_its_place(
        self, server: Server, kind: int, other: str
    ) -> None:
        text = f'{{"body":{other}}}'.encode()
        said = PRELUDE.pack(wire.MAGIC, kind, len(text)) + text

        def replace(is_up: bool, chunk: bytes) -> bytes:
            if is_up or b'"digest"' not in chunk:
                return chunk
            return chunk[: PRELUDE.size + PRELUDE.unpack_from(chunk)[2]] + said

        with Proxy((server.host, server.port), edit=replace) as proxy:
            with pytest.raises((MiniRayError, OSError)):
                server_status(server.host, proxy.port, key=server.key)


class Interloper:
    """Sit in between: pass the handshake on, and then do what a test wants with both sides."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(T)
        self.port: int = self._listener.getsockname()[1]
        self._sockets = [self._listener]

    def pass_handshake_on(self) -> tuple[socket.socket, socket.socket]:
        """Return the client's and the server's connection, which trust each other by now."""
        client, _ = self._listener.accept()
        server = self._server.connect()
        self._sockets += [client, server]
        for one in (client, server):
            one.settimeout(T)
        for source, sink in itertools.islice(
            itertools.cycle([(client, server), (server, client)]), 4
        ):
            prelude = source.recv(PRELUDE.size, socket.MSG_WAITALL)
            _, _, nbytes = PRELUDE.unpack(prelude)
            sink.sendall(prelude + source.recv(nbytes, socket.MSG_WAITALL))
        return client, server

    def __enter__(self) -> "Interloper":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()


def begin_tls(sock: socket.socket, *, is_server: bool) -> Tls:
    """Begin to encrypt with one who takes us for the other."""
    one = Tls(is_server=is_server)
    sock.sendall(b"" if is_server else one.begin())
    while not one.has_begun:
        sock.sendall(one.begin(sock.recv(1 << 16)))
    return one


def relay(source: socket.socket, opened: Tls, sink: socket.socket, sealing: Tls) -> bytes:
    """Pass on what comes from one side, and return it, as he who sits in between can read it."""
    said = b""
    while not said and (data := source.recv(1 << 16)):
        opened.put(data)
        said = opened.read()
    if said:
        sink.sendall(sealing.seal(said))
    return said


class TestInBetween:
    def test_who_encrypts_with_either_side_is_found_out_by_both(self, tmp_path: Path) -> None:
        with (
            serving(work.echo, encrypt=True, log=tmp_path / "log") as server,
            Interloper(server) as he,
            ThreadPoolExecutor() as pool,
        ):
            victim: Future[RemoteWorker] = pool.submit(connect, server, he.port)
            client, worker = he.pass_handshake_on()
            with_worker = begin_tls(worker, is_server=False)
            with_client = begin_tls(client, is_server=True)
            # The server's proof, which he can read, and pass on, and not make himself.
            assert len(relay(worker, with_worker, client, with_client)) == 64
            with pytest.raises(AuthenticationError, match="somebody sits between"):
                victim.result(T).close()
            worker.sendall(with_worker.seal(b"0" * 64 + frame("for the worker")))
            poll.until(lambda: "somebody sits between" in server.text(), timeout_s=T)
            assert "Traceback" not in server.text()

    def test_nor_can_he_let_one_client_have_anothers_worker(self, server: Server) -> None:
        with Interloper(server) as he, ThreadPoolExecutor() as pool:
            victims, lines = [], []
            for _ in range(2):
                victims.append(pool.submit(connect, server, he.port))
                lines.append(he.pass_handshake_on())
            (first, worker), (second, other) = lines
            crossed = [(first, other), (other, first), (second, worker), (worker, second)]
            pumps = [pool.submit(pump, *sockets) for sockets in crossed]
            for victim in victims:
                with pytest.raises(AuthenticationError, match="somebody sits between"):
                    victim.result(T).close()
            for one in pumps:
                one.result(T)

    def test_nor_reflect_what_a_side_has_said(self) -> None:
        for is_server in (False, True):
            ours, theirs = auth.prove_same_view(KEY, "a", {"client": "1"}, is_server=is_server)
            with pytest.raises(AuthenticationError):
                auth.check_same_view(ours, theirs)

    def test_nobody_in_between_is_a_view_in_common(self) -> None:
        client, server = introduce()
        assert client.view() == server.view()
        assert client.view() != introduce()[0].view()
        assert client.seal(b"the same") != introduce()[0].seal(b"the same")


def pump(source: socket.socket, sink: socket.socket) -> None:
    """Pass on what comes, until one of the two has hung up."""
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)


class TestBothSidesAgree:
    @pytest.mark.parametrize("encrypt", [False, True])
    def test_one_that_encrypts_and_one_that_does_not(self, encrypt: bool) -> None:
        with serving(work.echo, encrypt=encrypt) as server:
            words = f"refuses: it has been started with encrypt={encrypt}; connect with the same"
            with pytest.raises(ConnectionRefusedError, match=words):
                connect(server, encrypt=not encrypt)
            assert server.status()["server"]["workers_started"] == 0
            with connect(server, encrypt=encrypt) as worker:
                worker.send(1, T)
                assert worker.recv(T) == 1

    def test_a_server_from_before_there_was_encryption(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def welcome(*proofs_and_reply: Any) -> auth.Message:
            *proofs, reply = proofs_and_reply
            return known(*proofs, {name: reply[name] for name in ("worker", "pid")})

        known = auth.welcome
        monkeypatch.setattr(greeting.Greeter, "why_not", lambda *_: None)
        monkeypatch.setattr(auth, "welcome", welcome)
        with serving(work.echo) as server:
            with pytest.raises(ProtocolError, match=f"{server.port}: it cannot encrypt"):
                connect(server)

    def test_a_wrong_key_is_told_as_ever(self, server: Server) -> None:
        with pytest.raises(AuthenticationError, match="holds a different key"):
            connect(server, key=KEY)

    def test_a_client_that_says_no_more_gives_its_place_back(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(worker_server, "STRANGER_S", 0.5)
        with (
            serving(work.echo, encrypt=True) as server,
            Interloper(server) as he,
            ThreadPoolExecutor() as pool,
        ):
            victim = pool.submit(connect, server, he.port)
            he.pass_handshake_on()
            poll.until(lambda: server.status()["server"]["workers_running"] == 1, timeout_s=T)
            poll.until(lambda: server.status()["server"]["workers_running"] == 0, timeout_s=T)
            he.close()
            with pytest.raises(ConnectionError):
                victim.result(T).close()

    @pytest.mark.parametrize(
        "data", [b"MRY1\x01\0\0\0\x0b", b"\x15\x03\x01\0\x02\x02\x28", b"\0" * 99]
    )
    def test_what_is_no_tls_is_refused(self, data: bytes) -> None:
        for is_server in (False, True):
            one = Tls(is_server=is_server)
            one.begin()
            with pytest.raises(ProtocolError, match="encryption cannot begin"):
                one.begin(data)

    def test_a_beginning_without_end_is_refused(self) -> None:
        one = Tls(is_server=True)
        one.begin(b"\x16\x03\x01\x40\x00\x01\x00\xff\xff")
        with pytest.raises(ProtocolError, match="more has come than that takes"):
            one.begin(bytes(tls.BEGINNING_BYTES_MAX - 8))

    def test_who_goes_on_before_the_other_has_answered_is_refused(self) -> None:
        client, server = Tls(is_server=False), Tls(is_server=True)
        last = client.begin(server.begin(client.begin()))
        with pytest.raises(ProtocolError, match="more has come than that takes"):
            server.begin(last + client.seal(b"and so on"))

    def test_in_a_tunnel_it_is_refused_and_locally_it_is_not(self) -> None:
        with pytest.raises(ValueError, match="ssh encrypts already"):
            NodeConfig("node1", tunnel=True, encrypt=True)
        assert NodeConfig.local(2, encrypt=True).encrypt

    @pytest.mark.thorough
    def test_a_cluster_encrypts(self) -> None:
        with Cluster([NodeConfig.local(2, encrypt=True)], log=io.StringIO()) as cluster:
            workers = cluster.start("tests.work.echo")
            host, port = workers[0].host, workers[0].port
            with pytest.raises(ConnectionRefusedError, match="encrypt=True"):
                RemoteWorker(host, port, key=workers[0]._key)
            cluster.broadcast(SECRET, T)
            assert cluster.gather(T) == [SECRET] * 2
            assert cluster.status()[0]["server"]["workers_running"] == 2
            workers = cluster.restart()
            workers[1].send(SECRET, T)
            assert workers[1].recv(T) == SECRET


class TestCommands:
    @pytest.mark.parametrize("option", ["--encrypt", "--tls"])
    def test_serve(self, option: str) -> None:
        command = [*("-m", "miniray", "serve", "--work-fn", "tests.work.echo"), option]
        with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True) as one:
            assert one.stdout is not None
            said = one.stdout.readline()
            assert said.endswith(", for clients that encrypt\n")
            host, port = said.split()[2].split(":")
            with RemoteWorker(host, int(port), encrypt=True) as worker:
                worker.send(SECRET, T)
                assert worker.recv(T) == SECRET
            one.send_signal(signal.SIGTERM)

    def test_run(self, capsys: pytest.CaptureFixture[str]) -> None:
        """In a tunnel it is refused, so it has arrived where a node is described."""
        command = ["run", "-H", "a:1", "--encrypt", "--tunnel", "--workdir", ".", "math:hypot"]
        assert cli.main(command) == 2
        assert "in its tunnel ssh encrypts already" in capsys.readouterr().err


class TestTls:
    def test_every_changed_byte_of_its_beginning_is_noticed(self) -> None:
        """Either TLS itself refuses it, or the two sides have another view."""
        nbytes = [0, 0, 0]

        def begin(flight: int, where: int) -> tuple[Tls, Tls]:
            client, server = Tls(is_server=False), Tls(is_server=True)

            def pass_on(number: int, data: bytes) -> bytes:
                nbytes[number] = len(data)
                if number != flight:
                    return data
                changed = bytearray(data.ljust(where + 1))  # it may say less this time
                changed[where] ^= 1 << where % 8
                return bytes(changed)

            said = server.begin(pass_on(0, client.begin()))
            server.begin(pass_on(2, client.begin(pass_on(1, said))))
            return client, server

        client, server = begin(-1, 0)
        assert client.has_begun
        assert server.has_begun
        for flight, length in enumerate(list(nbytes)):
            assert length > 60
            for where in range(length):
                with contextlib.suppress(ProtocolError):
                    client, server = begin(flight, where)
                    done = client.has_begun and server.has_begun
                    assert not done or client.view() != server.view()

    def test_every_changed_bit_of_a_record_is_noticed(self) -> None:
        for where in range(8 * len(introduce()[0].seal(b"short"))):
            client, server = introduce()
            record = bytearray(client.seal(b"short"))
            record[where // 8] ^= 1 << where % 8
            server.put(record)
            with contextlib.suppress(ProtocolError):
                assert server.read() == b""  # a length that grew: the rest never comes
                continue

    def test_records_that_come_twice_or_in_another_order_are_refused(self) -> None:
        for order in ((0, 0), (1, 0), (1,)):
            client, server = introduce()
            records = client.seal(b"first"), client.seal(b"second")
            for number in order:
                server.put(records[number])
            with pytest.raises(ProtocolError, match="not what was sent"):
                server.read()

    def test_it_is_the_newest_and_makes_its_secrets_anew(self) -> None:
        client, server = introduce()
        for one in (client, server):
            name, version, bits = one._tls.cipher() or ("", "", 0)
            assert version == "TLSv1.3"
            assert bits >= 128
            assert "GCM" in name or "POLY1305" in name
        assert tls.make_context(is_server=True).minimum_version.name == "TLSv1_3"
        assert tls.make_context(is_server=False).minimum_version.name == "TLSv1_3"


class TestFrames:
    def test_small_messages_in_one_record_are_all_seen_by_wait_and_select(self) -> None:
        with half_a_pair() as (channel, theirs, their_tls):
            assert wait([channel], 0) == []
            select.select([channel], [], [], 0)  # from now on it has a bell
            theirs.sendall(their_tls.seal(b"".join(map(frame, range(200)))))
            for number in range(200):
                assert wait([channel], T) == [channel]
                assert select.select([channel], [], [], 0)[0] == [channel]
                assert channel.recv(0) == number
            assert wait([channel], 0) == []
            assert select.select([channel], [], [], 0)[0] == []

    def test_a_record_cut_anywhere_is_no_message_until_it_is_whole(self) -> None:
        with half_a_pair() as (channel, theirs, their_tls):
            length = len(their_tls.seal(frame("cut")))
        with half_a_pair() as (channel, theirs, their_tls):
            for cut in range(length + 1):
                record = their_tls.seal(frame("cut"))
                theirs.sendall(record[:cut])
                if cut < length:
                    assert wait([channel], 0) == []
                    with pytest.raises(TimeoutError):
                        channel.recv(0)
                theirs.sendall(record[cut:])
                assert wait([channel], T) == [channel]
                assert channel.recv(T) == "cut"

    def test_a_frame_in_many_records_is_no_message_until_the_last(self) -> None:
        with half_a_pair() as (channel, theirs, their_tls):
            whole = frame("in records of seven bytes")
            pieces = [whole[at : at + 7] for at in range(0, len(whole), 7)]
            for piece in pieces:
                assert wait([channel], 0) == []
                theirs.sendall(their_tls.seal(piece))
            assert channel.recv(T) == "in records of seven bytes"

    def test_an_end_without_a_goodbye_is_none(self) -> None:
        with half_a_pair() as (channel, theirs, their_tls):
            theirs.sendall(their_tls.seal(frame(1)))
            theirs.close()
            assert channel.recv(T) == 1
            with pytest.raises(ConnectionResetError, match="hung up without a goodbye"):
                channel.recv(T)

    def test_what_is_said_in_clear_ends_it(self) -> None:
        with half_a_pair() as (channel, theirs, _):
            theirs.sendall(frame("not encrypted"))
            for _ in range(2):
                with pytest.raises(ProtocolError, match="not what was sent"):
                    channel.recv(T)

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_messages_of_any_size_in_pieces_of_any_size(self, data: st.DataObject) -> None:
        sizes = data.draw(st.lists(st.integers(0, 3) | st.integers(0, 70_000), max_size=5))
        message = [os.urandom(1) * size for size in sizes]
        with pair() as (left, right), half_a_pair() as (channel, theirs, their_tls):
            left.send([message, sizes], 1.0)
            assert right.recv(T) == [message, sizes]
            encoded = wire.encode(wire.MESSAGE, message)
            rest = their_tls.seal(b"".join([encoded.head, *map(bytes, encoded.parts)]))
            cuts = data.draw(st.lists(st.integers(1, len(rest) - 1), max_size=8).map(sorted))
            for begin, end in itertools.pairwise([0, *cuts]):
                theirs.sendall(rest[begin:end])
                assert wait([channel], 0) == []
            theirs.sendall(rest[max([0, *cuts]) :])
            assert channel.recv(T) == message

    @pytest.mark.parametrize("mebibytes", [1, 12])
    def test_large_arrays_both_ways_at_once(self, mebibytes: int) -> None:
        numpy = pytest.importorskip("numpy")
        arrays = [numpy.frombuffer(os.urandom(mebibytes << 20), "u1") for _ in range(4)]

        def send_all(channel: Channel) -> None:
            for array in arrays:
                channel.send({"x": array, "also": 1}, T)

        with pair() as (left, right), ThreadPoolExecutor() as pool:
            sending = [pool.submit(send_all, channel) for channel in (left, right)]
            receiving = [
                pool.submit(lambda one: [one.recv(T)["x"] for _ in arrays], channel)
                for channel in (left, right)
            ]
            for one in receiving:
                for arrived, array in zip(one.result(60), arrays, strict=True):
                    assert (arrived == array).all()
            for done in sending:
                done.result(T)

    def test_openssl_has_one_thread_at_a_time_in_it(self) -> None:
        class Alone:
            def __init__(self, inner: Any) -> None:
                self._inner, self._somebody = inner, False

            def __getattr__(self, name: str) -> Any:
                def call(*args: Any) -> Any:
                    assert not self._somebody
                    self._somebody = True
                    os.sched_yield()
                    try:
                        return getattr(self._inner, name)(*args)
                    finally:
                        self._somebody = False

                return call

        def take(channel: Channel) -> None:
            for _ in range(100):
                channel.recv(T)

        with pair() as (left, right), ThreadPoolExecutor() as pool:
            for channel in (left, right):
                ends: Any = channel.frames
                ends._tls._tls = Alone(ends._tls._tls)
            receiving = [pool.submit(take, channel) for channel in (left, right)]
            for number in range(100):
                for channel in (left, right):
                    channel.send([number, bytes(100_000)], T)
            for one in receiving:
                one.result(T)

    def test_a_forked_child_disturbs_nothing(self, server: Server) -> None:
        with connect(server) as worker:
            child = os.fork()
            if child == 0:
                try:
                    worker.send(1)
                except ConnectionError as error:
                    os._exit(int("stayed with the process" not in str(error)))
                finally:
                    os._exit(2)
            assert os.waitpid(child, 0)[1] == 0
            worker.send(SECRET, T)
            assert worker.recv(T) == SECRET

    def test_a_goodbye_is_encrypted_too(self) -> None:
        with half_a_pair() as (channel, theirs, their_tls):
            channel.close()
            their_tls.put(theirs.recv(1 << 16))
            assert their_tls.read() == wire.encode(wire.EXIT, {"code": 0}).head
