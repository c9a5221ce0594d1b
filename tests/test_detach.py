"""`miniray run --detach` and `miniray attach`: a run goes on without whoever started it."""

import argparse
import contextlib
import fcntl
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from miniray import cli
from miniray.cli import attach, detached, elsewhere, run_plan
from miniray.cli.detach import Visit, begin, over_there, portable
from miniray.cli.runs import KEPT_RUNS, RUNNING, Run, all_runs, start_of
from tests.support import poll, processes, ssh
from tests.test_run import LIMIT_S, MINIRAY, here, in_terminal, write

__all__ = ["here"]  # a fixture, for all tests

# It prints, waits for a file and ends with a status; a grandchild has a session of its own.
WAITS = """
    import os, signal, sys, time
    rank = os.environ["RANK"]
    if os.fork() == 0:
        os.setsid()
        signal.pause()
    print("waits", os.getpid(), os.path.basename(os.getcwd()))
    while not os.path.exists({go!r}):
        time.sleep(0.02)
    print("goes on")
    sys.exit(3 if rank == "1" else 0)
"""


@pytest.fixture(autouse=True)
def home(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be at home in an empty folder, without a systemd or an allocation."""
    home = here / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("XDG_RUNTIME_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture
def go(here: Path) -> Iterator[Path]:
    """Yield the file for which the script waits; at the end no run goes on."""
    work = here / "work"
    work.mkdir()
    os.chdir(work)
    write(WAITS.format(go=str(here / "go")))
    yield here / "go"
    for run in all_runs():
        if (pid := run.pid()) is not None:
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def nodes(here: Path, home: Path) -> Iterator[ssh.LoopbackNodes]:
    """Yield node1 and node2, whose user is at home in a folder of the test's own."""
    if reason := ssh.missing():
        pytest.skip(reason)
    force = f'cd {home}; exec env HOME={home} /bin/sh -c "$SSH_ORIGINAL_COMMAND"'
    (here / "ssh").mkdir()
    with ssh.loopback_nodes(here / "ssh", force_command=force) as nodes:
        yield nodes


def miniray(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*MINIRAY, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    print(done.stdout, done.stderr)
    return done


def there(nodes: ssh.LoopbackNodes) -> list[str]:
    """Return the options that reach the nodes, but for their names."""
    words = [f"--ssh-option={word}" for word in nodes.ssh_options]
    return [*words, "--python", sys.executable]


def find_ranks(run: Run) -> list[int]:
    """Return the pids of the ranks of a run, once both have said that they wait."""

    def said() -> list[str]:
        return re.findall(r" waits (\d+)", run.log.read_text())

    poll.until(lambda: len(said()) == 2, timeout_s=60)
    return [int(pid) for pid in said()]


def in_shell(words: list[str]) -> str:
    """Run a command in a shell in a terminal, close the terminal and kill the shell; what it said.

    The shell has no jobs: all that it starts gets the SIGHUP, unless it has left the session.
    """
    line = f"echo ' waits 1'; {shlex.join(words)}; echo DO''NE; read"
    shell = ["/bin/bash", "-c", line]
    with in_terminal(shell, 1) as (pid, terminal, _):
        said = b""
        while b"DONE" not in said:
            said += os.read(terminal, 4096)
        os.close(terminal)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return said.decode()


@pytest.mark.thorough
class TestHere:
    def test_a_run_survives_its_terminal_and_says_all_to_who_comes_later(self, go: Path) -> None:
        said = in_shell([*MINIRAY, "run", "--detach", "--local", "2", "script.py"])
        assert "2 ranks up after" in said.partition("run 1 goes on by itself, here")[0]
        assert "to see it: miniray attach 1" in said
        [run] = all_runs()
        find_ranks(run)
        assert run.state() == RUNNING
        watchers = [
            subprocess.Popen([*MINIRAY, "attach", "1"], stdout=subprocess.PIPE, text=True),
            subprocess.Popen([*MINIRAY, "attach"], stdout=subprocess.PIPE, text=True),
        ]
        for watcher in watchers:  # both see what was said before they came
            assert watcher.stdout is not None
            assert watcher.stdout.readline().startswith("miniray run: starting 2 ranks")
        go.touch()
        for watcher in watchers:
            shown, _ = watcher.communicate(timeout=LIMIT_S)
            assert watcher.returncode == 3
            assert shown.count("] goes on\n") == 2
            assert "rank 1 on local failed first: it exited with status 3" in shown
        again = miniray("attach", "1", "--tail", "1")
        assert again.returncode == 3
        assert again.stdout == shown.splitlines()[-1] + "\n"

    def test_ctrl_c_leaves_the_run_alone_and_says_how_to_end_it(self, go: Path) -> None:
        # As a script's "&" starts it: deaf to SIGINT.
        words = shlex.join([*MINIRAY, "run", "--detach", "--local", "2", "script.py"])
        subprocess.run(["sh", "-c", f"trap '' INT; exec {words}"], timeout=LIMIT_S, check=True)
        [run] = all_runs()
        ranks = find_ranks(run)
        with in_terminal([*MINIRAY, "attach"], 2) as (pid, terminal, _):
            os.write(terminal, b"\x03")
            said = b""
            with contextlib.suppress(OSError):  # it has ended
                while True:
                    said += os.read(terminal, 4096)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
        assert b"run 1 goes on; to end it: miniray attach 1 --stop" in said
        assert run.state() == RUNNING
        done = miniray("attach", "1", "--stop")
        assert done.returncode == 0
        assert "run 1 has ended: exit status 130" in done.stderr
        assert "ended by SIGINT; nothing was left running" in done.stdout
        processes.wait_until_gone(ranks)
        done = miniray("attach", "1", "--stop")
        assert done.returncode == 0
        assert "run 1 runs no more: exit status 130" in done.stderr

    def test_one_that_is_killed_leaves_nothing_and_no_status(self, go: Path) -> None:
        miniray("run", "--detach", "--local", "2", "script.py")
        [run] = all_runs()
        ranks = find_ranks(run)
        pid = run.pid()
        assert pid is not None
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen([*MINIRAY, "attach", "1"], text=True, **pipes) as watcher:
            assert watcher.stdout is not None
            watcher.stdout.readline()  # it is there
            os.kill(pid, signal.SIGKILL)
            _, said = watcher.communicate(timeout=LIMIT_S)
        assert watcher.returncode == 1
        assert said == "miniray attach: run 1 was killed: it has no exit status\n"
        processes.wait_until_gone(ranks, timeout_s=15)
        # The grandchildren are for the leak check, which adopts them.

    def test_runs_have_numbers_and_are_listed(self, go: Path) -> None:
        for number in (1, 2):
            done = miniray("run", "--detach", "--local", "2", "script.py", "--seed", str(number))
            assert f"run {number} goes on by itself" in done.stderr
        listed = miniray("attach", "--list")
        assert listed.returncode == 0
        done = miniray("attach")  # it did nothing, and says so
        assert done.returncode == 2
        assert done.stdout == listed.stdout
        assert "2 are under way here; which one? miniray attach ID" in done.stderr
        header, *rows = listed.stdout.splitlines()
        assert header.split() == ["id", "began", "state", "command"]
        for number, row in enumerate(rows, start=1):
            began, command = r"\d+-\d\d-\d\d \d\d:\d\d", f"--local 2 script.py --seed {number}"
            assert re.fullmatch(rf"{number} +{began}  running  {command}", row)
        done = miniray("attach", "7")
        assert done.returncode == 2
        assert f"there is no run 7 on {socket.gethostname()}: there are 1, 2" in done.stderr
        go.touch()
        assert miniray("attach", "1").returncode == 3
        assert miniray("attach", "2").returncode == 3
        done = miniray("attach")
        assert done.returncode == 2
        assert "none is under way here; which one?" in done.stderr

    def test_who_fails_before_its_ranks_are_up_is_not_left_alone(self, go: Path) -> None:
        done = miniray("run", "--detach", "--local", "2", "--python", "/no/python", "script.py")
        assert done.returncode == 1
        assert "/no/python" in done.stderr
        assert "run 1 has ended before its ranks were up" in done.stderr
        assert "goes on" not in done.stderr
        [run] = all_runs()
        assert run.status() == 1

    def test_ctrl_c_while_it_starts_leaves_the_run_alone(self, go: Path, here: Path) -> None:
        slow = here / "python"
        slow.write_text(
            f'#!/bin/sh\nwhile [ ! -e {go} ]; do sleep 0.1; done\nexec {sys.executable} "$@"\n'
        )
        slow.chmod(0o755)
        words = ["run", "--detach", "--local", "2", "--python", str(slow), "script.py"]
        with subprocess.Popen([*MINIRAY, *words], stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            assert process.stderr.readline() == "miniray run: run 1 begins, here\n"
            assert process.stderr.readline().startswith("miniray run: starting 2 ranks")
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 130
        see = "miniray attach 1"
        assert said == f"miniray run: run 1 goes on; to see it: {see}; to end it: {see} --stop\n"
        go.touch()
        assert miniray("attach", "1").returncode == 3

    def test_a_coordinator_that_cannot_start_is_said(self, home: Path, here: Path) -> None:
        write("")
        (here / "bin").mkdir()
        (home / ".miniray").touch()
        done = miniray("run", "--detach", "--local", "1", "script.py")
        assert done.returncode == 1
        assert f"cannot keep runs in {home}/.miniray/runs: Not a directory; HOME " in done.stderr

    def test_a_user_without_a_home_is_told(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.delenv("HOME")
        monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)  # of whom nobody knows
        for words in (["attach"], ["run", "--detach", "--local", "1", write("")]):
            assert cli.main(words) == 1
            assert "this user has none: set HOME" in capsys.readouterr().err

    def test_a_coordinator_that_is_late_does_not_come_later(
        self, go: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(detached, "STARTED_S", -1.0)
        before = psutil.Process().children()
        with pytest.raises(OSError, match="the coordinator did not start"):
            detached.start({"command": "", "options": {}}, os.getcwd())
        assert psutil.Process().children() == before

    def test_a_user_manager_is_asked_for_a_scope(self, here: Path, go: Path) -> None:
        fake = here / "bin" / "systemd-run"
        fake.parent.mkdir()
        fake.write_text(
            f'#!/bin/sh\necho "$@" >{here}/asked\n'
            'while [ "$1" != -- ]; do shift; done; shift\nexec "$@"\n'
        )
        fake.chmod(0o755)
        Path("systemd").mkdir()
        Path("systemd/private").touch()
        environment = {
            "PATH": f"{fake.parent}:{os.environ['PATH']}",
            "XDG_RUNTIME_DIR": os.getcwd(),
        }
        for asked in (True, False):
            if not asked:  # its manager does not answer: then without
                fake.write_text("#!/bin/sh\necho 'Failed to connect to bus' >&2; exit 1\n")
            with pytest.MonkeyPatch.context() as patch:
                for name, value in environment.items():
                    patch.setenv(name, value)
                assert miniray("run", "--detach", "--local", "2", "script.py").returncode == 0
        go.touch()
        for run in all_runs():
            assert miniray("attach", run.id).returncode == 3
        assert (here / "asked").read_text().startswith("--user --scope --quiet --collect")


@pytest.mark.thorough
@pytest.mark.ssh
class TestOverSsh:
    def test_the_first_host_coordinates_and_the_laptop_may_go(
        self, nodes: ssh.LoopbackNodes, go: Path
    ) -> None:
        words = ["run", "--detach", "-H", "node1:1,node2:1", *there(nodes), "script.py"]
        said = in_shell([*MINIRAY, *words])
        assert "run 1 goes on by itself, on node1" in said
        [run] = all_runs()  # for here is there
        ranks = find_ranks(run)
        copies = {psutil.Process(pid).cwd() for pid in ranks}
        assert {Path(copy).parent.name for copy in copies} == {"sync"}
        assert len(copies) == 2
        for copy in copies:  # no other run gets them meanwhile
            folder = os.open(copy, os.O_RDONLY)
            with pytest.raises(BlockingIOError):
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.close(folder)
        log = run.log.read_text()
        attached = ["-H", "node1", *there(nodes)]
        before = processes.descendants()
        with subprocess.Popen(
            [*MINIRAY, "attach", *attached], stdout=subprocess.PIPE, text=True
        ) as watcher:
            assert watcher.stdout is not None
            shown = "".join(watcher.stdout.readline() for _ in log.splitlines())
            assert shown == log
            watcher.kill()  # who only watches may go, too, and leaves nothing
        poll.until(lambda: processes.descendants() <= before, timeout_s=30)
        assert run.state() == RUNNING
        go.touch()
        done = miniray("attach", "1", "-H", "node1:1,node2:1")  # how to reach it is known by now
        assert done.returncode == 3
        assert done.stdout == run.log.read_text()
        assert "rank 1 on node2 failed first: it exited with status 3" in done.stdout
        listed = miniray("attach", "--list", *attached)
        assert "exit status 3  -H node1:1,node2:1 script.py" in listed.stdout

    def test_what_a_run_left_in_its_copy_does_not_travel_with_the_next(
        self, nodes: ssh.LoopbackNodes, go: Path
    ) -> None:
        write("""
            import os
            os.makedirs("out", exist_ok=True)
            print("found", sorted(os.listdir("out")), "at", os.environ["RANK"])
            with open(f"out/rank{os.environ['RANK']}", "wb") as file:
                file.truncate(3 << 30)  # more than may be copied
        """)
        for run_id in ("1", "2"):
            miniray("run", "--detach", "-H", "node1:1,node2:1", *there(nodes), "script.py")
            done = miniray("attach", run_id, "-H", "node1", *there(nodes))
            assert done.returncode == 0
        assert "found ['rank1'] at 1" in done.stdout

    def test_it_is_ended_from_afar_and_when_its_coordinator_is_killed(
        self, nodes: ssh.LoopbackNodes, go: Path
    ) -> None:
        for run_id, end in (("1", "--stop"), ("2", "SIGKILL")):
            miniray("run", "--detach", "-H", "node1:1,node2:1", *there(nodes), "script.py")
            run = all_runs()[-1]
            assert run.id == run_id
            ranks = find_ranks(run)
            if end == "SIGKILL":
                pid = run.pid()
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
                done = miniray("attach", "2", "-H", "node1", *there(nodes))
                assert done.returncode == 1
                assert "run 2 was killed: it has no exit status" in done.stderr
            else:
                done = miniray("attach", "-H", "node1", *there(nodes), "--stop")
                assert done.returncode == 0
                assert "run 1 has ended: exit status 130" in done.stderr
            processes.wait_until_gone(ranks, timeout_s=30)

    def test_an_agent_that_would_leave_with_the_laptop_is_not_used(
        self, nodes: ssh.LoopbackNodes, go: Path, here: Path
    ) -> None:
        nodes.identity.config.write_text(
            "Host node2\n  User no-such-user\n" + nodes.identity.config.read_text()
        )
        done = miniray("run", "--detach", "-H", "node1:1,node2:1", *there(nodes), "script.py")
        assert done.returncode == 1
        assert "node2: ssh exited with status 255" in done.stderr
        assert "needs a key that this host itself holds" in done.stderr
        assert "run 1 has ended before its ranks were up" in done.stderr

    def test_what_is_named_relative_to_home_is_found(
        self, nodes: ssh.LoopbackNodes, home: Path
    ) -> None:
        (home / "bin").mkdir()
        (home / "bin/python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (home / "bin/python").chmod(0o755)
        (home / "project").mkdir()
        write("import os; print('ran in', os.path.basename(os.getcwd()))", "home/project/script.py")
        reached = [f"--ssh-option={word}" for word in nodes.ssh_options]
        reached += ["--python", "bin/python"]
        words = ["-H", "node1:1", "--workdir", "project", *reached, "script.py"]
        assert miniray("run", "--detach", *words).returncode == 0
        done = miniray("attach", "1", "-H", "node1", *reached)
        assert done.returncode == 0
        assert "ran in project" in done.stdout

    def test_a_host_that_cannot_be_reached_is_said(self, go: Path) -> None:
        done = miniray("run", "--detach", "-H", "nowhere.invalid:1", "script.py")
        assert done.returncode == 1
        assert "miniray run: nowhere.invalid: ssh exited with status 255" in done.stderr
        done = miniray("attach", "-H", "nowhere.invalid")
        assert done.returncode == 1
        assert "miniray attach: nowhere.invalid: ssh exited with status 255" in done.stderr


def new_run(**facts: str) -> Run:
    return Run.create({"command": "--local 2 script.py", "options": {}, **facts})


class TestRunFolder:
    def test_is_its_owners_alone(self, home: Path) -> None:
        run = new_run()
        assert run.folder == home / ".miniray/runs/1"
        assert run.folder.stat().st_mode & 0o777 == 0o700

    def test_knows_its_process_by_more_than_a_number(self) -> None:
        run = new_run()
        assert run.state() == "never started"
        run.note_process()
        assert run.state() == RUNNING
        facts = {"pid": os.getpid(), "started": "earlier"}  # the number is another's by now
        (run.folder / "process.json").write_text(json.dumps(facts))
        assert run.pid() is None
        assert run.state() == "was killed"
        assert not run.interrupt()

    def test_a_zombie_is_no_process(self) -> None:
        child = subprocess.Popen(["true"])
        poll.until(lambda: start_of(child.pid) is None)
        child.wait()

    def test_on_a_shared_file_system_another_machines_run_is_not_judged(self) -> None:
        run = new_run()
        facts = json.loads((run.folder / "run.json").read_text()) | {"host": "other"}
        (run.folder / "run.json").write_text(json.dumps(facts))
        run.note_process()
        assert run.state() == "on other"

    def test_old_ones_are_dropped_unless_they_run(self) -> None:
        first = new_run()
        first.note_process()
        for _ in range(KEPT_RUNS + 3):
            new_run().note_status(0)
        kept = [int(run.id) for run in all_runs()]
        assert kept[0] == 1
        assert kept[1:] == list(range(5, KEPT_RUNS + 5))

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
    def test_how_one_ended_is_kept_though_the_disk_is_full(self, home: Path) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", home], check=True)
        try:
            run = new_run()
            run.note_process()
            with pytest.raises(OSError, match="No space"):
                (home / "rest").write_bytes(bytes(1 << 20))
            run.note_status(5)
            assert run.state() == "exit status 5"
        finally:
            subprocess.run(["umount", home], check=True)

    @pytest.mark.parametrize(
        ("tail", "shown"),
        [(None, b"a\nb\n\nc\n"), (0, b""), (1, b"c\n"), (3, b"b\n\nc\n"), (9, b"a\nb\n\nc\n")],
    )
    def test_is_followed_from_where_one_likes(self, tail: int | None, shown: bytes) -> None:
        run = new_run()
        run.log.write_bytes(b"a\nb\n\nc\n")
        run.note_status(0)
        assert b"".join(run.follow(tail=tail)) == shown

    def test_the_tail_of_a_long_log_is_whole(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("miniray.cli.runs.CHUNK_BYTES", 7)
        run = new_run()
        lines = [f"line {number}" for number in range(100)]
        run.log.write_text("\n".join(lines))  # the last line has no end
        run.note_status(0)
        for tail in (1, 2, 50, 100, 101):
            shown = b"".join(run.follow(tail=tail)).decode()
            assert shown.split("\n") == lines[-tail:]

    def test_bytes_arrive_as_they_are(self, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
        run = new_run()
        run.log.write_bytes(b"caf\xe9 \xf0\x9f\x9a\x80\n")
        run.note_status(0)
        assert cli.main(["attach", "1"]) == 0
        assert capfdbinary.readouterr().out == b"caf\xe9 \xf0\x9f\x9a\x80\n"


class TestAttach:
    def test_says_that_there_is_none(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["attach"]) == 2
        assert cli.main(["attach", "3"]) == 2
        shown = capsys.readouterr()
        assert shown.out == "no run is detached here\n"
        assert "there is no run 3" in shown.err
        assert "there is none at all" in shown.err
        [news] = attach.answer({"id": None, "list": True, "stop": False, "host": "node1"})
        assert news == {"text": "no run is detached on node1\n", "status": 0}

    def test_says_where_runs_have_gone_from_here(
        self, home: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        elsewhere.remember("node1", "1", "-H node1:2 a.py", ssh_option=["-p22"], python="/py")
        elsewhere.remember("node2", "1", "-H node2:2 b.py", ssh_option=[], python=None)
        with (home / ".miniray/elsewhere").open("a") as file:
            file.write("somebody's note\n")
        elsewhere.remember("node1", "2", "-H node1:2 c.py", ssh_option=[], python=None)
        assert cli.main(["attach", "--list"]) == 0
        here, node1, node2 = capsys.readouterr().out.split("\n\n")
        assert here == "no run is detached here"
        how = "how they are, says: miniray attach --list -H"
        assert node1.startswith(f"detached from here to node1; {how} node1\nid  began ")
        assert [line.split()[0] for line in node1.splitlines()[1:]] == ["id", "1", "2"]
        assert f"node2; {how} node2\n" in node2
        assert node2.endswith("  -H node2:2 b.py\n")
        assert cli.main(["attach", "1"]) == 2
        said = capsys.readouterr().err
        gone = "one of that number has gone to"
        assert f"{gone} node1: miniray attach 1 -H node1 --ssh-option=-p22 --python /py" in said
        assert f"{gone} node2: miniray attach 1 -H node2" in said
        for _ in range(elsewhere.KEPT_LINES + 1):
            elsewhere.remember("node3", "1", "", ssh_option=[], python=None)
        assert [one["host"] for one in elsewhere.recall()] == ["node3"] * elsewhere.KEPT_LINES

    def test_names_a_host_without_its_ranks(self, capsys: pytest.CaptureFixture[str]) -> None:
        options = argparse.Namespace(host="node1:8,node2:8", ssh_option=[], python=None)
        attach.reach(options)
        assert options.host == "node1"
        assert cli.main(["attach", "-H", ","]) == 2
        assert "names no host" in capsys.readouterr().err

    def test_a_run_of_another_machine_is_neither_ended_nor_followed(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = new_run()
        facts = json.loads((run.folder / "run.json").read_text()) | {"host": "other"}
        (run.folder / "run.json").write_text(json.dumps(facts))
        for more in ([], ["--stop"]):
            assert cli.main(["attach", "1", *more]) == 1
            said = capsys.readouterr().err
            assert "run 1 is on other, and only there" in said
            assert "miniray attach 1 -H other" in said

    @pytest.mark.parametrize("words", [["--stop"], ["1", "--stop", "--list"]])
    def test_stop_has_to_know_which(
        self, words: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        for run in (new_run(), new_run()):
            run.note_process()
        assert cli.main(["attach", *words]) == 2
        shown = capsys.readouterr()
        assert shown.out.count(" running ") == 2
        assert "nothing was ended: say which one" in shown.err

    def test_ctrl_c_while_it_ends_a_run_does_not_say_that_it_goes_on(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def ctrl_c(run: Run, **options: int) -> None:
            raise KeyboardInterrupt

        new_run().note_process()
        monkeypatch.setattr(Run, "interrupt", lambda self: True)
        monkeypatch.setattr(Run, "follow", ctrl_c)
        assert cli.main(["attach", "1", "--stop"]) == 130
        said = capsys.readouterr().err
        assert "run 1 may have been told to end; to see it: miniray attach 1" in said

    @pytest.mark.parametrize("nbytes", [0, 1 << 20], ids=["waiting", "writing"])
    def test_whoever_serves_it_on_a_host_goes_with_the_heartbeat(self, nbytes: int) -> None:
        run = new_run()
        run.note_process()
        run.log.write_bytes(bytes(nbytes))
        request = {"id": "1", "list": False, "tail": None, "stop": False, "host": "node1"}
        program = (
            "from miniray.cli import attach, detach; detach.SILENCE_MAX_S = 1; "
            f"attach.serve({ {'request': request, 'marker': 1} })"
        )
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen([sys.executable, "-c", program], **pipes) as server:  # type: ignore[call-overload]
            server.wait(LIMIT_S)  # nobody takes what it writes, and its stdin has no end

    def test_a_tail_has_a_number_of_lines(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit, match="2"):
            cli.main(["attach", "1", "--tail", "-1"])
        assert "a number of lines is 0 or more, not '-1'" in capsys.readouterr().err

    def test_whoever_has_seen_enough_may_go(self) -> None:
        run = new_run()
        run.note_status(0)
        run.log.write_text("a line\n" * 200_000)
        line = f"{shlex.join(MINIRAY)} attach 1 | head -1"
        done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=LIMIT_S)
        assert (done.stdout, done.stderr) == ("a line\n", "")

    def test_stop_gives_up_in_the_end(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = new_run()
        run.note_process()  # this one, which goes on
        monkeypatch.setattr(Run, "interrupt", lambda self: True)
        monkeypatch.setattr(attach, "STOP_S", 0.0)
        assert cli.main(["attach", "1", "--stop"]) == 1
        assert f"kill -9 {os.getpid()} will do" in capsys.readouterr().err


class TestWhatEndsIt:
    @pytest.mark.parametrize(
        ("kills", "linger", "said"),
        [
            ("b true", "no", "loginctl enable-linger"),
            ("b true", "yes", None),
            ("b false", "no", None),
            ("", "", None),
        ],
    )
    def test_a_system_that_ends_what_is_left_is_named(
        self, monkeypatch: pytest.MonkeyPatch, kills: str, linger: str, said: str | None
    ) -> None:
        answers = {"busctl": kills, "loginctl": linger}
        monkeypatch.setattr(detached, "_ask", lambda *words: answers[words[0]])
        found = detached.why_not_for_long()
        assert (found is None) == (said is None)
        assert said is None or said in str(found)

    def test_an_allocation_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        assert "it ends with this Slurm allocation" in str(detached.why_not_for_long())


@pytest.mark.parametrize(
    ("connection", "address"),
    [
        ("10.0.0.9 50000 10.0.0.1 22", "10.0.0.1"),
        ("UNKNOWN 65535 UNKNOWN 65535", None),
        ("", None),
    ],
)
def test_the_first_host_is_at_the_address_at_which_ssh_came(
    connection: str, address: str | None, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Any] = []

    def start(facts: dict[str, Any], cwd: str, code: str) -> Run:
        begun.append(facts["options"].get("own_address"))
        return new_run()

    monkeypatch.setattr(detached, "start", start)
    monkeypatch.setenv("SSH_CONNECTION", connection)
    monkeypatch.setattr("miniray.cli.detach.tell", lambda *_: "")
    options = {"start_timeout": 0.0}
    begin({"request": {"options": options}, "workdir": None, "folder": str(here), "marker": 1})
    assert begun == [address]


def test_who_is_not_answered_in_time_is_told_where_to_look(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def be_late(*_: object) -> None:
        raise TimeoutError("not ready")

    monkeypatch.setattr("miniray.cli.detach.begin_over_there", be_late)
    assert cli.main(["run", "--detach", "-H", "node1:1", write("")]) == 1
    said = capsys.readouterr().err
    assert "node1: not ready" in said
    assert "whether it has been started tells: miniray attach --list -H node1" in said


def test_an_agent_is_not_forwarded_where_the_user_would_have_it() -> None:
    options = argparse.Namespace(python=None, ssh_option=["-A"])
    command = Visit("node1", options).node.config.command("pass", "")
    assert command[:3] == ["ssh", "-A", "-a"]  # of these two the last one counts


def test_all_options_arrive(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "copy").mkdir()
    (here / "project").mkdir()
    for folder in ("copy", "project"):
        write("", f"{folder}/script.py")
    write("me@node1 slots=2\nfd77::1 slots=1\nnode3\n", "hosts")
    monkeypatch.setenv("TOKEN", "a=b")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    parser = argparse.ArgumentParser()
    cli.run.add_options(parser)
    words = ["--hostfile", "hosts", "--per-node", "3", "--env", "TOKEN", "--env", "LEVEL=2"]
    words += ["--sync", "project", "--restarts", "2", "--min-nodes", "2", "--log-dir", "logs"]
    options = parser.parse_args([*words, "--detach", "project/script.py", "--steps", "3"])
    plan = run_plan.make_plan(options)
    carried = json.loads(json.dumps(portable(options) | over_there(options, plan)))
    os.chdir("copy")
    for name in ("TOKEN", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name)
    there = run_plan.make_plan(argparse.Namespace(**carried))
    assert there.nodes == plan.nodes
    assert there.nodes[0].env["OMP_NUM_THREADS"] == "7"
    assert (there.sync, there.restarts, there.min_nodes) == (".", 2, 2)
    assert there.task | {"run_id": ""} == plan.task | {"run_id": ""}
    assert not carried["detach"]


def test_the_first_host_needs_no_ssh_to_itself() -> None:
    parser = argparse.ArgumentParser()
    cli.run.add_options(parser)
    words = ["-H", "[fd77::1]:2,node2:1", "--workdir", "/data", "-m", "x"]
    for more, launcher in ((["--encrypt"], True), (["--tunnel"], False)):
        options = parser.parse_args([*more, *words])
        options.own_address = "10.0.0.1"
        first, second = run_plan.make_plan(options).nodes
        assert (first.launcher is not None) == launcher
        here = os.getcwd() if launcher else "/data"  # where the coordinator was started
        assert (first.host, first.num_workers, first.workdir) == ("fd77::1", 2, here)
        assert (first.address == "10.0.0.1") == launcher
        assert second.launcher is None
        assert first.encrypt == second.encrypt == launcher
