"""What `miniray doctor` says to type: it does what it is said to do, and no harm."""

import argparse
import os
import shlex
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from miniray import NodeConfig
from miniray.cli import doctor, doctor_probe, main
from miniray.cli.doctor_checks import judge
from miniray.cli.doctor_findings import Check, Findings, Wanted
from miniray.cli.doctor_login import copy_id_options
from miniray.cli.doctor_report import as_text
from miniray.cli.doctor_session import Limits, Session
from miniray.cli.doctor_ssh import check_session
from tests.support import poll

REFUSED = "me@n: Permission denied (publickey,password)."


def login(*said: str, options: Sequence[str] = ()) -> str:
    """Return what is said of a login of which ssh has said this, with what to do."""
    lines = ["debug1: Server host key: x", "debug1: Authenticating to n:22 as 'me'", *said]
    findings = Findings(NodeConfig("n", ssh_options=options), "n", said=lines, exit_status=255)
    (wrong,) = [one for one in check_session(findings, 5.0) if one.state == "wrong"]
    assert wrong.name == "login"
    return f"{wrong.says} -> {wrong.fix}"


def offered(key: str, behind: str = "") -> tuple[str, ...]:
    methods = "debug1: Authentications that can continue: publickey,password"
    return methods, f"debug1: Offering public key: {key} ED25519 SHA256:abc{behind}", REFUSED


class TestKeys:
    def test_a_path_may_have_spaces(self) -> None:
        says = login(*offered("/home/my self/.ssh/id", " explicit"))
        assert says.startswith("me@n does not accept the key /home/my self/.ssh/id -> ")
        assert "`ssh-copy-id -i '/home/my self/.ssh/id.pub' me@n`" in says
        says = login(
            "debug1: Server accepts key: /home/my self/.ssh/id ED25519 SHA256:abc", REFUSED
        )
        assert says.endswith("`ssh-add '/home/my self/.ssh/id'`")

    def test_an_agents_key_has_no_file(self) -> None:
        says = login(*offered("me at home", " agent"))
        assert says.startswith("me@n does not accept the key me at home -> `ssh-copy-id me@n`; ")
        only_keys = [one.replace(",password", "") for one in offered("me at home", " agent")]
        assert "append its line, which `ssh-add -L` shows, to ~/.ssh/auth" in login(*only_keys)

    def test_ssh_copy_id_knows_some_of_sshs_options(self) -> None:
        """And ends at once if it is given another one, or a second -i."""
        given = ["-i", "/my/key", "-p", "2222", "-Jjump", "-lme", "-4", "-F/a/config", "-oA=b"]
        assert copy_id_options(given) == ["-p2222", "-oProxyJump=jump", "-F/a/config", "-oA=b"]
        says = login(*offered("/my/key", " explicit"), options=given)
        assert "`ssh-copy-id -p2222 -oProxyJump=jump -F/a/config -oA=b -i /my/key.pub me@n`" in says

    def test_who_wants_more_than_a_key_is_no_passphrase(self) -> None:
        says = login(
            "debug1: Server accepts key: /home/me/.ssh/id ED25519 SHA256:abc",
            'Authenticated using "publickey" with partial success.',
            "debug1: Authentications that can continue: keyboard-interactive",
            "me@n: Permission denied (keyboard-interactive).",
        )
        assert says.startswith("the key is right, and its sshd wants more of you (keyboard-inter")
        assert "`ssh -fNM '-oControlPath=~/.ssh/%C' n`" in says
        assert "passphrase" not in says


JUMPED = (
    "debug1: Executing proxy command: exec ssh -v -W '[n]:22' jump",
    "debug1: Remote protocol version 2.0",
    "debug1: Server host key: ssh-ed25519 SHA256:jump",
    "debug1: Server accepts key: /my/jumps_key ED25519 SHA256:abc",
    'Authenticated to jump ([10.0.0.1]:22) using "publickey".',
    "debug1: Remote protocol version 2.0",
)


class TestBehindAnotherHost:
    """What ssh says of the host in between is not about the node."""

    def test_a_login_that_is_refused_is_not_the_one_that_was_not(self) -> None:
        behind = (*JUMPED, "debug1: Authenticating to n:22 as 'me'")
        says = login(*behind, *offered("/my/key"))
        assert says.startswith("me@n does not accept the key /my/key -> ")
        only_keys = [one.replace(",password", "") for one in offered("/my/key")]
        assert "append the line in /my/key.pub to ~/.ssh/auth" in login(*behind, *only_keys)

    def test_the_key_that_is_well_is_the_nodes(self) -> None:
        said = (
            *(*JUMPED, "debug1: Server accepts key: /my/key ED25519 SHA256:abc"),
            'Authenticated to n (via proxy) using "publickey".',
        )
        findings = Findings(NodeConfig("n"), "n", said=[*said], has_shell=True)
        assert check_session(findings, 5.0)[2] == Check("login", "ok", "accepted, by /my/key")


def test_what_start_up_files_say_is_not_about_this_session() -> None:
    """They may well use ssh themselves."""
    said = ['Authenticated to n ([10.0.0.1]:22) using "publickey".']
    said += ["Host key verification failed.", "fatal: Could not read from remote repository."]
    findings = Findings(NodeConfig("n"), "n", said=said, has_shell=True)
    assert {one.state for one in check_session(findings, 5.0)} == {"ok"}


def test_who_runs_a_process_there_says_nothing_to_this_terminal() -> None:
    """A window's title, say: of what has a port, the command line is another user's to choose."""
    title = "\x1b]0;yours\x07"
    checks = [Check("ports", "wrong", f"taken by pid 1 of you ({title})", f"`kill {title}`")]
    text = as_text(
        [Findings(NodeConfig("n"), "n")], [checks], columns=80, stream=sys.stdout, is_brief=False
    )
    assert all(one.isprintable() for one in text.splitlines())
    assert "taken by pid 1 of you (?]0;yours?)" in text


def node(name: str = "n", **config: Any) -> Findings:
    """Return a node on which Python is well, and whose facts are to be added."""
    findings = Findings(NodeConfig(name, **config), name, has_shell=True, version=(3, 11, 7))
    findings.facts = {"system": {"python": "/usr/bin/python3", "user": "me", "environment": {}}}
    return findings


def here(**modules: dict[str, Any]) -> Findings:
    return Findings(NodeConfig.local(), "here", facts={"modules": modules})


def check(name: str, *nodes: Findings, machine: Findings | None = None, **wanted: Any) -> Check:
    """Return what is said of the first node under a name, if it is not well."""
    judged = judge(nodes, machine or here(), Wanted(**wanted))[0]
    (found,) = [one for one in judged if one.name == name and one.state != "ok"]
    return found


def missing(name: str) -> dict[str, Any]:
    return {name: {"error": "ModuleNotFoundError: No module", "missing": True}}


class TestPackages:
    """A module and a package that are called the same may have nothing to do with each other."""

    def test_pip_gets_the_packages_name_and_not_the_modules(self) -> None:
        sick, wanted = node(), {"modules": ["yaml"], "needed": ["yaml"]}
        sick.facts["modules"] = missing("yaml")
        known = here(yaml={"version": "6.0", "package": "PyYAML"})
        assert "-m pip install PyYAML==6.0" in check("yaml", sick, machine=known, **wanted).fix
        fix = check("yaml", sick, **wanted).fix
        assert "pip install" not in fix
        assert "pip may call it otherwise" in fix

    @pytest.mark.parametrize("has_pip", [True, False])
    def test_a_venv_may_have_no_pip(self, has_pip: bool) -> None:
        sick, well = node(), node("well")
        sick.facts["modules"] = {"torch": missing("torch")["torch"] | {"has_pip": has_pip}}
        well.facts["modules"] = {"torch": {"version": "2.13.0", "cuda": None, "gpus": 0}}
        fix = check("torch", sick, well).fix
        first = "" if has_pip else "/usr/bin/python3 -m ensurepip && "
        assert f"n '{first}/usr/bin/python3 -m pip install torch==2.13.0'" in fix

    def test_a_python_that_is_the_systems_gets_a_venv_beside(self) -> None:
        """There pip refuses to install anything."""
        sick, well = node(), node("well")
        sick.facts["modules"] = {"torch": missing("torch")["torch"] | {"is_systems": True}}
        well.facts["modules"] = {"torch": {"version": "2.13.0", "cuda": None, "gpus": 0}}
        fix = check("torch", sick, well).fix
        venv = "~/miniray-venv/bin/python"
        assert f"n '/usr/bin/python3 -m venv ~/miniray-venv && {venv} -m pip install torch==" in fix
        assert f" and then `--python {venv}`" in fix

    def test_this_machine_knows_which_package_a_module_is_of(self) -> None:
        found = doctor.look_here(Wanted(modules=["_pytest.config", "pytest", "json", "nonesuch"]))
        assert {name: one["package"] for name, one in found.facts["modules"].items()} == {
            "_pytest.config": "pytest",
            "pytest": "pytest",
        }

    @pytest.mark.parametrize("name", ["numpy>=1.20", "scikit-learn", "a;b", "a..b"])
    def test_what_is_no_module_is_refused(
        self, name: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["doctor", "node1", "--need", name]) == 2
        assert f"--need names a module, as import does, not {name!r}" in capsys.readouterr().err

    def test_builds_for_another_cuda_are_not_in_the_version(self) -> None:
        nodes = [node("a"), node("b"), node("c")]
        for one, cuda in zip(nodes, ("11.8", "12.8", "12.8"), strict=True):
            one.facts["modules"] = {"torch": {"version": "2.13.0", "cuda": cuda, "gpus": 1}}
        assert "pip install" not in check("torch", *nodes).fix


class TestPythons:
    def test_a_path_may_have_spaces(self) -> None:
        sick = node(python="~/my python")
        sick.version, sick.exit_status = None, 1
        sick.pythons = ["/opt/my envs/bin/python3.11"]
        assert "`--python '/opt/my envs/bin/python3.11'`" in check("python", sick).fix
        sick.pythons = None
        assert """`ssh n '~/'"'"'my python'"'"' --version'`""" in check("python", sick).fix

    def test_each_is_asked_once_and_each_environment(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Two names in a folder are one; in another folder the same file is another venv."""
        for folder in ("one", "other"):
            (tmp_path / folder).mkdir()
            for name in ("python3", "python3.1x"):
                (tmp_path / folder / name).symlink_to(sys.executable)
        monkeypatch.setattr(doctor_probe, "PYTHON_PLACES", [str(tmp_path / "one")])
        monkeypatch.setenv("PATH", str(tmp_path / "other"))
        settings = {"modules": ["nonesuch"], "import_s": 60.0, "python": sys.executable}
        probe = doctor_probe.Probe({**settings, "python_min": [3, 11]}, print)
        found = probe.look_at_modules()["pythons"]
        assert [one["path"] for one in found] == [
            *(f"{tmp_path}/other/python3", f"{tmp_path}/one/python3")
        ]

    def test_there_is_no_ssh_where_a_launcher_is(self) -> None:
        sick = node("local", launcher=("/bin/sh", "-c"))
        sick.version, sick.exit_status = None, 1
        fix = check("python", sick).fix
        assert fix.endswith("; `python3 --version`")


GPU = {"name": "G", "memory.total": "9", "memory.used": "0", "uuid": "u", "index": "0"}


class TestWhereRanksAre:
    @pytest.mark.parametrize(
        ("config", "option"),
        [
            (NodeConfig("n", 4), "`-H n:1`"),
            (NodeConfig("fd77::1", 4), "`-H '[fd77::1]:1'`"),
            (NodeConfig("me@n", 4), "`-H me@n:1`"),
            (NodeConfig.local(4), "`--local 1`"),
            (NodeConfig("n", 4, launcher=("srun", "sh", "-c")), "`--per-node 1`"),
        ],
    )
    def test_fewer_ranks_are_asked_for_as_these_were(self, config: NodeConfig, option: str) -> None:
        sick = node()
        sick.config, sick.facts["gpus"] = config, {"gpus": [GPU], "uses": []}
        assert check("gpus", sick).fix.endswith(option)

    def test_of_two_nodes_here_both_are_said(self) -> None:
        nodes = [node("node1"), node("node2")]
        for one in nodes:
            one.config, one.facts["gpus"] = NodeConfig.local(4), {"gpus": [GPU], "uses": []}
        assert check("gpus", *nodes).fix.endswith("`--local 2x1`")

    def test_two_of_one_host_are_called_as_a_cluster_calls_them(self) -> None:
        options = argparse.Namespace(
            **dict.fromkeys(("hostfile", "local", "python", "workdir", "per_node")),
            hosts=None,
            named=["a,b", "a"],
            env=[],
            ssh_option=[],
            **dict.fromkeys(("tunnel", "encrypt", "fake_gpus"), False),
        )
        nodes = doctor.find_nodes(options)
        assert doctor._names(nodes) == ["a#0", "b", "a#2"]


class TestGpusThatAreTaken:
    def test_nobody_elses_processes_are_to_be_ended(self) -> None:
        sick = node()
        use = {"gpu_uuid": "u", "used_memory": "9", "process_name": "x", "command": "x"}
        mine, others = {**use, "user": "me", "pid": "11"}, {**use, "user": "you", "pid": "22"}
        for uses, fix in (
            ([mine], "end what is yours, if you need it no more (`ssh n 'kill 11'`), or leave"),
            ([mine, others], "ask the others, and end what is yours, if you need it no more (`ssh"),
            ([others], "ask them, or leave n out"),
            ([], "see who it is (`ssh n nvidia-smi`), or"),
        ):
            sick.facts["gpus"] = {"gpus": [GPU | {"memory.used": "9"}], "uses": uses}
            assert check("gpus", sick).fix.startswith(fix)
            assert "22" not in check("gpus", sick).fix


class TestNetworks:
    def cut_off(self, tool: str, arrived: str = "", source: str | None = None) -> Check:
        """Return what is said of a node that this machine does not get through to."""
        sick = node("me@n")
        sick.facts["system"] |= {"firewalls": [tool], "environment": {"SSH_CONNECTION": arrived}}
        sick.facts["listening"] = {"port": 5}
        sick.reached = {"10.0.0.2": {"how": "timeout", "source": source}}
        return check("ports", sick)

    @pytest.mark.parametrize(
        ("tool", "address", "command"),
        [
            ("ufw", "10.0.0.9", "`sudo ufw allow from 10.0.0.9`"),
            ("iptables", "10.0.0.9", "`sudo iptables -I INPUT -s 10.0.0.9 -j ACCEPT`"),
            ("iptables", "fd77::9", "`sudo ip6tables -I INPUT -s fd77::9 -j ACCEPT`"),
        ],
    )
    def test_a_firewall_is_told_whom_to_let_in(self, tool: str, address: str, command: str) -> None:
        """As the node sees this machine, or as it would send."""
        arrived = f"{address} 50000 10.0.0.2 22"
        assert command in self.cut_off(tool, arrived, source="192.168.1.2").fix
        assert command in self.cut_off(tool, source=address).fix

    def test_without_an_address_there_is_no_command(self) -> None:
        assert self.cut_off("ufw").fix == (
            "on me@n: its firewall has to let this machine in, at ports from 1024 up"
        )

    def test_where_one_would_come_from_is_known_though_nobody_answers(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
        found = doctor_probe.try_to_reach("127.0.0.1", port, "token", 5.0)
        assert found == {"how": "refused", "source": "127.0.0.1"}

    @pytest.mark.parametrize(
        ("name", "way", "option"),
        [("me@n", "10.0.0.3", "`-H me@10.0.0.3:1`"), ("me@n", "fd::3", "`-H '[me@fd::3]:1'`")],
    )
    def test_by_another_name_one_logs_in_as_before(self, name: str, way: str, option: str) -> None:
        sick = node(name)
        sick.facts["listening"] = {"port": 5}
        sick.facts["network"] = {"interfaces": [], "variables": {}, "set_in": []}
        sick.reached = {"10.0.0.2": {"how": "timeout"}, way: {"how": "ok"}}
        assert check("ports", sick).fix.endswith(f"name it {way}, which works: {option}")
        words = shlex.split(option.strip("`"))
        (config,) = doctor.find_nodes(parse(*words))
        assert config.host == f"me@{way}"

    def test_an_interface_without_a_name_is_not_advised(self) -> None:
        """As that of an address which is another machine's, that passes connections on."""
        variable, network = "NCCL_SOCKET_IFNAME", {"interfaces": [], "set_in": []}
        sick = node(env={variable: "ib0"})
        sick.facts["network"] = network | {"variables": {variable: "ib0"}}
        fix = check("interface", sick).fix
        assert fix == f"leave `--env {variable}` out: MiniRay finds the interface by itself"

    def test_of_two_probes_at_one_machine_none_takes_the_others_look_for_a_stranger(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It was there, and is gone: nobody has the port."""
        real, made = doctor_probe._listen_at, list[socket.socket]()

        def listen(port: int) -> socket.socket:
            if port == doctor_probe.USUAL_PORT:
                raise OSError(98, "Address already in use")
            made.append(real(port))
            return made[-1]

        nobody = {"user": None, "pid": None, "command": None}
        monkeypatch.setattr(doctor_probe, "_listen_at", listen)
        monkeypatch.setattr(doctor_probe, "_find_holder", lambda port: dict(nobody))
        monkeypatch.setattr(doctor_probe, "_start_thread", lambda *_: None)
        probe = doctor_probe.Probe({"port": 0, "socket": "", "token": "t"}, print)
        assert "usual_port" not in probe.listen()
        nobody["user"] = "somebody"
        assert probe.listen()["usual_port"]["user"] == "somebody"
        for one in made:
            one.close()


def test_an_answer_that_something_else_has_written_into_is_passed_over() -> None:
    """What a start-up file has left in the background may print at any time."""
    session = Session.__new__(Session)
    session._findings, session._limits, session._number = Findings(NodeConfig("n"), "n"), None, 5
    session.marker, session._unread = "miniray-5", {"stdout": b"", "stderr": b""}
    session._take_in("stdout", b'miniray-5 ["a", {"b"hello\nminiray-5 ["c", {}]\n')
    assert session._findings.facts == {"c": {}}
    assert session._findings.noise == ['miniray-5 ["a", {"b"hello']


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    doctor.add_options(parser)
    return parser.parse_args(words)


class TestMachines:
    def test_sudo_gets_a_terminal_to_ask_in(self) -> None:
        sick = node()
        sick.clock_ahead_s = 100.0
        assert check("clock", sick).fix.endswith("`ssh -t n 'sudo timedatectl set-ntp true'`")

    @pytest.mark.parametrize("user", ["root", "me"])
    def test_advice_for_another_node_is_for_who_one_is_there(self, user: str) -> None:
        sick, other = node("a"), node("b")
        sick.facts["system"]["user"] = "root" if user == "me" else "me"
        other.facts["system"] |= {"user": user, "firewalls": ["ufw"]}
        other.facts["listening"] = {"port": 5}
        sick.facts["peers"] = {"b": {"10.0.0.2": {"how": "timeout", "source": "10.0.0.1"}}}
        assert ("sudo" in check("others", sick, other).fix) == (user == "me")

    @pytest.mark.parametrize("facts", [True, False])
    def test_root_needs_no_sudo(self, facts: bool) -> None:
        sick = node()
        sick.clock_ahead_s = 100.0
        if facts:
            sick.facts["system"]["user"] = "root"
        else:
            del sick.facts["system"]["user"]
            sick.said = ["debug1: Authenticating to n:22 as 'root'"]
        assert check("clock", sick).fix.endswith("`ssh n 'timedatectl set-ntp true'`")
        sick.facts |= {"gpus": {"error": "no driver"}}
        assert "sudo" not in check("gpus", sick).fix

    def test_what_is_mounted_anew_is_the_file_system(self) -> None:
        """And not a folder on it, of which mount knows nothing."""
        sick = node()
        place = {"name": "temporary files", "path": "/tmp/my own", "there": "/tmp/my own"}
        sick.facts["place0"] = place | {"is_read_only": True}
        fix = check("disk", sick).fix
        assert """ssh -t n 'sudo mount -o remount,rw $(findmnt -no TARGET -T '"'"'/tmp/my""" in fix

    def test_what_stands_in_a_folders_place_is_not_to_be_removed(self, tmp_path: Path) -> None:
        """It may be a link to a disk that is not mounted today."""
        sick, link = node(), tmp_path / "cache"
        link.symlink_to(tmp_path / "not mounted")
        sick.facts["place0"] = doctor_probe.look_at_place("your folder's copy", str(link), "", "x")
        found = check("disk", sick)
        assert found.says == f"{link} (your folder's copy) is no folder"
        assert found.fix.startswith(f"see what it is: `ssh n 'ls -ld {link}'`, or take another")

    @pytest.mark.parametrize("kind", ["", "memory"])
    def test_files_that_were_read_do_not_fill_a_cgroup(
        self, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        limit, used, stat = 1 << 20, (1 << 20) - 50, "anon 4\ninactive_file 30\n"
        names = ("memory.max", "memory.current")
        if kind:
            names, stat = ("memory.limit_in_bytes", "memory.usage_in_bytes"), (
                "inactive_file 7\ntotal_inactive_file 30\n"
            )  # fmt: skip
        files = {names[0]: str(limit), names[1]: str(used), "memory.stat": stat}
        files["cgroup"] = f"0:{kind}:/mine"
        monkeypatch.setattr(doctor_probe, "_read", lambda path: files[os.path.basename(path)])
        assert doctor_probe.look_at_memory()["available"] == 80


@pytest.mark.parametrize("limit", ["nan", "inf", "1"])
def test_a_limit_that_is_none_is_refused(limit: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "node1", "--limit", limit]) == 2
    assert "--limit is a number from 2 up" in capsys.readouterr().err


def test_hosts_may_be_words_of_their_own() -> None:
    nodes = doctor.find_nodes(parse("node1:2", "node2,node3", "--python", sys.executable))
    assert [(one.host, one.num_workers) for one in nodes] == [
        *(("node1", 2), ("node2", 1), ("node3", 1))
    ]


class TestSignals:
    def test_one_that_another_thread_gets_ends_it_all_the_same(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        heard = []

        def waits() -> bool:
            stack = traceback.walk_stack(sys._current_frames()[threading.main_thread().ident or 0])
            names = [frame.f_code.co_name for frame, _ in stack]
            return "wait" in names and "submit" not in names

        class Waiting:
            doing = ""

            def __init__(self, findings: Findings, _: Any, limits: Limits, __: Any) -> None:
                self.findings, self.limits = findings, limits

            def run(self) -> None:
                poll.until(waits, timeout_s=30)
                signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
                poll.until(lambda: self.limits.is_over, timeout_s=30)
                heard.append(True)

        monkeypatch.setattr(doctor, "Visit", Waiting)
        assert main(["doctor", "node1", "--limit", "1000"]) == 128 + signal.SIGTERM
        assert heard == [True]
        assert "ended by signal 15" in capsys.readouterr().err
