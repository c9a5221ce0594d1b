"""The fixtures do what they promise, and the leak check sees each kind of leak."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import leaks, poll, processes
from tests.support.namespaces import REPOSITORY, Nodes
from tests.support.proxy import Proxy
from tests.support.ssh import LoopbackNodes

pytestmark = pytest.mark.slow  # they wait for what is to be found, and for what is not

HANGS = "import signal; signal.pause()"


def test_key_file_is_private_and_named_by_the_environment(key_file: Path) -> None:
    assert os.environ["MINIRAY_KEY_FILE"] == str(key_file)
    assert key_file.stat().st_mode & 0o777 == 0o600
    assert len(bytes.fromhex(key_file.read_text())) == 32


class TestLeakCheck:
    def test_finds_nothing_when_there_is_nothing(self) -> None:
        before = leaks.take_snapshot()
        subprocess.run(["true"], check=True)
        with tempfile.TemporaryFile():
            pass
        assert leaks.find(before, timeout_s=0.1) == []

    def test_sees_a_process_and_ends_it(self) -> None:
        before = leaks.take_snapshot()
        process = subprocess.Popen([sys.executable, "-c", HANGS])
        [found] = leaks.find(before, timeout_s=0.1)
        assert f"process {process.pid}" in found
        leaks.end_new_processes(before)
        assert not processes.is_running(process.pid)

    def test_sees_an_orphaned_grandchild(self) -> None:
        before = leaks.take_snapshot()
        starts_another = (
            "import subprocess, sys; print(subprocess.Popen("
            f"[sys.executable, '-c', {HANGS!r}], stdout=subprocess.DEVNULL).pid)"
        )
        done = subprocess.run(
            [sys.executable, "-c", starts_another], stdout=subprocess.PIPE, check=True, text=True
        )
        [found] = leaks.find(before, timeout_s=0.1)
        assert f"process {int(done.stdout)}, child of {os.getpid()}" in found
        leaks.end_new_processes(before)
        assert leaks.find(before, timeout_s=1) == []

    def test_sees_a_zombie_that_was_forked_here(self) -> None:
        before = leaks.take_snapshot()
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        poll.until(lambda: not processes.is_running(pid))
        [found] = leaks.find(before, timeout_s=0.1)
        assert f"zombie {pid}" in found
        os.waitpid(pid, 0)

    def test_reaps_an_adopted_orphan_that_ended_by_itself(self) -> None:
        before = leaks.take_snapshot()
        subprocess.run(["sh", "-c", "(exec true) & exit"], check=True)
        assert leaks.find(before, timeout_s=1) == []

    def test_sees_a_descriptor(self) -> None:
        before = leaks.take_snapshot()
        reading, writing = os.pipe()
        found = leaks.find(before, timeout_s=0.1)
        os.close(reading)
        os.close(writing)
        assert len(found) == 2
        assert all("descriptor of pipe:" in line for line in found)

    def test_sees_a_listening_socket_and_names_its_port(self) -> None:
        before = leaks.take_snapshot()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            [found] = leaks.find(before, timeout_s=0.1)
            assert f"listening on port {listener.getsockname()[1]}" in found

    def test_sees_a_temporary_directory(self) -> None:
        before = leaks.take_snapshot()
        with tempfile.TemporaryDirectory(prefix="miniray-") as directory:
            assert leaks.find(before, timeout_s=0.1) == [f"path {directory}"]

    def test_does_not_complain_about_what_is_just_ending(self) -> None:
        before = leaks.take_snapshot()
        process = subprocess.Popen([sys.executable, "-c", HANGS])
        threading.Timer(0.3, lambda: (process.kill(), process.wait())).start()
        assert leaks.find(before, timeout_s=5) == []


@pytest.mark.ssh
class TestLoopbackSshd:
    def test_reaches_both_hosts(self, loopback_sshd: LoopbackNodes) -> None:
        for host in loopback_sshd.hosts:
            assert loopback_sshd.run(host, "echo here").stdout == "here\n"

    def test_nodes_use_the_temporary_directory_that_is_checked(
        self, loopback_sshd: LoopbackNodes
    ) -> None:
        printed = loopback_sshd.run("node1", 'echo "$TMPDIR"').stdout
        assert printed.strip() == tempfile.gettempdir()

    def test_refuses_a_changed_host_key(self, loopback_sshd: LoopbackNodes) -> None:
        known_hosts = loopback_sshd.identity.known_hosts
        right = known_hosts.read_text()
        key = loopback_sshd.identity.key.with_suffix(".pub").read_text().split()
        try:
            known_hosts.write_text(f"[127.0.0.1]:{loopback_sshd.port} {key[0]} {key[1]}\n")
            done = loopback_sshd.run("node1", "echo here")
        finally:
            known_hosts.write_text(right)
        assert done.returncode == 255
        assert done.stdout == ""
        assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in done.stderr

    def test_login_shell_gets_the_command_line_as_it_is(
        self, login_shell_sshd: LoopbackNodes
    ) -> None:
        command = 'exec /bin/sh -c \'export A="one  two"; B=$(echo "$A"); echo "$B" "\\$HOME"\''
        done = login_shell_sshd.run("node1", command)
        assert done.stdout == "one  two $HOME\n", done.stderr

    def test_login_shell_is_the_one_it_claims_to_be(
        self, login_shell_sshd: LoopbackNodes, request: pytest.FixtureRequest
    ) -> None:
        name = request.node.callspec.params["login_shell_sshd"]
        only_there = {
            "fish": ("string upper fish", "FISH"),
            "tcsh": ("setenv A tcsh; echo $A", "tcsh"),
            "zsh": ("echo ${(U):-zsh}", "ZSH"),
        }
        command, printed = only_there[name]
        assert login_shell_sshd.run("node1", command).stdout.strip() == printed

    def test_noisy_shell_prints_junk_before_the_command(self, noisy_sshd: LoopbackNodes) -> None:
        done = subprocess.run(
            ["ssh", *noisy_sshd.ssh_options, "node1", "echo here"],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=30,
        )
        assert done.stdout.endswith(b"\nhere\n")
        assert done.stdout.startswith(b"Welcome")
        assert done.stderr.endswith(b"and one without a newline")


@pytest.mark.netns
@pytest.mark.ssh
class TestNamespaces:
    def test_coordinator_reaches_both_nodes(self, netns_nodes: Nodes) -> None:
        for host in netns_nodes.hosts:
            done = netns_nodes.run(["ssh", *netns_nodes.ssh_options, host, "echo $SSH_CONNECTION"])
            assert done.returncode == 0, done.stderr
            assert done.stdout.split()[0] == netns_nodes.coordinator_address
            assert done.stdout.split()[2] == netns_nodes.addresses[host]

    def test_coordinator_reaches_a_node_over_ipv6(self, netns_nodes: Nodes) -> None:
        done = netns_nodes.run(["ssh", *netns_nodes.ssh_options, "node1-v6", "true"])
        assert done.returncode == 0, done.stderr

    def test_refuses_a_node_with_another_host_key(self, netns_nodes: Nodes) -> None:
        with netns_nodes.changed_host_key("node2"):
            done = netns_nodes.run(["ssh", *netns_nodes.ssh_options, "node2", "true"])
        assert done.returncode == 255
        assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in done.stderr
        assert netns_nodes.run(["ssh", *netns_nodes.ssh_options, "node2", "true"]).returncode == 0

    def test_python_runs_text_with_arguments_and_the_key(
        self, netns_nodes: Nodes, key_file: Path
    ) -> None:
        script = """
            import os, sys
            import tests.support
            print(sys.argv[1], os.environ["MINIRAY_KEY_FILE"])
        """
        done = netns_nodes.python(script, "first")
        assert done.stdout.split() == ["first", str(key_file)], done.stderr

    def test_python_that_takes_too_long_is_ended(self, netns_nodes: Nodes) -> None:
        with pytest.raises(subprocess.TimeoutExpired):
            netns_nodes.python(HANGS, timeout=0.5)

    def test_looking_up_any_address_takes_no_time(self, netns_nodes: Nodes) -> None:
        script = """
            import socket, time
            started = time.monotonic()
            for name in ("node1", "node2", "coordinator", "localhost", socket.gethostname()):
                address = socket.gethostbyname(name)
                print(name, address, socket.getfqdn(address))
            assert time.monotonic() - started < 1
        """
        for node in (None, *netns_nodes.hosts):
            with_script = netns_nodes.run(
                [sys.executable, "-c", textwrap.dedent(script)], node=node
            )
            assert with_script.returncode == 0, with_script.stderr
        assert "node1 10.77.0.11 node1" in with_script.stdout

    def test_cut_link_loses_packets_and_mend_restores_it(self, netns_nodes: Nodes) -> None:
        reaches = (
            f"import socket; socket.create_connection(({netns_nodes.addresses['node2']!r}, 22), 1)"
        )
        with netns_nodes.cut("node2"):
            assert netns_nodes.python(reaches).returncode == 1
        poll.until(lambda: netns_nodes.python(reaches).returncode == 0)

    def test_pids_lists_what_lives_on_a_node(self, netns_nodes: Nodes) -> None:
        assert netns_nodes.pids("node1") == []
        command = ["ssh", *netns_nodes.ssh_options, "node1", "echo started; read line; echo ended"]
        with netns_nodes.popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=1
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
            assert len(netns_nodes.pids("node1")) == 1
            assert netns_nodes.pids("node2") == []
            process.communicate("line\n", timeout=10)
        netns_nodes.wait_until_empty()

    def test_wait_until_empty_names_who_is_left(self, netns_nodes: Nodes) -> None:
        with netns_nodes.popen(["cat"], node="node1", stdin=subprocess.PIPE) as process:
            poll.until(lambda: netns_nodes.pids("node1"))
            with pytest.raises(TimeoutError, match=r"'node1': \['cat"):
                netns_nodes.wait_until_empty(timeout_s=0.2)
            process.communicate(timeout=10)


@pytest.fixture
def echo_port() -> Iterator[int]:
    """Yield the port of a server that sends back what it gets, to one client after another."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                try:
                    while data := connection.recv(65536):
                        connection.sendall(data)
                except ConnectionResetError:
                    pass

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(timeout=5)


@pytest.fixture
def connect(echo_port: int) -> Iterator[Callable[..., tuple[Proxy, socket.socket]]]:
    """Yield a function that makes a proxy before the echo server, and a client of it."""
    opened: list[tuple[Proxy, socket.socket]] = []

    def make(**options: float) -> tuple[Proxy, socket.socket]:
        proxy = Proxy(("127.0.0.1", echo_port), **options)  # type: ignore[arg-type]
        client = socket.create_connection(("127.0.0.1", proxy.port), timeout=5)
        opened.append((proxy, client))
        return proxy, client

    yield make
    for proxy, client in opened:
        client.close()
        proxy.close()


class TestProxy:
    def test_forwards_both_ways(self, connect: Callable[..., tuple[Proxy, socket.socket]]) -> None:
        _, client = connect()
        client.sendall(b"hello")
        assert client.recv(100) == b"hello"
        client.shutdown(socket.SHUT_WR)
        assert client.recv(100) == b""

    def test_delays(self, connect: Callable[..., tuple[Proxy, socket.socket]]) -> None:
        _, client = connect(delay_s=0.1)
        started = time.monotonic()
        client.sendall(b"hello")
        assert client.recv(100) == b"hello"
        assert time.monotonic() - started >= 0.2

    def test_silence_closes_nothing_and_resume_forwards_what_was_held(
        self, connect: Callable[..., tuple[Proxy, socket.socket]]
    ) -> None:
        proxy, client = connect()
        client.sendall(b"one")
        assert client.recv(100) == b"one"
        proxy.silence()
        client.sendall(b"two")
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(100)
        client.settimeout(5)
        proxy.resume()
        assert client.recv(100) == b"two"

    def test_cuts_after_so_many_bytes(
        self, connect: Callable[..., tuple[Proxy, socket.socket]]
    ) -> None:
        _, client = connect(down_bytes_max=3)
        client.sendall(b"hello")
        received = b""
        try:
            while data := client.recv(100):
                received += data
        except ConnectionResetError:
            was_reset = True
        else:
            was_reset = False
        assert was_reset
        assert received in (b"hel", b"")  # a reset may overtake what was not read yet

    def test_hang_up_ends_the_connection(
        self, connect: Callable[..., tuple[Proxy, socket.socket]]
    ) -> None:
        proxy, client = connect()
        client.sendall(b"one")
        assert client.recv(100) == b"one"
        proxy.hang_up()
        assert client.recv(100) == b""

    def test_hang_up_by_reset(self, connect: Callable[..., tuple[Proxy, socket.socket]]) -> None:
        proxy, client = connect()
        client.sendall(b"one")
        assert client.recv(100) == b"one"
        proxy.silence()
        client.sendall(b"two")
        proxy.hang_up(reset=True)
        with pytest.raises(ConnectionResetError):
            client.recv(100)


def test_wait_until_gone_names_who_stays() -> None:
    with subprocess.Popen([sys.executable, "-c", HANGS]) as process:
        with pytest.raises(TimeoutError, match=str(process.pid)):
            processes.wait_until_gone([process.pid], timeout_s=0.1)
        process.send_signal(signal.SIGKILL)
        processes.wait_until_gone([process.pid])


LEAVES_THINGS = """
import os, subprocess, sys
import hypothesis, pytest
from hypothesis import strategies

def test_leaves_a_process():
    subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])

def test_leaves_a_pipe():
    os.pipe()

def test_after_it_starts_clean():
    pass

@hypothesis.given(strategies.integers())
def test_property(value):
    pass

@pytest.mark.netns
def test_skipped():
    pytest.skip("as if there were no root")

def test_skipped_for_another_reason():
    pytest.skip("no matter")
"""


def _outcomes(directory: Path, *, ci: str) -> dict[str, set[str]]:
    (directory / "conftest.py").write_text(
        "from tests.support import fixtures\n"
        "from tests.support.fixtures import *\n"
        "fixtures.LEAK_GRACE_S = 0.2\n"
    )
    (directory / "test_leaks.py").write_text(LEAVES_THINGS)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-c", str(REPOSITORY / "pyproject.toml")),
            *("--rootdir", str(directory), "-p", "no:cacheprovider", "-rA", str(directory)),
        ],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "MINIRAY_CI": ci},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    outcomes: dict[str, set[str]] = {}
    for line in done.stdout.splitlines():
        outcome, _, rest = line.partition(" ")
        if outcome in ("PASSED", "FAILED", "ERROR") and "::" in rest:
            outcomes.setdefault(outcome, set()).add(rest.split()[0].partition("::")[2])
    return outcomes


def test_fixture_fails_a_test_that_leaves_something(tmp_path: Path) -> None:
    outcomes = _outcomes(tmp_path, ci="")
    assert outcomes["ERROR"] == {"test_leaves_a_process", "test_leaves_a_pipe"}
    assert {"test_after_it_starts_clean", "test_property"} <= outcomes["PASSED"]
    assert "FAILED" not in outcomes


def test_in_ci_a_skipped_netns_test_is_a_failure(tmp_path: Path) -> None:
    assert _outcomes(tmp_path, ci="1")["FAILED"] == {"test_skipped"}
