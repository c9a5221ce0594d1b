"""`miniray run-rank`: ranks that torchrun, srun or a training operator starts."""

import functools
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from miniray import ClusterError, auth, cli, wait
from miniray.cli import outer_rank
from miniray.cli.outer_place import Meeting, find_place, port_of_step
from miniray.cli.outer_rank import StoreDirectory
from miniray.extras import hosted
from miniray.extras.hosted import HostedCluster
from miniray.extras.rank_host import HOST, Place, reach
from miniray.waiting import deadline_after
from tests.support import outer, poll, processes
from tests.support.outer import Job

T = 60.0
WORK = "tests.outer_work:work"


@pytest.fixture(params=list(outer.LAUNCHERS))
def launch(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Return a function that has a launcher start ranks which coordinate as told."""
    yield from launching(tmp_path, request.param)


@pytest.fixture
def launch_pods(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Do the same for one launcher only: what comes after the start is the same for all."""
    yield from launching(tmp_path, "operator")


def launching(folder: Path, launcher: str) -> Iterator[Callable[..., Job]]:
    jobs: list[Job] = []

    def launch(coordinator: str, size: int = 3, work: str = WORK, **arguments: Any) -> Job:
        jobs.append(Job(folder, outer.LAUNCHERS[launcher](size)))
        words = [f"--arg={name}={value!r}" for name, value in arguments.items()]
        jobs[-1].start(work, "--coordinator", f"tests.outer_work:{coordinator}", *words)
        return jobs[-1]

    yield launch
    for job in jobs:
        job.end()


def ended(job: Job, *, status: int) -> str:
    """Have all processes of a job end with a status; return what rank 0's said."""
    assert set(job.wait()) == {status}
    return job.said()


def test_all_ranks_come_to_the_coordinator_in_their_places(launch: Callable[..., Job]) -> None:
    job = launch("exchange", text="here is")
    said = ended(job, status=0)
    local = [int(one.get("SLURM_LOCALID", "0")) for one in job.environments]
    node = [0 if "SLURM_NODEID" in one else rank for rank, one in enumerate(job.environments)]
    assert re.findall("back: (.*)", said) == [
        f"here is {rank} 3 {local[rank]} {node[rank]}" for rank in range(3)
    ]


def test_without_a_coordinator_each_rank_gets_its_place(tmp_path: Path) -> None:
    job = Job(tmp_path, outer.operator_environments(2))
    job.start("tests.outer_work:place")
    said = ended(job, status=0)
    assert "rank 0: 'my rank is 0 of 2'" in said
    assert "rank 1: 'my rank is 1 of 2'" in said
    assert "each rank has been sent its place and will be sent nothing more, for there is" in said


@pytest.mark.parametrize(
    ("order", "status", "words"),
    [
        (["exit", 7], 7, "it exited with status 7 (exit status 7)"),
        (["raise"], 1, "it raised ValueError: no such batch: 7 (exit status 1)"),
        (["die"], 137, "it was killed by SIGKILL (probably out of memory) (exit status 137)"),
    ],
    ids=lambda one: str(one)[:12],
)
def test_all_exit_with_the_status_of_who_failed_first(
    launch: Callable[..., Job], order: Any, status: int, words: str
) -> None:
    job = launch("order", rank=2, order=order)
    said = ended(job, status=status)
    assert re.search(rf"run-rank: rank 2 on \S+ failed first: {re.escape(words)}", said)
    if order == ["raise"]:
        assert 'raise ValueError("no such batch: 7")' in said  # of a rank that printed elsewhere


def test_the_culprit_leaves_torchrun_an_error_file(tmp_path: Path) -> None:
    job = Job(tmp_path, outer.operator_environments(3))
    for rank, environment in enumerate(job.environments):
        environment["TORCHELASTIC_ERROR_FILE"] = str(tmp_path / f"error{rank}.json")
    what = ["--arg", "rank=2", "--arg", "order=['raise']"]
    job.start(WORK, "--coordinator", "tests.outer_work:order", *what)
    ended(job, status=1)
    assert [file.name for file in tmp_path.glob("error*")] == ["error2.json"]
    assert "ValueError: no such batch: 7" in (tmp_path / "error2.json").read_text()


def test_the_culprits_host_is_told_first_and_the_others_when_it_has_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torchrun takes for the cause whoever exits first."""
    monkeypatch.setattr(hosted, "LEAVE_S", T)
    key = auth.make_key()
    with HostedCluster(2, "127.0.0.1", 0, key) as cluster:
        where = functools.partial(lambda one: (one.address, one.port), cluster)
        both_are_here = threading.Event()
        gathering = threading.Thread(target=lambda: gather_until(cluster, both_are_here))
        gathering.start()
        leases = []
        for rank in range(2):
            request = Place(rank, 2, rank, 2, 0, "node").introduce(HOST)
            leases.append(reach(where, key, request, deadline_after(T))[0])
        both_are_here.set()
        gathering.join()
        dismissing = threading.Thread(target=lambda: cluster.dismiss({"status": 3}, first=1))
        dismissing.start()
        for lease in leases:
            assert "end" in lease.recv(T)
            lease.send({"exit_code": 0})
        assert leases[1].recv(T) == {"verdict": {"status": 3}}
        assert wait(leases[:1], 0.2) == []
        leases[1].close()
        assert leases[0].recv(T) == {"verdict": {"status": 3}}
        leases[0].close()
        dismissing.join()


def test_a_cluster_shows_its_state_and_says_who_cannot_be_asked_for_stacks() -> None:
    with HostedCluster(2, "127.0.0.1", 0, auth.make_key()) as cluster:
        assert repr(cluster) == "<HostedCluster of 0 ranks: not started>"
        assert "HostedCluster of 0 ranks: not started" in cluster._repr_html_()
        with pytest.raises(RuntimeError, match="have no server to ask"):
            cluster.stacks()


def gather_until(cluster: HostedCluster, enough: threading.Event) -> None:
    def check() -> None:
        if enough.is_set():
            raise ClusterError("that will do")

    with pytest.raises(ClusterError, match="that will do"):
        cluster.gather_ranks("no.function", T, check)


def pids_of(launch: Callable[..., Job], folder: Path) -> tuple[Job, dict[str, Any]]:
    """Start a job that goes on, and return its processes, too."""
    file = folder / "pids"
    job = launch("tell_pids", file=str(file))
    poll.until(file.exists, timeout_s=T, what="all ranks to be there")
    return job, eval(file.read_text())


@pytest.mark.parametrize(
    ("killed", "statuses"),
    [
        ("rank", {137}),
        ("host of rank 2", {1, -9}),
        ("host of rank 0", {1, -9}),
        ("coordinator", {1, 137}),
    ],
)
def test_whoever_is_killed_nothing_is_left(
    launch_pods: Callable[..., Job], tmp_path: Path, killed: str, statuses: set[int]
) -> None:
    job, pids = pids_of(launch_pods, tmp_path)
    everybody = [pids["coordinator"], *(pid for both in pids["ranks"] for pid in both)]
    victim = {
        "rank": pids["ranks"][2][0],
        "host of rank 2": pids["ranks"][2][1],
        "host of rank 0": pids["ranks"][0][1],
        "coordinator": pids["coordinator"],
    }[killed]
    os.kill(victim, signal.SIGKILL)
    assert set(job.wait()) == statuses
    processes.wait_until_gone(everybody, timeout_s=T)
    if killed == "host of rank 2":
        assert "is lost: the process that kept it has gone" in job.said()
    if killed in ("coordinator", "host of rank 0"):
        assert "rank 1: the coordinator has gone" in job.said(1)


def test_a_process_that_a_rank_has_started_ends_with_it(
    launch_pods: Callable[..., Job], tmp_path: Path
) -> None:
    pid_file = tmp_path / "grandchild"
    job = launch_pods("order", rank=2, order=["spawn and exit", str(pid_file)])
    ended(job, status=5)
    processes.wait_until_gone([int(pid_file.read_text())], timeout_s=T)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_is_passed_on_to_the_rank_which_has_the_time_that_it_needs(
    launch_pods: Callable[..., Job], tmp_path: Path, number: int
) -> None:
    job = launch_pods("await_signals", number=int(number), folder=str(tmp_path))
    poll.until((tmp_path / "all wait").exists, timeout_s=T)
    job.signal(number)
    ended(job, status=0)
    saved = [(tmp_path / f"rank{rank}").read_text() for rank in range(3)]
    assert saved == [signal.Signals(number).name] * 3
    assert (tmp_path / "rank0.heard").read_text() == "."  # the coordinator's is the same one


def test_sigterm_ends_ranks_that_say_nothing_of_it(
    launch_pods: Callable[..., Job], tmp_path: Path
) -> None:
    job, _ = pids_of(launch_pods, tmp_path)
    job.signal(signal.SIGTERM)
    assert set(job.wait()) == {143}
    assert "was killed by SIGTERM (exit status 143)" in job.said()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGCONT])
def test_other_signals_do_to_a_rank_what_they_always_do(
    launch_pods: Callable[..., Job], tmp_path: Path, number: int
) -> None:
    job, _ = pids_of(launch_pods, tmp_path)
    job.signal(number)
    if number == signal.SIGCONT:
        job.signal(signal.SIGUSR2)
    ends = signal.SIGUSR2 if number == signal.SIGCONT else number
    assert set(job.wait()) == {128 + ends}


def test_sigterm_of_one_rank_alone_ends_all(
    launch_pods: Callable[..., Job], tmp_path: Path
) -> None:
    """So it is when Kubernetes takes one pod away."""
    job, _ = pids_of(launch_pods, tmp_path)
    job.processes[1].terminate()
    assert set(job.wait()) == {143}
    assert re.search(r"rank 1 on \S+ failed first: it was killed by SIGTERM", job.said())


@pytest.mark.skipif(sys.platform != "linux", reason="there are no titles elsewhere")
@pytest.mark.parametrize("command", ["stacks", "status", "top"])
def test_who_looks_for_clusters_is_told_of_ranks_and_how_to_look_at_them(
    launch_pods: Callable[..., Job],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    _, pids = pids_of(launch_pods, tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("miniray.cli.afar.SHOWN_MAX", 1000)  # other tests may have ranks, too
    assert cli.main([command]) == 1
    said = capsys.readouterr().err
    assert "no cluster runs on this machine, or it still starts" in said
    for rank, (pid, child) in enumerate(pids["ranks"]):
        assert f"pid {pid} (rank {rank})" in said
        assert f"pid {child}" not in said
    assert "run-rank's and Ray's have no server to ask: py-spy dump --pid" in said


def test_sigterm_of_the_coordinator_alone_is_rank_0s_and_ends_all(
    launch: Callable[..., Job], tmp_path: Path
) -> None:
    job, pids = pids_of(launch, tmp_path)
    os.kill(pids["coordinator"], signal.SIGTERM)
    assert set(job.wait()) == {143}
    assert re.search(r"rank 0 on \S+ failed first: it was killed by SIGTERM", job.said())


def test_a_function_that_is_not_there_is_said_with_its_traceback(
    launch_pods: Callable[..., Job],
) -> None:
    job = launch_pods("exchange", work="tests.broken_work:work_fn")
    said = ended(job, status=1)
    assert "ranks failed to start; nothing is left running" in said
    assert "raised ZeroDivisionError: division by zero" in said
    assert "The traceback of rank" in said


def test_a_module_that_starts_a_cluster_when_it_is_imported_is_refused(tmp_path: Path) -> None:
    (tmp_path / "unguarded.py").write_text(
        "from miniray import *\n"
        "def work(channel):\n    pass\n"
        "Cluster([NodeConfig.local()]).start(work)\n"
    )
    job = Job(tmp_path, outer.operator_environments(2))
    job.start("unguarded:work", PYTHONPATH=str(tmp_path))
    said = ended(job, status=1)
    assert "2 of 2 ranks failed to start" in said
    assert "raised RuntimeError: module unguarded starts a cluster when it is imported" in said


def test_a_rank_that_does_not_come_is_named(tmp_path: Path) -> None:
    job = Job(tmp_path, outer.operator_environments(3))
    job.start(WORK, "--start-timeout", "2", ranks=[0, 2])
    said = ended(job, status=1)
    assert "  rank 1 has not come within 2.0 s" in said  # whether or not the others were quick


def test_ranks_that_come_before_rank_0_wait_for_it(tmp_path: Path) -> None:
    job = Job(tmp_path, outer.operator_environments(2))
    coordinated = (WORK, "--coordinator", "tests.outer_work:exchange")
    job.start(*coordinated, ranks=[1])
    job.start(*coordinated, ranks=[0])
    assert "back: hello 1 2 0 1" in ended(job, status=0)


def test_who_never_finds_rank_0_says_where_it_looked(tmp_path: Path) -> None:
    job = Job(tmp_path, outer.operator_environments(2))
    job.start(WORK, "--start-timeout", "1", ranks=[1])
    assert job.wait() == [1]
    port = job.environments[1]["MASTER_PORT"]
    assert f"rank 0 is not to be found: cannot connect to 127.0.0.1:{port}" in job.said(1)


def test_a_port_that_is_taken_is_said_at_once(tmp_path: Path) -> None:
    job = Job(tmp_path, outer.operator_environments(1))
    with socket.create_server(("127.0.0.1", int(job.environments[0]["MASTER_PORT"]))):
        job.start(WORK)
        said = ended(job, status=1)
    assert re.search(r"run-rank: the coordinator cannot listen on 127.0.0.1:\d+: .* in use", said)


def test_sigterm_before_rank_0_is_there_ends_a_rank(tmp_path: Path) -> None:
    job = Job(tmp_path, outer.operator_environments(2))
    job.start("tests.outer_work:work", ranks=[1])
    command = f"/proc/{job.processes[1].pid}/status"
    poll.until(lambda: _catches(command, signal.SIGTERM), timeout_s=T)
    job.signal(signal.SIGTERM)
    assert job.wait() == [143]


def _catches(status: str, number: int) -> bool:
    """Return whether a process has a handler for a signal, as its /proc/PID/status says."""
    (caught,) = re.findall(r"SigCgt:\s*([0-9a-f]+)", Path(status).read_text())
    return bool(int(caught, 16) >> (number - 1) & 1)


def test_agents_that_have_counted_other_restarts_meet_in_torchruns_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a death one agent sees a failure, and another one only that the first starts anew."""
    values: dict[str, bytes] = {}

    class Store:
        def __init__(self, *where: Any, **options: Any) -> None:
            self.get = values.__getitem__

        def set(self, key: str, value: str) -> None:
            values[key] = value.encode()

    torch = SimpleNamespace(TCPStore=Store)
    monkeypatch.setattr(outer_rank.importlib, "import_module", lambda name: torch)
    place = Place(0, 2, 0, 1, 0, "node")
    found = []
    for count in ("1", "0"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
        directory = StoreDirectory(Meeting("127.0.0.1", 29400, is_store=True))
        if count == "1":
            directory.publish(place, 1234)
        found.append(directory.find()[1])
    assert found == [1234, 1234]


class TestKey:
    def test_may_be_a_variable_which_the_rank_does_not_see(self, tmp_path: Path) -> None:
        job = Job(tmp_path, outer.operator_environments(2))
        env = {"MINIRAY_KEY": secrets.token_hex(16), "MINIRAY_KEY_FILE": "/dev/null", "COLOUR": "1"}
        job.start(WORK, "--coordinator", "tests.outer_work:environment", **env)
        assert "{'MINIRAY_KEY': None, 'COLOUR': '1'}" in ended(job, status=0)

    def test_that_is_another_lets_nobody_in(self, tmp_path: Path) -> None:
        job = Job(tmp_path, outer.operator_environments(2))
        job.start(WORK, ranks=[0], MINIRAY_KEY=secrets.token_hex(16))
        job.start(WORK, ranks=[1], MINIRAY_KEY=secrets.token_hex(16))
        assert job.processes[1].wait(T) == 1
        job.processes[0].terminate()
        assert job.wait() == [143, 1]
        assert "the other side holds a different key" in job.said(1)

    def test_that_is_none_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for name, value in outer.operator_environments(1)[0].items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("MINIRAY_KEY", "short")
        assert cli.main(["run-rank", WORK]) == 2
        assert "MINIRAY_KEY has 5 characters, not 32" in capsys.readouterr().err


def test_calls_go_to_ranks_that_answer_them(tmp_path: Path) -> None:
    job = Job(tmp_path, outer.operator_environments(2))
    coordinator = ("--coordinator", "tests.outer_work:call")
    job.start("miniray.calls:answer_calls", *coordinator, COLOUR="blue")
    said = ended(job, status=0)
    assert "['blue', 'blue']\n[6, 24, 120]" in said


@pytest.mark.parametrize(
    ("coordinator", "status", "words"),
    [
        ("fail", 1, "run-rank: the coordinator raised LookupError: the coordinator's own"),
        ("no_such_function", 1, "has no function 'no_such_function'"),
    ],
)
def test_a_coordinator_that_fails_ends_all(
    launch_pods: Callable[..., Job], coordinator: str, status: int, words: str
) -> None:
    assert words in ended(launch_pods(coordinator, size=2), status=status)


def test_a_coordinator_may_end_the_ranks_itself(launch_pods: Callable[..., Job]) -> None:
    assert "back: hello 1 2 0 1" in ended(launch_pods("stop", size=2), status=0)


def test_a_call_that_fails_has_a_culprit_whose_status_all_have(tmp_path: Path) -> None:
    job = Job(tmp_path, outer.operator_environments(2))
    error_file = tmp_path / "no such folder" / "error.json"
    coordinator = ("--coordinator", "tests.outer_work:run_and_fail")
    job.start("miniray.calls:answer_calls", *coordinator, TORCHELASTIC_ERROR_FILE=str(error_file))
    said = ended(job, status=7)
    assert re.search(r"run-rank: rank 1 on \S+ failed first: it exited with status 7", said)


@pytest.mark.parametrize(
    ("number", "words"),
    [(signal.SIGTERM, "was told to end by SIGTERM"), (signal.SIGINT, "was interrupted")],
)
def test_a_signal_ends_a_coordinator_that_looks_at_no_rank_when_all_have_ended(
    launch_pods: Callable[..., Job], tmp_path: Path, number: int, words: str
) -> None:
    job = launch_pods("compute", size=2, file=str(tmp_path / "computes"))
    poll.until((tmp_path / "computes").exists, timeout_s=T)
    job.processes[0].send_signal(signal.SIGUSR1)  # whose rank has returned: nobody is meant
    job.signal(number)
    said = ended(job, status=128 + number)
    assert f"the coordinator {words} (exit status {128 + number})" in said


def test_ranks_of_another_job_are_refused(tmp_path: Path) -> None:
    job = Job(tmp_path, outer.operator_environments(2))
    job.start(WORK, ranks=[0])
    job.start("tests.outer_work:place", ranks=[1])
    assert job.processes[1].wait(T) == 1
    job.processes[0].terminate()
    assert job.wait() == [143, 1]
    assert "ranks run tests.outer_work.work, not tests.outer_work.place: it is another" in (
        job.said(1)
    )


@pytest.mark.parametrize("address", ["::1", "localhost"])
def test_rank_0_may_be_at_an_address_of_either_kind(tmp_path: Path, address: str) -> None:
    job = Job(tmp_path, outer.operator_environments(2))
    job.start(WORK, "--coordinator", "tests.outer_work:exchange", MASTER_ADDR=address)
    assert "back: hello 1 2 0 1" in ended(job, status=0)


@pytest.mark.parametrize(("status", "code"), [(0, 0), (4, 4), (259, 3), ("out of data", 1)])
def test_a_coordinator_may_leave_with_a_status(
    launch_pods: Callable[..., Job], status: Any, code: int
) -> None:
    said = ended(launch_pods("leave", size=2, status=status), status=code)
    assert ("out of data" in said) == (code == 1)


TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "1",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29400",
}
SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "7",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_STEP_TASKS_PER_NODE": "4,3",
    "SLURM_JOB_ID": "1000",
    "SLURM_STEP_ID": "2",
    "SLURMD_NODENAME": "gpu08",
}


def test_a_coordinator_that_is_done_has_ended_well_whatever_ranks_are_at(
    launch_pods: Callable[..., Job],
) -> None:
    ended(launch_pods("leave_paused", size=2), status=0)


class TestPlaces:
    def test_under_torchrun_are_its_own_and_rank_0_is_named_in_its_store(self) -> None:
        variables = {**TORCHRUN, "TORCHELASTIC_USE_AGENT_STORE": "True"}
        place, meeting = find_place(variables)
        assert place == Place(5, 8, 1, 4, 1, os.uname().nodename)
        assert meeting == Meeting("node1", 29400, is_store=True)

    def test_in_a_pod_of_one_rank_are_counted(self) -> None:
        names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        place, meeting = find_place({name: TORCHRUN[name] for name in names})
        assert (place.rank, place.local_rank, place.local_world_size, place.node_rank) == (
            *(5, 0, 1, 5),
        )
        assert not meeting.is_store

    def test_under_srun_are_the_tasks_and_rank_0_is_on_the_first_node(self) -> None:
        place, meeting = find_place(SLURM)
        assert place == Place(5, 7, 1, 3, 1, "gpu08")
        assert meeting == Meeting("gpu07", port_of_step(SLURM))

    def test_master_addr_and_port_win_over_srun(self) -> None:
        variables = {**SLURM, "MASTER_ADDR": "ib7", "MASTER_PORT": "5"}
        assert find_place(variables)[1] == Meeting("ib7", 5)

    def test_two_steps_of_a_job_have_two_ports(self) -> None:
        steps = [{"SLURM_JOB_ID": "77", "SLURM_STEP_ID": str(step)} for step in range(20)]
        found = set(map(port_of_step, steps))
        assert len(found) == 20
        assert min(found) >= 15_000
        assert max(found) < 30_000

    @pytest.mark.parametrize(
        ("variables", "problem"),
        [
            ({}, "no launcher has started this process as a rank: torchrun and training"),
            ({"RANK": "1"}, "WORLD_SIZE is not set"),
            ({"RANK": "x", "WORLD_SIZE": "1"}, "RANK='x' is no number from 0 up"),
            ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR is not set"),
            ({**TORCHRUN, "RANK": "8"}, "there is no rank 8 in a world of 8"),
            ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, "LOCAL_RANK is not set"),
            ({**SLURM, "SLURM_STEP_NODELIST": ""}, "set MASTER_ADDR to rank 0's machine"),
            ({**SLURM, "SLURM_NODEID": "2"}, "TASKS_PER_NODE=4,3 says nothing of node 2"),
            ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, "put srun before the command"),
            ({**TORCHRUN, "MASTER_PORT": "0"}, "MASTER_PORT=0 is no port: those are 1 to 65535"),
        ],
    )
    def test_that_make_no_sense_are_refused(self, variables: Any, problem: str) -> None:
        with pytest.raises(ValueError, match=re.escape(problem)):
            find_place(variables)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["work"], "name a function as MODULE:FUNCTION, not 'work'"),
        (["a:b", "--coordinator", "c.d"], "name a function as MODULE:FUNCTION, not 'c.d'"),
        (["a:b", "--arg", "1=2"], "a function gets arguments as --arg NAME=VALUE, not '--arg 1=2'"),
        (
            ["a:b", "--arg", "x=2"],
            "--arg is for the coordinator's function: there is no --coordinator",
        ),
        (["a:b", "--port", "65536"], "--port=65536 is no port: those are 1 to 65535"),
        (["a:b", "--start-timeout", "nan"], "--start-timeout nan is no time to wait"),
    ],
)
def test_what_is_wrong_is_said(
    arguments: list[str],
    problem: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in outer.operator_environments(1)[0].items():
        monkeypatch.setenv(name, value)
    assert cli.main(["run-rank", *arguments]) == 2
    assert capsys.readouterr().err == f"miniray run-rank: {problem}\n"


@pytest.mark.thorough
def test_ranks_are_a_process_group(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    job = Job(tmp_path, outer.operator_environments(2))
    job.start("tests.outer_work:reduce", MINIRAY_FAKE_GPUS="1")
    said = ended(job, status=0)
    assert "rank 0: 1.0" in said
    assert "rank 1: 1.0" in said


@pytest.mark.slow
class TestTorchrun:
    """The launcher itself."""

    @pytest.fixture(autouse=True)
    def needs_torch(self) -> None:
        pytest.importorskip("torch")

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        done = subprocess.run(
            [*torchrun, *arguments],
            cwd=outer.REPOSITORY,
            env=os.environ | {"MINIRAY_FAKE_GPUS": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=110,
        )
        print(done.stdout, done.stderr)
        return done

    def test_names_our_culprit_as_its_root_cause_and_starts_anew(self, tmp_path: Path) -> None:
        failed = str(tmp_path / "failed")
        coordinated = ("--coordinator", "tests.outer_work:send_file", "--arg", f"file={failed}")
        command = ("-m", "miniray", "run-rank", "tests.outer_work:fail_once", *coordinated)
        done = self.run(*command)
        assert done.returncode == 1
        cause = done.stderr.partition("Root Cause (first observed failure):")[2]
        assert re.search(r"rank +: 1 ", cause)
        assert re.search(r"exitcode +: 9 ", cause)
        assert "rank 1 on" in cause
        os.unlink(failed)
        done = self.run("--max-restarts", "1", *command)
        assert done.returncode == 0
        assert "back: hello 1 2 1 0" in done.stdout


@pytest.mark.netns
class TestTwoMachines:
    """Ranks on two machines, each with a network of its own."""

    def start(
        self, nodes: Any, folder: Path, *arguments: str, **env: str
    ) -> list[subprocess.Popen[str]]:
        """Start rank 0 on node1 and rank 1 on node2, in the folder of the examples."""
        started = []
        for rank, node in enumerate(nodes.hosts):
            place = {"RANK": str(rank), "WORLD_SIZE": "2", "MINIRAY_FAKE_GPUS": "1"}
            with (folder / f"output{rank}").open("w") as output:
                started.append(
                    nodes.popen(
                        [sys.executable, *arguments],
                        node=node,
                        cwd=outer.REPOSITORY / "examples",
                        env={**place, "MASTER_ADDR": "node1", "MASTER_PORT": "23456", **env},
                        stdout=output,
                        stderr=output,
                    )
                )
        return started

    def finish(self, nodes: Any, folder: Path, started: list[subprocess.Popen[str]]) -> list[int]:
        """Wait for the end of all; return their statuses."""
        statuses = [one.wait(T) for one in started]
        for rank in range(len(started)):
            print(f"--- {rank}:", (folder / f"output{rank}").read_text())
        nodes.wait_until_empty()
        return statuses

    @pytest.mark.thorough
    def test_the_job_of_the_kubernetes_page_runs(self, netns_nodes: Any, tmp_path: Path) -> None:
        yaml = pytest.importorskip("yaml")
        text = (outer.REPOSITORY / "examples/launchers/train.yaml").read_text()
        service, job = yaml.safe_load_all(text)
        assert job["spec"]["completions"] == job["spec"]["parallelism"]
        template = job["spec"]["template"]["spec"]
        (container,) = template["containers"]
        variables = {one["name"]: one.get("value") for one in container["env"]}
        assert variables["WORLD_SIZE"] == str(job["spec"]["completions"])
        assert variables["MASTER_ADDR"] == f"train-0.{service['metadata']['name']}"
        assert template["subdomain"] == service["metadata"]["name"]
        ours = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MINIRAY_KEY"}
        env = {name: value for name, value in variables.items() if name not in ours}
        env |= {"MINIRAY_KEY": secrets.token_hex(32)}
        python, *words = container["command"]
        assert python == "python"
        words += ["steps=2" if one == "steps=1000" else one for one in container["args"]]
        started = self.start(netns_nodes, tmp_path, *words, **env)
        assert self.finish(netns_nodes, tmp_path, started) == [0, 0]
        assert "step 2: mean loss" in (tmp_path / "output0").read_text()

    @pytest.mark.slow
    def test_torchrun_on_both_finds_rank_0_in_its_store(
        self, netns_nodes: Any, tmp_path: Path
    ) -> None:
        torchrun = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "node1:29400"]
        rank = ["-m", "miniray", "run-rank", "everywhere:work", "--coordinator", "everywhere:main"]
        started = self.start(netns_nodes, tmp_path, *torchrun, *rank, "--arg", "steps=2")
        assert self.finish(netns_nodes, tmp_path, started) == [0, 0]
        said = [(tmp_path / f"output{rank}").read_text() for rank in range(2)]
        assert "step 2: mean loss" in said[0] + said[1]

    @pytest.mark.slow
    def test_a_machine_that_is_lost_is_named_and_nothing_stays_on_it(
        self, netns_nodes: Any, tmp_path: Path
    ) -> None:
        file = tmp_path / "pids"
        coordinated = ("--coordinator", "tests.outer_work:tell_pids", "--arg", f"file={file}")
        started = self.start(netns_nodes, tmp_path, "-m", "miniray", "run-rank", WORK, *coordinated)
        poll.until(file.exists, timeout_s=T)
        with netns_nodes.cut("node2"):
            assert self.finish(netns_nodes, tmp_path, started) == [1, 1]
        assert "rank 1 on" in (tmp_path / "output0").read_text()
        assert "the coordinator has gone" in (tmp_path / "output1").read_text()
