"""`miniray run`: a script on every rank, as torchrun runs it; who failed first; nothing is left."""

import argparse
import contextlib
import dataclasses
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from miniray import NodeConfig, RemoteWorker, WorkerDied, WorkerError, WorkerFailed, cli
from miniray.cli import doctor, run_hosts, run_imports, run_slurm
from miniray.cli import run as run_cli
from miniray.cli.run_plan import make_plan, name_doctor
from miniray.cli.run_rank import first_line
from miniray.cli.run_screen import Screen
from miniray.cli.run_verdict import explain_start, find_verdict, remedy
from tests.support import poll, processes, slurm, ssh

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPTS = REPOSITORY / "examples" / "scripts"
MINIRAY = [sys.executable, "-m", "miniray"]
LIMIT_S = 110


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, where `miniray` is found, outside of any allocation."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    for name in list(os.environ):
        if name.startswith("SLURM_") or name == "OMP_NUM_THREADS":
            monkeypatch.delenv(name)
    return tmp_path


def write(text: str, name: str = "script.py") -> str:
    Path(name).write_text(textwrap.dedent(text))
    return name


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `miniray run`, with both streams caught."""
    defaults = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    command = [*MINIRAY, "run", *arguments]
    done = subprocess.run(command, timeout=LIMIT_S, **{**defaults, **options})
    print(done.stdout, done.stderr)
    return done


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return done.stderr.rstrip().splitlines()[-1]


class TestHosts:
    @pytest.mark.parametrize(
        ("text", "per_node", "hosts"),
        [
            ("node1:4,node2:8", None, [("node1", 4), ("node2", 8)]),
            ("me@node1:4, node2", 2, [("me@node1", 4), ("node2", 2)]),
            ("[fd77::1]:4,fd77::2", 3, [("fd77::1", 4), ("fd77::2", 3)]),
        ],
    )
    def test_are_read_with_their_ranks(self, text: str, per_node: int | None, hosts: Any) -> None:
        assert run_hosts.parse_hosts(text, per_node) == hosts

    def test_come_from_a_file_as_for_mpirun(self) -> None:
        write("# two\nnode1 slots=4  # fast\n\nnode2 slots=2 max_slots=8\nnode3\n", "hosts")
        hosts = [("node1", 4), ("node2", 2), ("node3", 1)]
        assert run_hosts.read_hostfile("hosts", 1) == hosts

    @pytest.mark.parametrize(
        ("text", "hosts"), [("4", [("local", 4)]), ("2x3", [("node1", 3), ("node2", 3)])]
    )
    def test_may_be_this_machine(self, text: str, hosts: Any) -> None:
        assert run_hosts.parse_local(text) == hosts

    def test_ranks_are_numbers_and_ranges(self) -> None:
        assert run_hosts.parse_ranks("0,4-6", 8) == {0, 4, 5, 6}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("script.py", "no hosts given: name them with -H node1:4,node2:4 or --hostfile FILE, stay"),
        ("a:4,b:4 script.py", "a:4,b:4 is no script; if these are hosts: -H a:4,b:4"),
        ("--local 4 -H a:1 script.py", "-H and --local both say where to run; name one of them"),
        ("-H node1 script.py", "how many ranks on node1? write node1:4, or --per-node 4"),
        ("-H node1:x script.py", "'node1:x': the number of ranks must be a whole number from 1 up"),
        ("-H node1:0 script.py", "'node1:0': the number of ranks must be a whole number from 1 up"),
        ("-H , script.py", "-H ',' names no host"),
        ("--hostfile none script.py", "cannot read the hostfile none: No such file"),
        ("--hostfile script.py script.py", "script.py:1: 'x = 1' is not like: node1 slots=4"),
        ("--local 2x script.py", "--local 2x: the number of ranks must be a whole number"),
        ("--local 2x2x2 script.py", "--local is a number of ranks or NODESxRANKS, like 4 or 2x4"),
        ("--local 2 nothing.py", "there is no script nothing.py in"),
        ("--local 2 nothing", "for a module: -m nothing"),
        ("--local 2 --workdir / script.py", "give its whole path, or another --workdir"),
        ("--local 2 --workdir none script.py", "--workdir: there is no directory"),
        ("-H a:1 --sync sub script.py", "name a folder that has it: --sync DIR"),
        ("-H a:1 --sync . --workdir / script.py", "and --workdir names another: drop one"),
        ("--local 2 --env =3 script.py", "--env sets NAME=VALUE, not '=3'"),
        ("--local 2 --env NONE script.py", "--env NONE: it has no value here"),
        ("--local 2 --only-rank 2 script.py", "there is no rank 2: they are 0 to 1"),
        ("--local 2 --only-rank 1- script.py", "ranks are written like 0,4-7, not '1-'"),
        ("--local 2 --merged-log script.py", "--merged-log needs a place: --log-dir DIR"),
        ("--local 2 --per-node 0 script.py", "--per-node is a number from 1 up, not 0"),
        ("--local 2 a.b:c x=1", "a function gets arguments as --arg NAME=VALUE, not 'x=1'"),
        ("--local 2 work.py:fn", "a function is named by its module, not its file: work:fn"),
        ("--local 2 ./sub/work.py:fn", "is named by its module, not its file: sub.work:fn"),
        ("--local 2 a.b:c --arg 1=1", "as --arg NAME=VALUE, not '--arg 1=1'"),
        ("--local 2 --tunnel script.py", "a tunnel goes through ssh, not through a launcher"),
    ],
)
def test_what_is_wrong_is_said_with_what_to_write(
    arguments: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write("x = 1\n")
    Path("sub").mkdir()
    assert cli.main(["run", *arguments.split()]) == 2
    said = capsys.readouterr().err
    assert said.startswith("miniray run: ")
    assert said.count("\n") == 1
    assert problem in said


@pytest.mark.parametrize("target", ["scratch.py", "sub/../scratch.py", "-m scratch"])
def test_what_git_ignores_does_not_go_along_and_that_is_said(
    target: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("x = 1\n", "scratch.py")
    Path("sub").mkdir()
    Path("link").symlink_to("sub")
    write("x = 1\n", "sub/script.py")
    Path(".gitignore").write_text("scratch.py\n")
    subprocess.run(["git", "init", "--quiet"], check=True)
    words = ["run", "-H", "a:1", "--dry-run"]
    assert cli.main([*words, *target.split()]) == 2
    said = capsys.readouterr().err
    assert f"scratch.py is not in the copy of {here} that the nodes get: git ignores it" in said
    assert "git add -f scratch.py has it go along" in said
    assert cli.main([*words, "link/script.py"]) == 0
    subprocess.run(["git", "add", "-f", "scratch.py"], check=True)
    assert cli.main([*words, *target.split()]) == 0


def test_a_folder_that_is_too_large_is_said_before_any_host_is_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write("x = 1\n")
    monkeypatch.setattr("miniray.sync.FOLDER_BYTES_MAX", 5)
    assert cli.main(["run", "-H", "a:1", "script.py"]) == 2
    assert "too large for sync" in (said := capsys.readouterr().err)
    assert "or miniray run --workdir" in said


def test_a_plan_is_shown_without_being_carried_out(capsys: pytest.CaptureFixture[str]) -> None:
    write("import torch\n")
    arguments = ["run", "-H", "gpu1:8,me@gpu2:1", "--dry-run", "--", "script.py", "--lr", "1"]
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "node 0: gpu1, by ssh, ranks 0-7, in a copy of " in shown
    assert "node 1: me@gpu2, by ssh, rank 8, in a copy of " in shown
    assert "each of the 9 runs the script: script.py --lr 1\n" in shown
    assert "what that imports of torch, each node imports once" in shown


@pytest.mark.parametrize(
    ("arguments", "script", "expected"),
    [
        ("-H a:1", "import torch", "on each node: ssh, then the import of torch"),
        ("--local 1", "import torch", "on each node: the import of torch"),
        ("--local 1", "", ""),
    ],
)
def test_a_plan_says_what_may_take_long(arguments: str, script: str, expected: str) -> None:
    parser = argparse.ArgumentParser()
    run_cli.add_options(parser)
    options = parser.parse_args([*arguments.split(), write(script)])
    assert make_plan(options).what_takes_long == expected


class TestSlurm:
    @pytest.mark.parametrize(
        ("text", "names"),
        [
            ("node1", "node1"),
            ("node[1-3,7]", "node1 node2 node3 node7"),
            ("gpu[08-11],login", "gpu08 gpu09 gpu10 gpu11 login"),
            ("r[1-2]n[01,3]-ib,x", "r1n01-ib r1n3-ib r2n01-ib r2n3-ib x"),
        ],
    )
    def test_node_lists_are_expanded(self, text: str, names: str) -> None:
        assert run_slurm.expand_nodelist(text) == names.split()

    @pytest.mark.parametrize(
        "text", ["node[1-", "node[a-b]", "node[3-1]", "a,,b", "n[1-999999999]"]
    )
    def test_a_node_list_that_makes_no_sense_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match="cannot read"):
            run_slurm.expand_nodelist(text)

    @pytest.mark.parametrize(
        ("environ", "per_node", "hosts"),
        [
            ({"SLURM_NTASKS_PER_NODE": "4"}, None, [("a1", 4), ("a2", 4), ("a3", 4)]),
            ({"SLURM_TASKS_PER_NODE": "4(x2),3"}, None, [("a1", 4), ("a2", 4), ("a3", 3)]),
            ({"SLURM_TASKS_PER_NODE": "1(x3)"}, 8, [("a1", 8), ("a2", 8), ("a3", 8)]),
        ],
    )
    def test_an_allocation_says_where(self, environ: Any, per_node: int | None, hosts: Any) -> None:
        environ = {"SLURM_JOB_NODELIST": "a[1-3]", **environ}
        assert run_slurm.read_allocation(environ, per_node) == hosts

    @pytest.mark.parametrize(
        ("tasks", "problem"),
        [
            ("", "ask for --ntasks-per-node, or name the number here: --per-node 4"),
            ("4(x2)", "is for 2 nodes, and the allocation has 3"),
            ("4(2)", "cannot read the tasks per node '4(2)'"),
        ],
    )
    def test_what_an_allocation_leaves_open_is_said(self, tasks: str, problem: str) -> None:
        environ = {"SLURM_JOB_NODELIST": "a[1-3]", "SLURM_TASKS_PER_NODE": tasks}
        with pytest.raises(ValueError, match=re.escape(problem)):
            run_slurm.read_allocation(environ, None)

    def test_an_allocation_without_srun_names_the_way_out(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], here: Path
    ) -> None:
        monkeypatch.setenv("SLURM_JOB_NODELIST", "a1")
        monkeypatch.setenv("PATH", str(here))
        assert cli.main(["run", write("")]) == 2
        assert "no srun on PATH" in capsys.readouterr().err

    def test_a_machine_that_knows_itself_as_loopback_gets_its_address_for_others(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        known = {"me": "127.0.1.1", "other": "10.0.0.2"}
        monkeypatch.setattr(run_slurm.socket, "gethostbyname", known.__getitem__)
        monkeypatch.setattr(run_slurm, "_towards", lambda address: f"ours towards {address}")
        assert run_slurm.addresses(["me", "other"]) == ["ours towards 10.0.0.2", "10.0.0.2"]


class TestImports:
    def test_of_torch_are_found_in_the_script_and_beside_it(self, here: Path) -> None:
        write("import model, os\nfrom torch.nn.parallel import DistributedDataParallel\n")
        write("from torch.distributed import fsdp\n", "model.py")
        write("import torch.unrelated\n", "neighbour.py")
        found = run_imports.find_torch_imports(here / "script.py", here)
        assert {"torch", "torch.nn.parallel", "torch.distributed.fsdp"} <= set(found)
        assert "torch.unrelated" not in found

    @pytest.mark.parametrize(
        ("text", "is_on_torch"),
        [("import json\n", False), ("import transformers\n", True), ("from .a import b\n", True)],
    )
    def test_decide_whether_torch_is_imported_once(
        self, here: Path, text: str, is_on_torch: bool
    ) -> None:
        found = run_imports.find_torch_imports(here / write(text), here)
        assert ("torch" in found) == is_on_torch

    def test_of_what_is_no_python_are_none(self, here: Path) -> None:
        assert run_imports.find_torch_imports(here / write("import torch; x = (\n"), here) == []


class Terminal:
    """Stands in for a stream that is a terminal."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.text = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass


class TestScreen:
    def test_lines_go_to_the_screen_and_to_a_file_a_rank(
        self, here: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with contextlib.closing(Screen(here / "logs", merged=True, only_ranks={0})) as screen:
            screen.write("[node1:rank0] one\n[node1] said\n")
            screen.write("[fd77::2:rank1] 10%\r[fd77::2:rank1] 20%\n[fd77::2:rank1] \n")
            assert screen.last_words(1) == ["10%\r20%", ""]
        shown = capsys.readouterr()
        assert shown.out == "[node1:rank0] one\n"
        assert shown.err == "[node1] said\n"
        logs = {path.name: path.read_bytes() for path in (here / "logs").iterdir()}
        assert logs["rank0.log"] == b"one\n"
        assert logs["rank1.log"] == b"10%\r20%\n\n"
        assert logs["merged.log"].splitlines()[:2] == [b"[node1:rank0] one", b"[node1] said"]

    def test_words_of_old_ranks_are_told_from_those_of_new_ones(
        self, here: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with contextlib.closing(Screen(here / "logs", merged=True)) as screen:
            screen.write("[a:rank0] one\n")
            screen.begin_again(1, "run")
            screen.write("[a:rank0] late\r[a:rank0] later\n[a] rank1 exited with status 1\n")
            screen.write("[a] copying 2 files\n")
            assert screen.last_words(0) == []
            screen.write(f"[a:rank1] {first_line('run', 1)}\n[a:rank0] two\n[a] rank0 exited\n")
            screen.write("[b:rank2] late\n")  # another node, whose new ranks have not begun
            assert screen.last_words(0) == ["two"]
        shown = capsys.readouterr()
        assert shown.out.splitlines(keepends=True) == [
            "[a:rank0] one\n",
            "[a:rank0, before restart 1] late\r",
            "[a:rank0, before restart 1] later\n",
            "[a:rank0] two\n",
            "[b:rank2, before restart 1] late\n",
        ]
        assert shown.err.splitlines() == [
            "[a, before restart 1] rank1 exited with status 1",
            *("[a] copying 2 files", "[a] rank0 exited"),
        ]
        merged = Path("logs/merged.log").read_text()
        assert merged.startswith("[a:rank0] one\n--- restart 1 ---\n[a:rank0, before restart 1] ")
        assert Path("logs/rank0.log").read_bytes() == b"one\nlate\rlater\n"
        assert Path("logs/rank2.log").read_bytes() == b"late\n"
        assert Path("logs/restart1/rank0.log").read_bytes() == b"two\n"
        assert not Path("logs/restart1/rank1.log").exists()

    def test_a_folder_of_logs_has_those_of_one_run(
        self, here: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for number in range(3):
            with contextlib.closing(Screen(here / "logs", merged=True)) as screen:
                screen.write(f"[a:rank{number}] {number}\n")
                screen.begin_again(1, "run")
                screen.write(f"[a:rank0] {first_line('run', 1)}\n[a:rank0] {number}\n")
            Path("logs/notes").touch()
        assert sorted(path.name for path in (here / "logs").iterdir()) == [
            *("earlier1", "earlier2", "merged.log", "notes", "rank2.log", "restart1"),
        ]
        assert sorted(path.name for path in (here / "logs/earlier2").iterdir()) == [
            *("merged.log", "rank1.log", "restart1"),
        ]
        assert Path("logs/restart1/rank0.log").read_text() == "2\n"
        assert f"left in {here}/logs is in {here}/logs/earlier2 now" in capsys.readouterr().err

    def test_a_crash_is_shown_down_to_the_script(self) -> None:
        screen = Screen()
        lines = ["before", "Fatal Python error: Segmentation fault", "", "Current thread 0x0:"]
        lines += ['  File "/home/me/miniray/train.py", line 3 in <module>']
        ours = ['  File "/tmp/miniray-x_1/miniray/cli/run_rank.py", line 3 in run_rank']
        ours += ['  File "<string>", line 1 in <module>']
        screen.write("".join(f"[n:rank0] {line}\n" for line in lines + ours))
        assert screen.last_words(0) == lines[1:]

    def test_a_terminal_has_colours_unless_it_wants_none(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        terminal = Terminal()
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("NO_COLOR", raising=False)
        Screen().write("[n:rank0] a\n")
        monkeypatch.setenv("NO_COLOR", "1")
        Screen().write("[n:rank0] a\n")
        assert terminal.text == "\x1b[36m[n:rank0]\x1b[0m a\n[n:rank0] a\n"

    def test_progress_leaves_no_trace_in_a_terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("NO_COLOR", "1")
        screen = Screen()
        with screen.progress("starting", "torch first"):
            poll.until(lambda: "starting" in terminal.text)
            poll.until(lambda: " s (torch first)" in terminal.text)
            screen.say("meanwhile")
        assert re.sub(r"[^\n]*\r\x1b\[2K", "", terminal.text) == "miniray run: meanwhile\n"

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
    def test_a_full_disk_ends_a_file_and_nothing_else(
        self, here: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with contextlib.closing(Screen(here / "logs")) as screen:
            Path("logs/rank0.log").symlink_to("/dev/full")
            screen.write("[n:rank0] a\n[n:rank0] b\n")
        shown = capsys.readouterr()
        assert shown.out == "[n:rank0] a\n[n:rank0] b\n"
        assert shown.err.count("rank0.log ends here: No space left") == 1


class TestVerdict:
    def test_has_a_remedy_for_a_python_without_torch(self) -> None:
        text = "rank 0 at a:7 raised ModuleNotFoundError: No module named 'torch'"
        verdict = find_verdict(WorkerFailed(text), [])
        assert remedy(verdict, "python3") == (
            "the ranks' Python is python3; if another one has torch: --python NAME"
        )
        assert not remedy(find_verdict(WorkerFailed("rank 0 at a:7 raised E: x"), []), "python3")

    @pytest.mark.thorough
    def test_of_a_start_that_is_late_names_torch_and_the_option(self) -> None:
        write("import torch")
        done = run("--local", "1", "--start-timeout", "0.001", "script.py")
        assert done.returncode == 1
        assert "miniray.cli" not in done.stderr
        assert last_line(done) == "  to wait longer than 0.001 s: --start-timeout SECONDS"
        late = "  a: not ready after 2.0s, while it imported miniray.cli.run_rank; it said nothing"
        said = explain_start(late, 2.0, imports_torch=True)
        assert "while it imported torch; it said nothing\n" in said

    @pytest.mark.parametrize(
        ("error", "summary", "status"),
        [
            (WorkerFailed("rank 1 at b:7 raised E: x\n\nIts traceback:\nT"), "raised E: x", 1),
            (WorkerFailed("rank 1 at b:7 exited with status 3", exit_code=3), "exited with", 3),
            (WorkerDied("rank 1 at b:7 was killed", signal=9), "was killed", 137),
            (WorkerDied("rank 1 at b:7 exited with status 7", exit_code=7), "exited with", 7),
            (WorkerDied("rank 1 at b:7 left early: its work", exit_code=0), "left early", 1),
            (WorkerDied("rank 1 at b:7 is lost: no link"), "is lost: no link", 1),
        ],
    )
    def test_names_the_rank_and_takes_its_status(
        self, error: WorkerError, summary: str, status: int
    ) -> None:
        workers = [RemoteWorker.__new__(RemoteWorker) for _ in range(2)]
        workers[0].name, workers[1].name = "rank 0 at a:7", "rank 1 at b:7"
        found = find_verdict(error, workers)
        assert found.summary.startswith(f"rank 1 on b failed first: it {summary}")
        assert (found.rank, found.status) == (1, status)


# What a script can see of itself; printed as JSON.
SEES = """
    import json, multiprocessing, os, pickle, sys

    class Thing:
        pass

    def seen():
        return {
            "argv": sys.argv, "file": __file__, "name": __name__, "path": sys.path[0],
            "spec": getattr(__spec__, "name", None), "cwd": os.getcwd(),
            "pickled": pickle.dumps(Thing()).hex(),
            "main": sys.modules["__main__"].seen is seen, "stdin": sys.stdin.read(),
            "PYTHONPATH": os.environ.get("PYTHONPATH"), "raw": type(sys.stdout.buffer).__name__,
        }

    if __name__ == "__main__":
        with open(f"seen-{os.environ['RANK']}", "w") as file:
            json.dump(seen(), file)
"""


@pytest.mark.thorough
class TestOneRank:
    @pytest.mark.parametrize("words", [["sub/script.py"], ["-m", "sub.script"]], ids=str)
    def test_is_what_python_would_make_of_the_script(self, words: list[str]) -> None:
        Path("sub").mkdir()
        write(SEES, "sub/script.py")
        assert run("--local", "1", *words, "--x", "--", "-H").returncode == 0
        ours = json.loads(Path("seen-0").read_text())
        subprocess.run(
            [sys.executable, "-u", *words, "--x", "--", "-H"],
            env=os.environ | {"RANK": "1"},
            stdin=subprocess.DEVNULL,
            check=True,
        )
        assert ours == json.loads(Path("seen-1").read_text())

    def test_waits_for_its_threads_and_runs_its_exit_handlers(self) -> None:
        write("""
            import atexit, concurrent.futures, sys, threading
            here = "global"
            say = sys.stdout.write  # print() writes the end of a line apart
            atexit.register(lambda: print("at exit:", here))
            is_over = threading.Event()
            def late():
                is_over.wait(0.2)
                say("late\\n")
            threading.Thread(target=late).start()
            concurrent.futures.ThreadPoolExecutor().submit(say, "pooled\\n")
            say("end\\n")
        """)
        done = run("--local", "1", "script.py")
        assert done.returncode == 0
        lines = done.stdout.splitlines()
        assert sorted(lines[:3]) == [f"[local:rank0] {word}" for word in ("end", "late", "pooled")]
        assert lines[3:] == ["[local:rank0] at exit: global"]

    def test_is_not_held_up_by_a_handler_once_it_has_failed(self) -> None:
        write("""
            import atexit, signal, sys, threading
            atexit.register(threading.Event().wait)
            sys.excepthook = lambda kind, error, trace: print("my hook:", error, trace.tb_lineno)
            threading.Thread(target=signal.pause)
            raise ValueError("bad")
        """)
        done = run("--local", "1", "script.py")
        assert done.returncode == 1
        assert "[local:rank0] my hook: bad 6\n" in done.stdout
        assert "Traceback" not in done.stdout

    def test_spawns_processes_that_find_the_script(self) -> None:
        write("""
            import multiprocessing, os
            def square(x):
                return x * x
            if __name__ == "__main__":
                with multiprocessing.get_context("spawn").Pool(2) as pool:
                    print(pool.map(square, [1, 2, 3]))
        """)
        done = run("--local", "1", "script.py")
        assert done.stdout == "[local:rank0] [1, 4, 9]\n"

    def test_may_be_a_function_with_arguments(self) -> None:
        write(
            """
            import os
            def tell(x, name="", many=()):
                return f"{os.environ['RANK']}: {x + 1} {name} {len(many)}"
            """,
            "things.py",
        )
        words = ["--arg", "x=1", "--arg=name=a=b", "--arg", "many=[1, 2]"]
        done = run("--local", "2", "things:tell", *words)
        assert done.returncode == 0
        for rank in range(2):
            assert f"miniray run: rank {rank} returned '{rank}: 2 a=b 2'\n" in done.stderr

    @pytest.mark.parametrize("value", ["{[]:1}", "1-x", "1__0", "..."])
    def test_an_argument_that_is_no_literal_is_text(
        self, value: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["--local", "1", "--dry-run", "things:tell", "--arg", f"x={value}"]
        assert cli.main(["run", *words]) == 0
        assert f"things:tell x={value!r}\n" in capsys.readouterr().out

    def test_gets_variables_and_a_directory(self, here: Path) -> None:
        (here / "work").mkdir()
        write("import os; print(os.environ['A'], os.environ['HOME'], os.getcwd())", "work/w.py")
        options = ["--env", "A=1=2", "--env", "HOME", "--workdir", "work"]
        done = run("--local", "1", *options, "w.py")
        assert done.stdout == f"[local:rank0] 1=2 {os.environ['HOME']} {here}/work\n"

    def test_has_a_fake_gpu_of_a_size(self) -> None:
        pytest.importorskip("torch")
        write("""
            import os, torch
            print(repr(os.environ["CUDA_VISIBLE_DEVICES"]), torch.cuda.is_available())
            optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1 << 20))])
            optimizer.param_groups[0]["params"][0].grad = torch.zeros(1 << 20)
            optimizer.step()
        """)
        done = run(
            "--local", "1", "--fake-gpus", "--env", "MINIRAY_FAKE_GPU_MEMORY=10MiB", "script.py"
        )
        assert "[local:rank0] '' False\n" in done.stdout
        assert "it raised OutOfMemoryError: fake GPU of rank 0 is out of memory" in last_line(done)


# Rank 1 ends in a way, and the others wait for what never comes.
ENDS = """
    import ctypes, os, signal, sys
    def deep():
        raise ValueError("bad batch")
    if os.environ["RANK"] == "1":
        print("last words", end="")
        {ending}
    else:
        signal.pause()
"""


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("ending", "status", "words", "above"),
    [
        ("deep()", 1, "it raised ValueError: bad batch", "ValueError: bad batch"),
        ("sys.exit(3)", 3, "it exited with status 3", "    last words"),
        ("sys.exit('no data')", 1, "it exited with status 1: no data", "    last wordsno data"),
        ("os._exit(7)", 7, "it exited with status 7", "    last words"),
        ("os.kill(os.getpid(), 9)", 137, "it was killed by SIGKILL", "    last words"),
        ("ctypes.string_at(0)", 139, "it was killed by SIGSEGV", "line 7 in <module>"),
        ("exec('x = (')", 1, "it raised SyntaxError", "SyntaxError: "),
    ],
)
def test_who_failed_first_comes_last_on_the_screen(
    ending: str, status: int, words: str, above: str
) -> None:
    write(ENDS.format(ending=ending))
    done = run("--local", "2x2", "script.py")
    assert done.returncode == status
    said = last_line(done)
    assert said.startswith(f"miniray run: rank 1 on node1 failed first: {words}")
    assert said.endswith(f" (exit status {status})")
    assert above in done.stderr.splitlines()[-3]
    assert "run_rank.py" not in done.stderr


@pytest.mark.thorough
def test_output_is_kept_by_rank_and_shown_of_some(here: Path) -> None:
    write("import os, sys; print('out', os.environ['RANK']); print('err', file=sys.stderr)")
    options = ["--log-dir", "logs", "--merged-log", "--only-rank", "1-2"]
    done = run("--local", "2x2", *options, "script.py")
    assert done.returncode == 0
    assert sorted(done.stdout.splitlines()) == [
        *("[node1:rank1] err", "[node1:rank1] out 1", "[node2:rank2] err", "[node2:rank2] out 2"),
    ]
    for rank in range(4):
        assert Path(f"logs/rank{rank}.log").read_text() == f"out {rank}\nerr\n"
    assert len(Path("logs/merged.log").read_text().splitlines()) == 8


@pytest.mark.thorough
@pytest.mark.parametrize("stderr", ["2>err", "2>&1"])
def test_a_reader_who_leaves_ends_the_run(stderr: str) -> None:
    write("import time\nwhile True: print(1); time.sleep(0.01)")
    command = " ".join([*MINIRAY, "run", "--local", "2x1", "script.py"])
    ended = subprocess.run(
        ["bash", "-c", f"{command} {stderr} | head -1; exit ${{PIPESTATUS[0]}}"], timeout=LIMIT_S
    )
    assert ended.returncode == 128 + signal.SIGPIPE
    if stderr == "2>err":
        said = Path("err").read_text().splitlines()
        assert said[-2:] == [
            "miniray run: nobody reads what they print any more: ending all ranks; "
            "once more kills them at once",
            "miniray run: ended by SIGPIPE; nothing was left running",
        ]


@pytest.mark.thorough
def test_a_node_that_cannot_start_is_named() -> None:
    write("")
    done = run("-H", "no-such-host.invalid:1", "script.py")
    assert done.returncode == 1
    assert "no-such-host.invalid: " in done.stderr
    assert last_line(done) == (
        "  to see all that is wrong there: miniray doctor no-such-host.invalid:1"
    )


def test_after_a_failed_start_doctor_is_asked_for_what_the_run_was() -> None:
    """But not for values of --env, which are nobody's business."""
    Path("script.py").touch()
    where = ["-H", "me@a:2,[fd::1]:1", "--ssh-option=-i/my key", "--python", "/opt/python"]
    for more, workdir in (([], []), (["--tunnel"], ["--workdir", "proj"])):
        given = [*where, *more, *workdir]
        runs, doctors = argparse.ArgumentParser(), argparse.ArgumentParser()
        run_cli.add_options(runs)
        doctor.add_options(doctors)
        env = ["--env", "TOKEN=secret", "--env", "TMPDIR=/large disk"]
        nodes = make_plan(runs.parse_args([*given, *env, "script.py"])).nodes
        command = shlex.split(name_doctor(nodes))
        assert command[:3] == ["miniray", "doctor", "me@a:2,[fd::1]:1"]
        again = doctor.find_nodes(doctors.parse_args(command[2:]))
        for one, other in zip(nodes, again, strict=True):
            assert other.env["TMPDIR"] == "/large disk"
            assert "TOKEN" not in other.env
            assert dataclasses.replace(one, env={}) == dataclasses.replace(other, env={})
    assert name_doctor([NodeConfig.local(4)]) == ""
    assert name_doctor([NodeConfig("n", launcher=("srun",), python=sys.executable)]) == (
        "miniray doctor"
    )
    assert name_doctor([NodeConfig(f"n{number}") for number in range(9)]) == (
        "miniray doctor, with the same hosts and options"
    )


# It says who it is, has a grandchild that left the session, and waits.
WAITS = """
    import os, signal
    if os.fork() == 0:
        os.setsid()
        signal.pause()
    print("waits", os.getpid(), flush=True)
    signal.pause()
"""


@contextlib.contextmanager
def in_terminal(words: Sequence[str], ranks: int) -> Iterator[tuple[int, int, list[int]]]:
    """Run something in a terminal of its own; yield its pid, the terminal, and its ranks' pids."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(words[0], words)
    processes.forked_here[pid] = 0.0
    shown = b""
    try:
        while shown.count(b" waits ") < ranks or not shown.endswith(b"\n"):
            shown += os.read(terminal, 4096)
        yield pid, terminal, [int(one) for one in re.findall(rb" waits (\d+)", shown)]
    except OSError:
        pytest.fail(f"it ended: {shown!r}")
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        with contextlib.suppress(OSError):
            os.close(terminal)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("end", "status"),
    [("Ctrl-C", 130), ("SIGTERM", 143), ("closed", 129), ("SIGKILL", -signal.SIGKILL)],
)
def test_however_it_is_ended_nothing_is_left(end: str, status: int) -> None:
    write(WAITS)
    with in_terminal([*MINIRAY, "run", "--local", "2x2", "script.py"], 4) as (pid, terminal, ranks):
        if end == "Ctrl-C":
            os.write(terminal, b"\x03")
        elif end == "closed":
            os.close(terminal)
        else:
            os.kill(pid, signal.Signals[end])
        shown = b""
        with contextlib.suppress(OSError):  # it has ended
            while end != "closed":
                shown += os.read(terminal, 4096)
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert ended == status
    # The grandchildren are for the leak check, which adopts them.
    processes.wait_until_gone(ranks, timeout_s=15)
    if status > 0 and end != "closed":
        name = "SIGINT" if end == "Ctrl-C" else end
        assert f"miniray run: ended by {name}; nothing was left running".encode() in shown


torch_is_here = pytest.mark.skipif(
    not any((Path(path) / "torch").is_dir() for path in sys.path), reason="needs torch"
)

COLLECTIVE = """
    import os, signal, sys, torch, torch.distributed as dist
    dist.init_process_group("gloo")
    total = torch.ones(1)
    dist.all_reduce(total)
    if dist.get_rank() == 2:
        {ending}
    for _ in range(3):
        dist.all_reduce(total)
"""


@pytest.mark.thorough
@torch_is_here
@pytest.mark.parametrize(
    ("ending", "status", "words"),
    [
        ("raise RuntimeError('mine')", 1, "it raised RuntimeError: mine"),
        ("sys.exit()", 1, "it left early: it returned while others were in a collective with it"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "it was killed by SIGKILL"),
    ],
)
def test_a_rank_that_leaves_a_collective_is_the_culprit(
    ending: str, status: int, words: str
) -> None:
    write(COLLECTIVE.format(ending=ending))
    done = run("--local", "2x2", "script.py")
    assert done.returncode == status
    assert f"miniray run: rank 2 on node2 failed first: {words}" in last_line(done)


@pytest.mark.thorough
@torch_is_here
def test_what_readme_says_runs_as_pasted(here: Path) -> None:
    readme = (REPOSITORY / "README.md").read_text()
    script = re.search(r'```python title="average.py"\n(.*?)```', readme, re.DOTALL)
    command = re.search(r"^miniray (run --local .*)$", readme, re.MULTILINE)
    assert script
    assert command
    write(script[1], "average.py")
    done = run(*command[1].split()[1:])
    assert done.returncode == 0
    said = "the ranks add up to 6.0"
    assert [line for line in sorted(done.stdout.splitlines()) if said in line] == [
        f"[node{rank // 2 + 1}:rank{rank}] {said}" for rank in range(4)
    ]


@pytest.mark.slow
@torch_is_here
def test_a_script_that_imports_torch_late_meets_at_one_address_again_and_again() -> None:
    write(
        """
        import importlib, os, psutil, sys
        assert "torch" not in sys.modules
        dist, torch = (importlib.import_module(name) for name in ("torch.distributed", "torch"))
        ones = torch.ones(1)
        for _ in range(3):
            dist.init_process_group("gloo")
            dist.all_reduce(ones)
            dist.destroy_process_group()
        print(ones.item(), *(
            one.laddr.ip for one in psutil.Process().net_connections("tcp")
            if one.status == psutil.CONN_LISTEN and one.laddr.port == int(os.environ["MASTER_PORT"])
        ))
        """
    )
    done = run("--local", "2", "script.py")
    assert done.returncode == 0
    assert sorted(done.stdout.splitlines()) == [
        *("[local:rank0] 8.0 127.0.0.1", "[local:rank1] 8.0"),
    ]


LOADS = """
    import os, torch, torch.distributed as dist
    from torch.utils.data import DataLoader, Dataset

    class Squares(Dataset):
        def __len__(self):
            return 8
        def __getitem__(self, index):
            return index * index

    if __name__ == "__main__":
        dist.init_process_group("gloo")
        loader = DataLoader(
            Squares(), batch_size=4, num_workers=1, multiprocessing_context="spawn",
            persistent_workers=True,
        )
        total = sum(batch.sum() for batch in loader)
        dist.all_reduce(total)
        if dist.get_rank() == 0:
            print("total", int(total))
        dist.destroy_process_group()
"""


@pytest.mark.thorough
@pytest.mark.slow
@torch_is_here
def test_a_data_loader_with_spawned_workers_works() -> None:
    write(LOADS)
    done = run("--local", "2", "script.py")
    assert done.returncode == 0
    assert "[local:rank0] total 280" in done.stdout.splitlines()


TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]

# What differs from torchrun's environment, and why. "": not set.
DIFFERENCES = {
    # Its agent's own business: a file for @record, and what it heeds itself.
    "TORCHELASTIC_ERROR_FILE": "only torchrun's",
    "TORCHELASTIC_SIGNALS_TO_HANDLE": "only torchrun's",
    # The store is rank 0's own, not an agent's.
    "TORCHELASTIC_USE_AGENT_STORE": "differs",
    # A run has its own name, and its own place to meet.
    "TORCHELASTIC_RUN_ID": "differs",
    "MASTER_ADDR": "differs",
    "MASTER_PORT": "differs",
    # The way to rank 0, so that gloo and NCCL do not take whatever the machine's name resolves to.
    "GLOO_SOCKET_IFNAME": "only ours",
    "NCCL_SOCKET_IFNAME": "only ours",
}
DUMPS = "import json, os; json.dump(dict(os.environ), open(os.environ['RANK'] + '.json', 'w'))"


@pytest.mark.thorough
@pytest.mark.slow
@torch_is_here
def test_the_environment_is_torchruns_but_for_what_is_listed(here: Path) -> None:
    write(DUMPS)
    for folder, command in (
        ("ours", [*MINIRAY, "run", "--local", "2", "../script.py"]),
        ("theirs", [*TORCHRUN, "--standalone", "--nproc-per-node", "2", "../script.py"]),
    ):
        Path(folder).mkdir()
        done = subprocess.run(command, cwd=folder, timeout=LIMIT_S, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    for rank in range(2):
        ours, theirs = (
            json.loads(Path(folder, f"{rank}.json").read_text()) for folder in ("ours", "theirs")
        )
        different = {}
        for name in {*ours, *theirs} - {"PWD", "_"}:  # which the shell sets
            if name not in ours:
                different[name] = "only torchrun's"
            elif name not in theirs:
                different[name] = "only ours"
            elif ours[name] != theirs[name]:
                different[name] = "differs"
        assert different == DIFFERENCES


@pytest.fixture
def nodes_options(netns_nodes: Any, here: Path) -> list[str]:
    """Return the options of a run over the two nodes, two ranks each, from this folder."""
    return [
        *("-H", "node1:2,node2:2", "--python", sys.executable),
        *(f"--ssh-option={word}" for word in netns_nodes.ssh_options),
        *("--env", f"XDG_CACHE_HOME={here}/cache"),
    ]


def run_over_nodes(
    nodes: Any, arguments: Sequence[str], **options: Any
) -> subprocess.CompletedProcess[str]:
    done: subprocess.CompletedProcess[str] = nodes.run(
        [*MINIRAY, "run", *arguments], cwd=os.getcwd(), timeout=LIMIT_S, **options
    )
    print(done.stdout, done.stderr)
    nodes.wait_until_empty()
    return done


@pytest.mark.thorough
@pytest.mark.netns
class TestOverNodes:
    def test_the_folder_goes_along(self, netns_nodes: Any, nodes_options: list[str]) -> None:
        Path("sub").mkdir()
        write(
            """
            import helper, os, socket
            names = ("RANK", "LOCAL_RANK", "GROUP_RANK", "MASTER_ADDR")
            place = [os.environ[name] for name in names]
            print(*place, helper.WORD, open("data.txt").read(), os.environ["GLOO_SOCKET_IFNAME"])
            if place[0] == "3":
                raise ValueError(os.path.basename(os.path.dirname(os.getcwd())))
            """,
            "sub/script.py",
        )
        write("WORD = 'helped'", "sub/helper.py")
        write("data", "data.txt")
        done = run_over_nodes(netns_nodes, [*nodes_options, "--", "sub/script.py"])
        assert done.returncode == 1
        assert sorted(re.findall(r"^\[node\d:rank\d\] \d.*", done.stdout, re.MULTILINE)) == [
            f"[node{node + 1}:rank{rank}] {rank} {rank % 2} {node} 10.77.0.11 helped data eth0"
            for rank in range(4)
            for node in [rank // 2]
        ]
        assert "rank 3 on node2 failed first: it raised ValueError: sync" in last_line(done)

    def test_a_tunnel_and_a_directory_over_there_will_do(
        self, netns_nodes: Any, nodes_options: list[str], here: Path
    ) -> None:
        write("import os; print(os.getcwd())")
        options = [*nodes_options, "--tunnel", "--workdir", str(here), "--only-rank", "3"]
        done = run_over_nodes(netns_nodes, [*options, "script.py"])
        assert done.returncode == 0
        assert done.stdout == f"[node2:rank3] {here}\n"

    def test_a_script_that_is_not_over_there_is_said_by_a_rank(
        self, netns_nodes: Any, nodes_options: list[str], here: Path
    ) -> None:
        done = run_over_nodes(netns_nodes, [*nodes_options, "--workdir", str(here), "none.py"])
        assert done.returncode == 1
        said = f"exited with status 1: cannot read the script none.py in {here}: No such file"
        assert said in last_line(done)

    def test_ctrl_c_leaves_nothing_over_there(
        self, netns_nodes: Any, nodes_options: list[str]
    ) -> None:
        write(WAITS)
        words = netns_nodes.in_namespace([*MINIRAY, "run", *nodes_options, "script.py"])
        words[0] = f"/sbin/{words[0]}" if os.path.exists(f"/sbin/{words[0]}") else "/usr/bin/ip"
        with in_terminal(words, 4) as (pid, terminal, _):
            os.write(terminal, b"\x03")
            with contextlib.suppress(OSError):
                while os.read(terminal, 4096):
                    pass
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
        netns_nodes.wait_until_empty()

    def test_in_an_allocation_srun_starts_it(self, netns_nodes: Any, here: Path) -> None:
        slurm.install(here, {node: netns_nodes.in_namespace([], node=node) for node in ssh.HOSTS})
        write("""
            import os, sys
            print(*(os.environ[name] for name in ("RANK", "MASTER_ADDR", "SLURMD_NODENAME")))
            sys.exit(5 if os.environ["RANK"] == "2" else 0)
        """)
        environment = {
            "PATH": f"{here}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_TASKS_PER_NODE": "2,1",
        }
        done = run_over_nodes(netns_nodes, ["script.py"], env=environment)
        assert done.returncode == 5
        assert sorted(line for line in done.stdout.splitlines() if "10.77" in line) == [
            f"[node{node}:rank{rank}] {rank} 10.77.0.11 node{node}"
            for rank, node in enumerate([1, 1, 2])
        ]
        assert "rank 2 on node2 failed first: it exited with status 5" in last_line(done)


@pytest.fixture(scope="session")
def losses_of_torchrun() -> dict[str, list[str]]:
    """Keep what each script's losses are under torchrun, which is the same for all who ask."""
    return {}


def losses(text: str) -> list[str]:
    """Return "step N loss X" of each step, whoever printed it, once."""
    return sorted(set(re.findall(r"step \d+ loss \S+", text)))


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.netns
@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.glob("*.py")))
class TestScripts:
    def arguments(self, script: str) -> list[str]:
        text = (SCRIPTS / script).read_text()
        for module in ("accelerate", "transformers"):
            if f"from {module} " in text:
                pytest.importorskip(module)
        return [str(SCRIPTS / script), "--epochs" if "--epochs" in text else "--steps", "3"]

    def expected(self, script: str, known: dict[str, list[str]]) -> list[str]:
        if script not in known:
            done = subprocess.run(
                [*TORCHRUN, "--standalone", "--nproc-per-node", "4", *self.arguments(script)],
                timeout=LIMIT_S,
                capture_output=True,
                text=True,
            )
            # A status of -6 is torch's own, after all is done: gloo's threads at the very end.
            known[script] = losses(done.stdout)
            assert len(known[script]) == 3, done.stderr
        return known[script]

    def test_runs_here_with_the_losses_of_torchrun(
        self, script: str, losses_of_torchrun: dict[str, list[str]]
    ) -> None:
        done = run("--local", "2x2", *self.arguments(script))
        assert done.returncode == 0
        assert losses(done.stdout) == self.expected(script, losses_of_torchrun)

    def test_runs_over_nodes_with_the_losses_of_torchrun(
        self,
        script: str,
        losses_of_torchrun: dict[str, list[str]],
        netns_nodes: Any,
        nodes_options: list[str],
    ) -> None:
        options = [*nodes_options, "--sync", str(SCRIPTS)]
        done = run_over_nodes(netns_nodes, [*options, *self.arguments(script)])
        assert done.returncode == 0
        assert losses(done.stdout) == self.expected(script, losses_of_torchrun)
