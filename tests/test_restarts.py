"""`miniray run --restarts`: after a death all ranks begin anew, and the last attempt is the run."""

import contextlib
import math
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from miniray import ClusterError, WorkerDied, cli, recovery
from tests.support import slurm
from tests.test_run import LIMIT_S, MINIRAY, SCRIPTS, here, in_terminal, last_line, run, write

__all__ = ["here"]  # a fixture, for all tests


class Restarts:
    """Stands in for a cluster: each restart takes the next of some errors, or None."""

    def __init__(self, *errors: Exception | None) -> None:
        self.errors, self.timeouts = list(errors), list[float | None]()

    def restart(self, *, without_lost: bool = False, timeout: float | None = None) -> None:
        self.timeouts.append(timeout)
        if self.errors and (error := self.errors.pop(0)):
            raise error


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr(recovery.time, "sleep", slept.append)
    return slept


def failing(times: int) -> Callable[[int], int]:
    def attempt(restarted: int) -> int:
        if restarted < times:
            raise WorkerDied(f"death {restarted}")
        return restarted

    return attempt


class TestAttempts:
    def test_go_on_until_one_succeeds(self, pauses: list[float]) -> None:
        told = list[str]()
        found = recovery.attempt_again(
            Restarts(),
            failing(2),
            restarts=3,
            tell=lambda why, what_next: told.append(f"{why}; {what_next}"),
            deadline=math.inf,
        )
        assert found == 2
        assert told == ["death 0; restart 1 of 3", "death 1; restart 2 of 3"]
        assert not any(pauses)

    def test_a_restart_that_fails_counts_and_the_next_ones_outlast_a_reboot_of_a_minute(
        self, pauses: list[float]
    ) -> None:
        down, told = ClusterError("down"), list[str]()
        found = recovery.attempt_again(
            Restarts(down, down, None),
            failing(1),
            restarts=3,
            tell=lambda why, what_next: told.append(f"{why}; {what_next}"),
            deadline=math.inf,
        )
        assert found == 3
        assert told == [
            *("death 0; restart 1 of 3", "down; restart 2 of 3, in 15 s"),
            "down; restart 3 of 3, in 45 s",
        ]
        assert pauses == [0.0, 15.0, 45.0]
        assert sum(pauses) >= 60.0

    def test_end_with_what_the_last_of_them_failed_of(self, pauses: list[float]) -> None:
        for errors, expected in (((), "death 2"), ((None, ClusterError("down")), "down")):
            with pytest.raises((WorkerDied, ClusterError), match=expected):
                recovery.attempt_again(
                    Restarts(*errors),
                    failing(9),
                    restarts=2,
                    tell=lambda why, what_next: None,
                    deadline=math.inf,
                )

    def test_end_at_the_deadline_also_in_a_restart(self) -> None:
        restarts = Restarts(ClusterError("down"))
        with pytest.raises(TimeoutError, match="restart 1: down"):
            recovery.attempt_again(
                restarts, failing(9), restarts=2, tell=lambda why, what_next: None, deadline=0.0
            )
        assert restarts.timeouts == [0.0]

    def test_are_no_number_below_zero(self) -> None:
        with pytest.raises(ValueError, match="restarts is a number from 0 up, not -1"):
            recovery.attempt_again(
                Restarts(),
                failing(0),
                restarts=-1,
                tell=lambda why, count: None,
                deadline=math.inf,
            )

    def test_what_is_no_death_ends_them(self) -> None:
        def attempt(restarted: int) -> None:
            raise TypeError("cannot be sent")

        with pytest.raises(TypeError):
            recovery.attempt_again(
                Restarts(), attempt, restarts=2, tell=lambda why, what_next: None, deadline=math.inf
            )


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("--restarts -1", "--restarts is a number from 0 up, not -1"),
        ("--min-nodes 1", "--min-nodes is for what begins anew: add --restarts 3"),
        ("--restarts 1 --min-nodes 3", "--min-nodes is a number from 1 to 2, for that many nodes"),
        ("--restarts 1 --min-nodes 0", "--min-nodes is a number from 1 to 2"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(
    options: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "--local", "2x2", *options.split(), write("")]) == 2
    assert problem in capsys.readouterr().err


def test_a_plan_says_how_often_all_may_begin_anew(capsys: pytest.CaptureFixture[str]) -> None:
    # Under torchrun's name for it.
    assert cli.main(["run", "--local", "2", "--max-restarts", "3", "--dry-run", write("")]) == 0
    said = capsys.readouterr().out
    assert "when a rank has died or failed, all begin anew: 3 times\n" in said


# What a rank sees of its place, and of the restarts.
SEES = """
    import os, signal, sys
    count = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    rank = os.environ["RANK"]
    names = ("WORLD_SIZE", "GROUP_WORLD_SIZE", "TORCHELASTIC_MAX_RESTARTS")
    print(f"attempt {count}:", rank, *(os.environ[name] for name in names))
    def wait_to_be_ended():
        signal.pause()
"""


@pytest.mark.thorough
class TestRun:
    def test_begins_all_ranks_anew_and_keeps_what_they_said(self) -> None:
        write(f"""{SEES}
    if count < 2:
        if rank == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        wait_to_be_ended()
        """)
        options = ["--restarts", "3", "--log-dir", "logs", "--merged-log"]
        done = run("--local", "2x2", *options, "script.py")
        assert done.returncode == 0
        culprit = "rank 1 on node1 failed first: it was killed by SIGKILL"
        assert done.stderr.count(culprit) == 2
        lines = [one for one in done.stderr.splitlines() if one.startswith("miniray run: restart")]
        assert lines == ["miniray run: restart 1 of 3", "miniray run: restart 2 of 3"]
        assert done.stderr.count("miniray run: 4 ranks up again after ") == 2
        for attempt, folder in enumerate(["logs", "logs/restart1", "logs/restart2"]):
            said = Path(folder, "rank1.log").read_text()
            assert said == f"attempt {attempt}: 1 4 2 3\n"
        merged = Path("logs/merged.log").read_text()
        for attempt in range(3):
            # Its last words may come when all others begin anew, and are marked then.
            words = rf"\[node1:rank1(, before restart \d)?\] attempt {attempt}: 1 4 2 3\n"
            assert re.search(words, merged)

    def test_ends_as_its_last_attempt_does(self) -> None:
        write(f"""{SEES}
    if rank == str(count):
        print("last words of", count)
        sys.exit(3 + count)
    wait_to_be_ended()
        """)
        done = run("--local", "2", "--restarts", "1", "script.py")
        assert done.returncode == 4
        assert "rank 0 on local failed first: it exited with status 3" in done.stderr
        assert "rank 1 on local failed first: it exited with status 4" in last_line(done)
        assert done.stderr.splitlines()[-3].strip() == "last words of 1"
        assert "that was restart 1 of 1, the last one" in done.stderr

    def test_says_which_words_were_the_old_ranks(self) -> None:
        write(f"""{SEES}
    if count == 0:
        print("words of the old\\n" * 300)  # which take longer than the news of the death
        if rank == "0":
            sys.exit(3)
        wait_to_be_ended()
    print("words of the new")
        """)
        done = run("--local", "8", "--restarts", "1", "--log-dir", "logs", "script.py")
        assert done.returncode == 0
        said = done.stdout.splitlines()
        new = [line for line in said if "words of the new" in line]
        assert sorted(new) == [f"[local:rank{rank}] words of the new" for rank in range(8)]
        assert not [line for line in said[said.index(new[0]) :] if "words of the old" in line]
        assert "restart 1 begins" not in done.stdout
        assert Path("logs/rank0.log").read_text().count("words of the old") == 300
        assert (
            Path("logs/restart1/rank3.log").read_text() == "attempt 1: 3 8 1 1\nwords of the new\n"
        )

    def test_does_not_begin_anew_with_a_script_that_is_no_python(self) -> None:
        done = run("--local", "2", "--restarts", "3", write("x = ("))
        assert done.returncode == 1
        assert "restart 1" not in done.stderr
        assert "no restart would mend that" in done.stderr
        assert "it raised SyntaxError" in last_line(done)

    def test_gets_a_new_server_where_one_is_lost(self) -> None:
        write(f"""{SEES}
    if count == 0:
        if rank == "3":
            os.kill(os.getppid(), signal.SIGKILL)
        wait_to_be_ended()
        """)
        done = run("--local", "2x2", "--restarts", "1", "script.py")
        assert done.returncode == 0
        assert sorted(re.findall(r"attempt 1: \d 4 2 1", done.stdout)) == [
            f"attempt 1: {rank} 4 2 1" for rank in range(4)
        ]


# One node is gone for good, as soon as rank 3 has said so.
IS_LOST = f"""{SEES}
    if count == 0:
        if rank == "3":
            open("lost", "w").close()
            os.kill(os.getppid(), signal.SIGKILL)
        wait_to_be_ended()
"""


# In the second attempt it comes back, and a rank dies.
IS_BACK = """
    if count == 1:
        if rank == "0":
            open("back", "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        wait_to_be_ended()
"""


@pytest.fixture
def allocation(here: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have an allocation of two nodes, the second of which does something once it is lost."""

    def install(when_lost: str) -> None:
        second = ["sh", "-c", f'[ -e {here}/lost ] && {when_lost}; exec "$@"', "second"]
        slurm.install(here, {"localhost": [], "127.0.0.1": second})
        for name, value in {
            "PATH": f"{here}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "localhost,127.0.0.1",
            "SLURM_TASKS_PER_NODE": "2(x2)",
        }.items():
            monkeypatch.setenv(name, value)

    return install


@pytest.mark.thorough
class TestNodeThatIsGone:
    def test_is_left_out_if_fewer_will_do(self, allocation: Callable[[str], None]) -> None:
        allocation("exit 1")
        done = run("--restarts", "1", "--min-nodes", "1", write(IS_LOST))
        assert done.returncode == 0
        assert sorted(re.findall(r"attempt 1: .*", done.stdout)) == [
            f"attempt 1: {rank} 2 1 1" for rank in range(2)
        ]
        assert "it goes on without 127.0.0.1, up to a restart that finds it there" in done.stderr
        assert "2 ranks up again after" in done.stderr

    def test_is_back_after_the_restart_that_finds_it(
        self, allocation: Callable[[str], None]
    ) -> None:
        allocation("[ ! -e back ] && exit 1")
        done = run("--restarts", "2", "--min-nodes", "1", write(IS_LOST + IS_BACK))
        assert done.returncode == 0
        assert sorted(re.findall(r"attempt [12]: .*", done.stdout)) == [
            *(f"attempt 1: {rank} 2 1 2" for rank in range(2)),
            *(f"attempt 2: {rank} 4 2 2" for rank in range(4)),
        ]

    def test_ends_the_run_if_too_few_are_left(self, allocation: Callable[[str], None]) -> None:
        allocation("exit 1")
        done = run("--restarts", "1", "--min-nodes", "2", write(IS_LOST))
        assert done.returncode == 1
        assert "that was restart 1 of 1, the last one" in done.stderr
        assert "only 1 of the 2 nodes that it needs can be brought up" in last_line(done)

    @pytest.mark.slow  # it waits for 15 s
    def test_is_asked_again_if_too_few_are_left(
        self, allocation: Callable[[str], None], here: Path
    ) -> None:
        allocation(f"! [ -e {here}/back ] && touch {here}/back && exit 1")
        done = run("--restarts", "2", "--min-nodes", "2", write(IS_LOST))
        assert done.returncode == 0
        assert sorted(re.findall(r"attempt 2: .*", done.stdout)) == [
            f"attempt 2: {rank} 4 2 2" for rank in range(4)
        ]

    @pytest.mark.slow  # it waits for 15 s
    def test_is_tried_as_often_as_may_be_if_all_are_needed(
        self, allocation: Callable[[str], None]
    ) -> None:
        allocation("exit 1")
        done = run("--restarts", "2", write(IS_LOST))
        assert done.returncode == 1
        assert "\nminiray run: restart 2 of 2, in 15 s\n" in done.stderr
        assert done.stderr.count("1 of 2 nodes failed to start; no rank runs:\n") == 2
        assert "127.0.0.1: srun exited with status 1" in done.stderr
        assert "that was restart 2 of 2, the last one" in done.stderr
        assert last_line(done).endswith("to go on without nodes that are lost: --min-nodes 1")

    def test_is_no_longer_waited_for_after_ctrl_c(self, allocation: Callable[[str], None]) -> None:
        allocation("cat >nothing")  # until its stdin ends
        words = [*MINIRAY, "run", "--restarts", "2", write(IS_LOST.replace("attempt ", " waits "))]
        with in_terminal(words, 1) as (pid, terminal, _):
            shown = b""
            # Of the first start nothing comes any more, and of the restart perhaps not its heading.
            while not re.search(rb"starting 4 ranks.* [1-9]\d* s", shown, re.DOTALL):
                shown += os.read(terminal, 4096)
            os.write(terminal, b"\x03")
            with contextlib.suppress(OSError):  # it has ended
                while True:
                    shown += os.read(terminal, 4096)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
        assert b"ended by SIGINT; nothing was left running" in shown


# Two nodes share no disk, as over ssh: each runs the script in a folder of its own.
APART = f"""
    import os, runpy, torch
    folder = "node" + os.environ["GROUP_RANK"]
    os.makedirs(folder, exist_ok=True)
    os.chdir(folder)
    runpy.run_path({str(SCRIPTS / "ddp_gpt.py")!r}, run_name="__main__")
"""


@pytest.mark.thorough
@pytest.mark.slow
def test_a_script_with_a_checkpoint_ends_with_the_same_bits_after_a_kill(here: Path) -> None:
    torch = pytest.importorskip("torch")
    steps = 60
    script = [write(APART, "apart.py"), "--steps", str(steps), "--checkpoint"]
    assert run("--local", "2x2", *script, "alone.pt").returncode == 0
    killed = subprocess.Popen(
        [*MINIRAY, "run", "--local", "2x2", "--restarts", "1", *script, "killed.pt"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert killed.stdout is not None
    ranks = {}
    for line in killed.stdout:
        if " step 5 loss " in line:
            ranks = dict(enumerate(find_ranks(killed.pid)))
            ranks[2].kill()
            break
    said, problems = killed.communicate(timeout=LIMIT_S)
    print(said, problems)
    assert len(ranks) == 4
    assert killed.returncode == 0
    assert "it was killed by SIGKILL" in problems
    assert "restart 1 of 1" in problems
    assert f"step {steps} loss" in said
    assert not list(here.glob("node1/*.pt"))  # only rank 0 has a file
    ours, undisturbed = (torch.load(f"node0/{name}.pt") for name in ("killed", "alone"))
    assert ours["steps"] == undisturbed["steps"] == steps
    for name, value in undisturbed["model"].items():
        assert torch.equal(ours["model"][name], value), name


def find_ranks(pid: int) -> list[psutil.Process]:
    """Return the processes of all ranks of a run: the children of the nodes' servers."""
    servers = [
        one
        for one in psutil.Process(pid).children(recursive=True)
        if any("node_server.serve" in word for word in one.cmdline())
        and not any("node_server.serve" in word for word in psutil.Process(one.ppid()).cmdline())
    ]
    return [rank for server in servers for rank in server.children()]
