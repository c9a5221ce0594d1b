"""What a node can be like, and what is said about it: odd shells, sshds, launchers, modules."""

import contextlib
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from miniray import Cluster, ClusterError, NodeConfig, WorkerDied, nodes
from tests.support import namespaces, poll, ssh

pytestmark = pytest.mark.thorough
T = 30.0
SH = ("/bin/sh", "-c")

MakeNodes = Callable[..., AbstractContextManager[ssh.LoopbackNodes]]


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Callable[..., ssh.LoopbackNodes]]:
    """Yield a function that runs an sshd of its own, with the settings that it is given."""
    if reason := ssh.missing():
        pytest.skip(reason)
    with contextlib.ExitStack() as running:
        yield lambda **options: running.enter_context(ssh.loopback_nodes(tmp_path, **options))


def node(nodes: ssh.LoopbackNodes, *more: str, **options: Any) -> NodeConfig:
    words = (*nodes.ssh_options, *more)
    return NodeConfig(nodes.hosts[0], ssh_options=words, **{"python": sys.executable, **options})


def start_and_echo(*configs: NodeConfig, **options: Any) -> None:
    with Cluster(list(configs), log=io.StringIO(), **options) as cluster:
        for worker in cluster.start("tests.work.echo"):
            worker.send("there")
            assert worker.recv(T) == "there"


def fault_of(*configs: NodeConfig, work_fn: str = "tests.work.echo", **options: Any) -> str:
    """Return the text of the ClusterError that starting these nodes gives."""
    with pytest.raises(ClusterError) as caught:
        Cluster(list(configs), log=io.StringIO(), **options).start(work_fn)
    return str(caught.value)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Return a function that writes a module and returns the name of the work function in it."""

    def write(text: str) -> str:
        (tmp_path / "of_a_user.py").write_text(text)
        return "of_a_user.f"

    monkeypatch.syspath_prepend(str(tmp_path))
    return write


class TestWhoIsToBlame:
    def test_a_node_that_is_given_up_because_of_another_says_so(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(nodes, "FAULT_SPREAD_S", 0.5)
        slow = NodeConfig("slow", launcher=("/bin/sh", "-c", "cat >/dev/null"))
        bad = NodeConfig("bad", launcher=("/bin/false",))
        fault = fault_of(slow, bad, start_timeout=10.0)
        assert fault.startswith("1 of 2 nodes failed to start; nothing was left running:\n")
        assert "\n  slow: given up after 0." in fault
        assert "s because of bad\n" in fault
        assert "\n  bad: false exited with status 1 before Python answered" in fault

    def test_both_say_what_is_their_own(self) -> None:
        slow = NodeConfig("slow", launcher=("/bin/sh", "-c", "sleep 0.3; exit 3"))
        bad = NodeConfig("bad", launcher=("/bin/sh", "-c", "echo no quota >&2; exit 4"))
        fault = fault_of(slow, bad)
        assert fault.startswith("2 of 2 nodes failed")
        assert "\n  slow: sh exited with status 3 before Python answered; it said nothing" in fault
        assert "\n  bad: sh exited with status 4 before Python answered: no quota" in fault

    def test_a_silent_node_is_given_up_when_it_was_promised(self) -> None:
        begun = time.monotonic()
        fault = fault_of(
            NodeConfig("slow", launcher=("/bin/sh", "-c", "sleep 100")), start_timeout=0.5
        )
        assert time.monotonic() - begun < 3
        # The session's own time, which began a moment later.
        assert re.search(r"\n  slow: not ready after 0\.[45]s, before Python answered; it s", fault)


class TestTheModule:
    def test_an_exception_comes_with_its_traceback_as_the_last_thing(
        self, module: Callable[[str], str]
    ) -> None:
        work_fn = module("import tests.work\n\ndef g():\n    return {}['batch']\n\ng()\n")
        fault = fault_of(
            NodeConfig.local(host="one"), NodeConfig.local(host="two"), work_fn=work_fn
        )
        assert fault.startswith("2 of 2 nodes failed to start; nothing was left running:\n  one: ")
        head, _, trace = fault.partition("\n\nThe traceback at ")
        assert "\n  two: KeyError: 'batch'" in head
        lines = trace.splitlines()
        assert lines[1] == "Traceback (most recent call last):"
        assert lines[2].endswith('of_a_user.py", line 6, in <module>')
        assert lines[-1] == "KeyError: 'batch'"
        assert "return {}['batch']" in trace
        assert "importlib" not in trace

    def test_a_syntax_error_names_file_and_line(self, module: Callable[[str], str]) -> None:
        fault = fault_of(NodeConfig.local(), work_fn=module("x = 1\ndef f(:\n"))
        assert 'of_a_user.py", line 2' in fault
        assert fault.splitlines()[-1].startswith("SyntaxError: ")

    @pytest.mark.parametrize(
        ("text", "ending"),
        [
            ("import os; os._exit(7)", "its Python exited with status 7 while it imported"),
            ("import sys; sys.exit('no licence')", "SystemExit: no licence"),
            (
                "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
                "its Python was killed by SIGSEGV while it imported of_a_user",
            ),
        ],
    )
    def test_a_hard_end_is_named(
        self, module: Callable[[str], str], text: str, ending: str
    ) -> None:
        assert f"\n  local: {ending}" in fault_of(NodeConfig.local(), work_fn=module(text))

    def test_a_crash_is_traced(self, module: Callable[[str], str]) -> None:
        log = io.StringIO()
        work_fn = module("import ctypes\nctypes.string_at(0)\n")
        with pytest.raises(ClusterError, match="SIGSEGV"):
            Cluster([NodeConfig.local()], log=log).start(work_fn)
        assert 'of_a_user.py", line 2' in log.getvalue()

    def test_a_cluster_within_the_import_is_refused(self, tmp_path: Path) -> None:
        script = tmp_path / "script.py"
        script.write_text(
            "from miniray import *\n"
            "def f(channel):\n    pass\n"
            "cluster = Cluster([NodeConfig.local()])\n"
            "cluster.start('script.f')\n"
        )
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        ended = subprocess.run(
            [sys.executable, "script.py"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=T,
        )
        assert "module script starts a cluster when it is imported" in ended.stderr
        assert 'if __name__ == "__main__":' in ended.stderr
        assert ended.stderr.count("nodes failed to start") == 1

    @pytest.mark.parametrize(
        ("work_fn", "text"),
        [
            (lambda channel: None, "a lambda has no name"),
            (None, "cannot call None in another process"),
        ],
    )
    def test_what_has_no_name_cannot_be_started(self, work_fn: Any, text: str) -> None:
        with pytest.raises(TypeError) as caught:
            Cluster([NodeConfig.local()]).start(work_fn)
        assert text in str(caught.value)
        assert "by name" in str(caught.value)

    @pytest.mark.parametrize(
        ("typo", "meant"),
        [("tests.wrok.echo", "tests.work"), ("tset_of_ours.echo", "test_of_ours")],
    )
    def test_a_module_that_is_not_there_may_be_another(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typo: str, meant: str
    ) -> None:
        (tmp_path / "test_of_ours.py").touch()
        monkeypatch.syspath_prepend(str(tmp_path))
        fault = fault_of(NodeConfig.local(), work_fn=typo)
        assert f"No module named '{typo.rpartition('.')[0]}'; did you mean {meant}?" in fault


@pytest.mark.ssh
class TestWhatTheOtherSideSays:
    def test_who_may_not_log_in_reads_it(self, sshd: MakeNodes) -> None:
        nodes = sshd(force_command="echo This account is not available.; exit 1")
        fault = fault_of(node(nodes))
        assert "ssh exited with status 1 before Python answered: This account is not" in fault
        assert f"\n    try: ssh -F {nodes.identity.config} -oBatchMode=yes -- node1 '" in fault

    def test_noise_without_end_is_called_that(self, sshd: MakeNodes) -> None:
        fault = fault_of(node(sshd(force_command="exec yes no end")))
        assert "bytes on stdout before Python answered; does a start-up file there" in fault
        assert "no end" in fault

    def test_much_noise_before_python_is_no_matter(self, sshd: MakeNodes) -> None:
        noise = "yes no end | head -c 900000; "
        start_and_echo(node(sshd(force_command=noise + 'exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"')))

    def test_a_shell_that_prints_what_it_runs_is_no_matter(self, sshd: MakeNodes) -> None:
        echo = 'echo "$SSH_ORIGINAL_COMMAND"; set -x; '
        start_and_echo(node(sshd(force_command=echo + 'eval "$SSH_ORIGINAL_COMMAND"')))

    def test_a_banner_does_not_push_the_reason_out(self, sshd: MakeNodes, tmp_path: Path) -> None:
        banner = tmp_path / "banner"
        banner.write_text("".join(f"Rule {number} of this system\n" for number in range(60)))
        nodes = sshd(settings=f"Banner {banner}\n")
        missing = ("-i", str(tmp_path / "no_such_key"), "-oIdentitiesOnly=no")
        fault = fault_of(node(nodes, *missing, "-oUser=nobody-of-that-name"))
        assert "Permission denied (publickey" in fault
        assert "no_such_key not accessible" in fault
        assert fault.count("Rule") < 12

    def test_a_passphrase_needs_an_agent(self, sshd: MakeNodes, tmp_path: Path) -> None:
        nodes = sshd()
        locked = tmp_path / "locked key"
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(locked)], check=True
        )
        options = ("-F", "none", *f"-p {nodes.port} -i".split(), str(locked))
        options += ("-oStrictHostKeyChecking=no", "-oUserKnownHostsFile=/dev/null")
        config = NodeConfig("127.0.0.1", ssh_options=options, python=sys.executable)
        fault = fault_of(config)
        assert "Permission denied" in fault
        assert "if the key has a passphrase: ssh-add" in fault
        assert f"-i '{locked}'" in fault

    def test_an_sshd_that_has_too_many_is_asked_again(self, sshd: MakeNodes) -> None:
        nodes = sshd(settings="MaxStartups 1:100:1\nLoginGraceTime 20\n")
        with socket.create_connection(("127.0.0.1", nodes.port)) as taken:
            log = io.StringIO()
            cluster = Cluster([node(nodes)], log=log)
            with pytest.raises(ClusterError, match="raise MaxStartups there"):
                cluster.start("tests.work.echo")
            assert log.getvalue().count("may have too many: trying again") == 3
            taken.close()
        start_and_echo(*[node(nodes)] * 3)

    def test_the_line_to_try_does_what_is_said(self, sshd: MakeNodes) -> None:
        fault = fault_of(node(sshd(), "-oUser=nobody-of-that-name"))
        line = fault.partition("    try: ")[2]
        ended = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=T)
        assert ended.returncode == 255
        assert ended.stderr.strip().splitlines()[-1] in fault


@pytest.mark.ssh
class TestTheSession:
    def test_a_users_configuration_may_say_what_it_likes(self, sshd: MakeNodes) -> None:
        nodes = sshd()
        with socket.create_server(("127.0.0.1", 0)) as taken:
            with nodes.identity.config.open("a") as config:
                config.write(
                    "Host *\n  StdinNull yes\n  SessionType none\n  RemoteCommand date\n"
                    "  ForkAfterAuthentication yes\n  RequestTTY force\n  ControlMaster auto\n"
                    f"  ControlPath {nodes.identity.directory}/control-%C\n"
                    f"  LocalForward {taken.getsockname()[1]} localhost:1\n"
                )
            start_and_echo(node(nodes), node(nodes, tunnel=True))

    def test_ssh_options_win_over_our_own(self) -> None:
        config = NodeConfig("node1", ssh_options=("-oServerAliveInterval=77", "-oBatchMode=no"))
        words = config.command("", "")
        told = subprocess.run(["ssh", "-G", *words[1:]], capture_output=True, text=True, check=True)
        lines = told.stdout.splitlines()
        assert "serveraliveinterval 77" in lines
        assert "batchmode no" in lines
        assert "requesttty false" in lines
        assert "exitonforwardfailure no" in lines

    def test_nothing_is_sent_to_who_has_not_answered(self, sshd: MakeNodes, tmp_path: Path) -> None:
        eaten = tmp_path / "eaten"
        read = f"timeout 0.5 cat > {eaten}; "
        start_and_echo(node(sshd(force_command=read + 'exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"')))
        assert eaten.read_bytes() == b""

    def test_a_shell_that_ignores_the_command_gets_nothing_to_run(self, sshd: MakeNodes) -> None:
        fault = fault_of(node(sshd(force_command="exec /bin/bash -v")), start_timeout=2.0)
        assert "not ready after 2.0s, before Python answered; it said nothing" in fault

    def test_of_much_that_is_said_the_beginning_and_the_end_are_shown(self) -> None:
        launcher = (*SH, "for i in $(seq 10 40); do echo line $i >&2; done; exit 3")
        fault = fault_of(NodeConfig("node1", launcher=launcher))
        shown = [*range(10, 15), *range(36, 41)]
        assert "exited with status 3 before Python answered: " in fault
        assert re.findall(r"line (\d+)", fault) == list(map(str, shown))

    def test_of_a_long_line_only_the_beginning_is_shown(self) -> None:
        fault = fault_of(NodeConfig("node1", launcher=(*SH, "printf %05000d 7 >&2; exit 3")))
        assert "000" in fault
        assert len(fault) < 1000

    @pytest.mark.parametrize("what", ["AllowStreamLocalForwarding", "AllowTcpForwarding"])
    def test_a_tunnel_that_sshd_forbids_is_told_in_its_words(
        self, sshd: MakeNodes, what: str
    ) -> None:
        fault = fault_of(node(sshd(settings=f"{what} no\n"), tunnel=True))
        assert "open failed: connect failed: open failed" in fault
        assert "AllowStreamLocalForwarding and AllowTcpForwarding yes, or set tunnel=" in fault
        assert "tunnel=True" not in fault
        assert "miniray serve" not in fault

    @pytest.mark.parametrize("name", ["odd%name", "odd:name", "long" * 30])
    def test_a_tunnel_from_an_odd_temporary_directory(
        self, sshd: MakeNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        nodes = sshd()
        (tmp_path / name).mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / name))
        start_and_echo(node(nodes, tunnel=True))

    @pytest.mark.parametrize("connection", ["UNKNOWN 65535 UNKNOWN 65535", "", "1 2 3 4 5"])
    def test_a_session_that_does_not_say_where_it_came_to(
        self, sshd: MakeNodes, connection: str
    ) -> None:
        command = f"SSH_CONNECTION='{connection}' exec /bin/sh -c \"$SSH_ORIGINAL_COMMAND\""
        nodes = sshd(force_command=command)
        fault = fault_of(node(nodes))
        assert f"SSH_CONNECTION is '{connection}'" in fault
        assert "set NodeConfig(address=...) or tunnel=True" in fault
        start_and_echo(node(nodes, address="127.0.0.1"))
        start_and_echo(node(nodes, tunnel=True))


class TestLaunchers:
    @pytest.mark.parametrize(
        "script", ['/bin/sh -c "$0"; sleep 1000', '/bin/sh -c "$0"; cat >/dev/null']
    )
    def test_one_that_outlives_its_child_does_not_delay_the_end(self, script: str) -> None:
        cluster = Cluster([NodeConfig.local(launcher=("/bin/sh", "-c", script))])
        cluster.start("tests.work.echo")
        begun = time.monotonic()
        cluster.stop()
        assert time.monotonic() - begun < 3

    def test_many_that_outlive_their_children_end_side_by_side(self) -> None:
        script = '/bin/sh -c "$0"; sleep 1000'
        cluster = Cluster([NodeConfig.local(launcher=("/bin/sh", "-c", script))] * 6)
        cluster.start("tests.work.echo")
        begun = time.monotonic()
        cluster.stop()
        assert time.monotonic() - begun < 4  # one after the other they would take 6 at least

    def test_one_that_ends_the_session_is_named(self) -> None:
        node = NodeConfig.local(launcher=("timeout", "-s", "KILL", "6", "/bin/sh", "-c"))
        with Cluster([node], log=io.StringIO()) as cluster:
            (worker,) = cluster.start("tests.work.echo")
            with pytest.raises(WorkerDied) as caught:
                worker.recv(T)
            assert "timeout was killed by SIGKILL (probably out of memory) while" in str(
                caught.value
            )
            assert "is a server running" not in str(caught.value)

    def test_one_that_is_not_there(self) -> None:
        assert "cannot run /no/such: No such file" in fault_of(
            NodeConfig("one", launcher=("/no/such",))
        )

    def test_there_is_no_tunnel_for_one(self) -> None:
        # Nobody but the node's loopback can be reached: the address is another machine's.
        node = NodeConfig.local(address="127.0.0.1", env={})
        assert node.try_by_hand() == ""


class TestTheNodesPython:
    def test_modules_at_home_are_not_ours(self, tmp_path: Path) -> None:
        for name in ("random", "json", "signal", "importlib", "subprocess", "select"):
            (tmp_path / f"{name}.py").write_text("raise RuntimeError('the wrong one')\n")
        work_folder = tmp_path / "work"
        work_folder.mkdir()
        at_home = ("env", "-C", str(tmp_path), "/bin/sh", "-c")
        for more in ({}, {"PYTHONPATH": ":"}):
            launcher = ("env", *(f"{name}={value}" for name, value in more.items()), *at_home)
            start_and_echo(NodeConfig.local(launcher=launcher, workdir=str(work_folder)))

    def test_pythonpath_has_its_effect(self, tmp_path: Path) -> None:
        (tmp_path / "only_there.py").write_text("def f(channel):\n    channel.send(__file__)\n")
        node = NodeConfig.local(env={"PYTHONPATH": str(tmp_path)})
        with Cluster([node]) as cluster:
            assert cluster.start("only_there.f")[0].recv(T) == f"{tmp_path}/only_there.py"

    def test_a_workdir_that_is_not_there(self) -> None:
        fault = fault_of(NodeConfig.local(workdir="/no/such/folder"))
        assert "could not be started" in fault
        assert "No such file or directory: '/no/such/folder'" in fault

    @pytest.mark.parametrize("version", ["2.7", "3.6", "3.10"])
    def test_an_old_one_is_named(self, version: str) -> None:
        found = sorted(Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python"))
        old = str(found[0]) if found else shutil.which(f"python{version}")
        if old is None:
            pytest.skip(f"there is no Python {version}")
        fault = fault_of(NodeConfig.local(python=old))
        assert f"local: python there is {version}." in fault
        assert "MiniRay needs 3.11; set python= or --python" in fault


class TestConfigurations:
    @pytest.mark.parametrize(
        ("options", "error", "text"),
        [
            ({"env": {"A": 4}}, TypeError, r"env of n must be strings, got 4; write \{'A': '4'\}"),
            ({"launcher": "sh -c"}, TypeError, r"write launcher=\('sh', '-c'\)"),
            ({"launcher": ()}, ValueError, "launcher of n is empty"),
            ({"launcher": ("sh", 1)}, TypeError, "launcher of n must be strings"),
            ({"ssh_options": "-p 22"}, TypeError, r"write ssh_options=\('-p', '22'\)"),
            ({"ssh_options": ("-p", 22)}, TypeError, r"ssh_options of n must be strings"),
            ({"num_workers": "2"}, ValueError, "num_workers of n must be >= 1, got '2'"),
        ],
    )
    def test_what_makes_no_sense_is_refused(
        self, options: dict[str, Any], error: type[Exception], text: str
    ) -> None:
        with pytest.raises(error, match=text):
            NodeConfig("n", **options)

    @pytest.mark.parametrize("host", [None, 7, ""])
    def test_a_host_is_a_name(self, host: Any) -> None:
        with pytest.raises(ValueError, match="is not a name"):
            NodeConfig(host)


@pytest.mark.netns
@pytest.mark.ssh
class TestNetworks:
    def test_nodes_are_connected_to_side_by_side_and_in_time(
        self, netns_nodes: namespaces.Nodes
    ) -> None:
        script = f"""
import sys, time
from miniray import *
options = {netns_nodes.ssh_options!r}
nodes = [NodeConfig(host, python=sys.executable, ssh_options=options, address="10.77.0.99")
         for host in ("node1", "node2") * 3]
begun = time.monotonic()
try:
    Cluster(nodes, start_timeout=10).start("tests.work.echo")
except ClusterError as error:
    print(error)
print(time.monotonic() - begun)
"""
        *lines, seconds = netns_nodes.python(script).stdout.splitlines()
        assert float(seconds) < 13  # one after the other they would take 18 at least
        assert lines[0].startswith("6 of 6 nodes failed")
        assert all("its server is ready, but: cannot connect" in line for line in lines[1:])
        assert all("set NodeConfig(address=...)" in line for line in lines[1:])
        netns_nodes.wait_until_empty()

    def test_a_link_local_address_needs_an_interface(self, netns_nodes: namespaces.Nodes) -> None:
        if not Path("/proc/net/if_inet6").exists():
            pytest.skip("there is no IPv6 here")
        show = ["ip", "-6", "-o", "address", "show", "dev", "eth0", "scope", "link"]

        def settled() -> str:
            shown = netns_nodes.run([*show, "-tentative"], node="node1").stdout
            return shown if "fe80" in shown else ""

        shown = poll.until(settled, timeout_s=T, what="a link-local address")
        address = shown.split("inet6 ")[1].partition("/")[0]
        script = f"""
import sys
from miniray import *
options = (*{netns_nodes.ssh_options!r}, "-oHostKeyAlias=node1")
def node(**more):
    return NodeConfig("{address}%bridge", python=sys.executable, ssh_options=options, **more)
try:
    Cluster([node()]).start("tests.work.echo")
except ClusterError as error:
    print(error)
with Cluster([node(address="{address}%bridge")]) as cluster:
    (worker,) = cluster.start("tests.work.echo")
    worker.send("there")
    print(worker.recv(30))
"""
        ended = netns_nodes.python(script)
        assert f"cannot connect to {address}%eth0:" in ended.stdout, ended.stderr
        assert "; set NodeConfig(address=...) to where the coordinator reaches it" in ended.stdout
        assert ended.stdout.endswith("there\n"), ended.stderr
        netns_nodes.wait_until_empty()


class TestLogs:
    def test_a_long_name_is_in_each_line_once(self) -> None:
        log = io.StringIO()
        with Cluster([NodeConfig.local(host="long" * 20)], log=log) as cluster:
            (worker,) = cluster.start("tests.work.obey")
            worker.send(("print", 1))
            assert worker.recv(T) == "printed"
        assert log.getvalue().count("[") == 1

    @pytest.mark.ssh
    def test_the_last_lines_are_never_lost(self, loopback_sshd: ssh.LoopbackNodes) -> None:
        log = io.StringIO()
        options = {"python": sys.executable, "ssh_options": loopback_sshd.ssh_options}
        with Cluster(
            [NodeConfig(host, 4, **options) for host in ("node1", "node2")], log=log
        ) as cluster:
            workers = cluster.start("tests.work.obey")
            for worker in workers:
                worker.send(("print", 100))
            for worker in workers:
                assert worker.recv(T) == "printed"
        assert log.getvalue().count("x" * 1000) == 800

    def test_a_log_that_is_not_read_does_not_hold_the_end_up(self) -> None:
        read_end, write_end = os.pipe()
        log = os.fdopen(write_end, "w")
        cluster = Cluster([NodeConfig.local()], log=log)
        (worker,) = cluster.start("tests.work.obey")
        worker.send(("print", 2000))
        assert worker.recv(T) == "printed"
        begun = time.monotonic()
        cluster.stop()
        seconds = time.monotonic() - begun
        os.close(read_end)
        with contextlib.suppress(BrokenPipeError):  # what it has not got rid of
            log.close()
        assert seconds < 6
