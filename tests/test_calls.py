"""Calls: a function's name and its arguments go to a worker, and what it returns comes back."""

import asyncio
import contextlib
import functools
import itertools
import math
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy
import pytest

from miniray import (
    Channel,
    Cluster,
    ClusterError,
    NodeConfig,
    ProtocolError,
    RemoteWorker,
    Worker,
    WorkerDied,
    WorkerError,
    WorkerExited,
    WorkerFailed,
    answer_calls,
    as_completed,
    calls,
    gather,
    process_group,
)
from miniray.any_worker import AnyWorker
from miniray.calls import in_order
from miniray.extras import aio
from miniray.work_fn import name_of
from tests import called, work
from tests.support import poll, servers, ssh
from tests.support.interrupts import signalled_while_waiting

T = 30.0
REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(params=["Worker", "RemoteWorker", "Cluster"])
def worker(request: pytest.FixtureRequest) -> Iterator[AnyWorker]:
    """Return a worker that answers calls, of each kind."""
    with contextlib.ExitStack() as stack:
        if request.param == "Worker":
            yield stack.enter_context(Worker())
        elif request.param == "RemoteWorker":
            server = stack.enter_context(servers.serving(answer_calls))
            key = server.key
            yield stack.enter_context(RemoteWorker(server.host, server.port, key=key))
        else:
            cluster = stack.enter_context(Cluster([NodeConfig.local()]))
            yield cluster.start(called.square, calls=True)[0]


@pytest.fixture
def fifo(tmp_path: Path) -> str:
    os.mkfifo(tmp_path / "fifo")
    return str(tmp_path / "fifo")


def local_nodes(*counts: int) -> list[NodeConfig]:
    return [NodeConfig.local(count, host=f"node{index}") for index, count in enumerate(counts)]


class TestCall:
    def test_arguments_go_and_the_result_comes(self, worker: AnyWorker) -> None:
        assert worker.call(called.square, 3) == 9
        assert worker.call("tests.called.square", number=0.5) == 0.25
        result = worker.call(called.describe, (1, 2), [3.0], word=b"bytes", empty={})
        assert result == [((1, 2), [3.0]), {"word": b"bytes", "empty": {}}]
        numbers = worker.call(called.square, numpy.arange(1000))
        assert (numbers == numpy.arange(1000) ** 2).all()

    def test_a_function_that_python_or_a_library_has(self, worker: AnyWorker) -> None:
        assert worker.call(math.hypot, 3, 4) == 5.0
        assert worker.call(os.getpid) == worker.pid
        assert worker.call(textwrap.dedent, "  x") == "x"

    def test_an_exception_ends_the_worker_and_brings_its_traceback(self, worker: AnyWorker) -> None:
        for _ in range(2):
            with pytest.raises(WorkerFailed, match="raised ValueError: no such batch: 7") as caught:
                worker.call(called.fail, "no such batch: 7")
            first, where, line, *_ = caught.value.remote_traceback.splitlines()
            assert first == "Traceback (most recent call last):"  # and then nothing of ours
            assert where.endswith('called.py", line 21, in fail')
            assert line == "    raise ValueError(text)"
        assert worker.wait(T) == 1

    def test_an_argument_that_is_missing_has_no_traceback(self, worker: AnyWorker) -> None:
        with pytest.raises(WorkerFailed, match="raised TypeError: fail") as caught:
            worker.call(called.fail)
        said = "TypeError: fail() missing 1 required positional argument: 'text'\n"
        assert caught.value.remote_traceback == said

    def test_sys_exit_without_a_failure_returns_none(self, worker: AnyWorker) -> None:
        assert worker.call(called.leave, 0) is None
        assert worker.call(called.leave, None) is None
        with pytest.raises(WorkerFailed, match="exited with status 3") as caught:
            worker.call(called.leave, 3)
        assert caught.value.exit_code == 3

    def test_a_death_is_one(self, worker: AnyWorker) -> None:
        with pytest.raises(WorkerDied, match="killed by SIGKILL"):
            worker.call(called.die)

    def test_a_result_that_cannot_be_sent_names_the_function(self, worker: AnyWorker) -> None:
        text = r'tests\.called\.return_a_lambda returned what cannot be sent: .*\["model"\]\[0\]'
        with pytest.raises(WorkerFailed, match=text) as caught:
            worker.call(called.return_a_lambda)
        assert caught.value.remote_type == "TypeError"

    def test_an_argument_that_cannot_be_sent_leaves_the_worker_usable(
        self, worker: AnyWorker
    ) -> None:
        with pytest.raises(TypeError, match=r'message\["args"\]\[1\]\["x"\]'):
            worker.call(called.describe, 1, {"x": lambda: None})
        assert worker.call(called.square, 2) == 4

    def test_a_result_that_comes_too_late_is_not_taken_for_the_next(
        self, worker: AnyWorker, fifo: str
    ) -> None:
        text = r"has not returned from tests\.called\.read after 0\.05s; it goes on"
        with pytest.raises(TimeoutError, match=text):
            worker.call(called.read, fifo, timeout=0.05)
        Path(fifo).write_text("too late")
        assert worker.call(called.square, 3, timeout=T) == 9

    def test_the_timeout_bounds_what_a_busy_worker_does_not_take_in(
        self, worker: AnyWorker, fifo: str
    ) -> None:
        with pytest.raises(TimeoutError):
            worker.call(called.read, fifo, timeout=0.05)
        large = "x" * 32_000_000
        with pytest.raises(TimeoutError, match="half a message may be out"):
            worker.call(called.describe, large, timeout=0.3)
        assert worker.ended is not None

    def test_the_timeout_of_many_calls_does_so_too(self, worker: AnyWorker, fifo: str) -> None:
        with pytest.raises(TimeoutError):
            worker.call(called.read, fifo, timeout=0.05)
        large = "x" * 32_000_000
        with pytest.raises(TimeoutError, match="half a message may be out"):
            list(as_completed([worker], called.describe, [large], timeout=0.3))

    def test_ctrl_c_leaves_the_worker_usable(self, fifo: str) -> None:
        def interrupt() -> None:
            raise KeyboardInterrupt

        with Worker() as worker:
            with signalled_while_waiting(interrupt), pytest.raises(KeyboardInterrupt):
                worker.call(called.read, fifo)
            Path(fifo).write_text("too late")
            assert worker.call(called.square, 3, timeout=T) == 9

    def test_calls_of_several_threads_take_turns(self, worker: AnyWorker) -> None:
        def square_often(number: int) -> list[float]:
            return [worker.call(called.square, number, timeout=T) for _ in range(100)]

        with futures.ThreadPoolExecutor(4) as threads:
            assert list(threads.map(square_often, range(4))) == [[i * i] * 100 for i in range(4)]

    def test_one_thread_maps_while_another_calls(self, worker: AnyWorker) -> None:
        def square_all() -> list[float]:
            return list(in_order([worker], called.square, range(100), timeout=T))

        with futures.ThreadPoolExecutor(1) as threads:
            others = threads.submit(square_all)
            squares = [worker.call(called.square, i, timeout=T) for i in range(100)]
            assert squares == others.result(T) == [i * i for i in range(100)]

    def test_a_thread_whose_turn_does_not_come_in_time_is_told(
        self, worker: AnyWorker, fifo: str
    ) -> None:
        with futures.ThreadPoolExecutor(1) as threads:
            other = threads.submit(worker.call, called.read, fifo)
            writer = os.open(fifo, os.O_WRONLY)  # waits until the call has begun
            text = r"other threads' calls of .* took all of 0\.05s"
            with pytest.raises(TimeoutError, match=text):
                worker.call(called.square, 3, timeout=0.05)
            os.write(writer, b"read")
            os.close(writer)
            assert other.result(T) == "read"
        assert worker.call(called.square, 3, timeout=T) == 9

    def test_a_name_that_leads_nowhere_is_said(self) -> None:
        for name, text in (
            ("tests.called.sqare", r"no function 'sqare'; did you mean square\?"),
            ("tests.no_module.f", r"cannot call tests\.no_module\.f here: No module.*goes along"),
            ("square", r"MODULE\.FUNCTION"),
        ):
            with Worker() as worker, pytest.raises(WorkerFailed, match=text):
                worker.call(name)

    def test_a_worker_that_does_not_answer_calls_says_so(self) -> None:
        with Worker(work.echo) as worker, pytest.raises(ProtocolError, match="not answer calls"):
            worker.call(called.square, 3)
        with Worker() as worker:
            worker.send("hello")
            with pytest.raises(WorkerFailed, match="answers calls, and got 'hello'"):
                worker.recv(T)


class TestNames:
    def test_a_function_at_the_top_of_a_module_has_one(self) -> None:
        assert name_of(called.square) == "tests.called.square"
        assert name_of("some.name") == "some.name"
        assert name_of(math.hypot) == "math.hypot"

    @pytest.mark.parametrize(
        ("function", "text"),
        [
            (
                lambda: 3,
                "a lambda has no name; .* at the top of a module or cell: give it one with def",
            ),
            (called.make_closure(), "a lambda has no name"),
            (called.make_function(), "made anew whenever .*: move it out, and pass what it needs"),
            (called.Model().train, "a method goes with an object, which stays here"),
            (called.Model.train, "write a function that makes the object and calls it"),
            (functools.partial(called.square, 3), "it has no name"),
            (called.first_of_two, "tests.called has something else of that name, or nothing"),
            (3, "cannot call 3 in another process: it has no name"),
        ],
    )
    def test_others_are_refused_with_what_to_do(
        self, function: Callable[[], Any], text: str
    ) -> None:
        with pytest.raises(TypeError, match=text):
            Cluster([NodeConfig.local()]).run(function)
        with pytest.raises(TypeError, match=text):
            Cluster([NodeConfig.local()]).start(function)
        with Worker() as worker:
            with pytest.raises(TypeError, match=text):
                worker.call(function)
            assert worker.call(called.square, 1) == 1


def run_script(folder: Path, *words: str, **files: str) -> subprocess.CompletedProcess[str]:
    for name, text in files.items():
        file = folder / f"{name.replace('__', '/')}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(textwrap.dedent(text))
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=T,
    )


SCRIPT = """
    import os, sys
    from miniray import Cluster, NodeConfig, Worker

    WORD = "of the script" if __name__ == "__main__" else "imported"

    def add(one, other):
        return [one + other, WORD]

    def serve(channel):
        channel.send(add(5, 6))

    if __name__ == "__main__":
        with Worker() as worker:
            print(worker.call(add, 1, 2))
        with Cluster([NodeConfig.local()]) as cluster:
            print(cluster.run(add, 3, other=4))
            cluster.stop()
            print(cluster.start(serve)[0].recv(20))
"""
RAN = "[3, 'of the script']\n[[7, 'imported']]\n[11, 'imported']\n"


class TestScripts:
    def test_a_scripts_own_functions_go_by_its_files_name(self, tmp_path: Path) -> None:
        ran = run_script(tmp_path, "training.py", training=SCRIPT)
        assert (ran.stdout, ran.stderr) == (RAN, "")

    def test_from_another_folder(self, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        script = str(tmp_path / "training.py")
        run_script(tmp_path, "-c", "", training=SCRIPT)
        ran = run_script(tmp_path / "elsewhere", script)
        assert (ran.stdout, ran.stderr) == (RAN, "")

    def test_python_m_of_a_module_in_a_package(self, tmp_path: Path) -> None:
        ran = run_script(tmp_path, "-m", "package.train", package__train=SCRIPT)
        assert (ran.stdout, ran.stderr) == (RAN, "")

    def test_python_m_of_a_package(self, tmp_path: Path) -> None:
        files = {"package____init__": "", "package____main__": SCRIPT}
        for name, text in files.items():
            (tmp_path / "package").mkdir(exist_ok=True)
            file = tmp_path / "package" / f"{name.removeprefix('package__')}.py"
            file.write_text(textwrap.dedent(text))
        ran = run_script(tmp_path, "-m", "package")
        assert (ran.stdout, ran.stderr) == (RAN, "")

    def test_a_script_without_its_guard_is_told_of_it(self, tmp_path: Path) -> None:
        script = """
            from miniray import Cluster, NodeConfig

            def add(one, other):
                return one + other

            with Cluster([NodeConfig.local()]) as cluster:
                cluster.run(add, 1, 2)
        """
        ran = run_script(tmp_path, "training.py", training=script)
        assert ran.returncode == 1
        assert 'is to do below: if __name__ == "__main__":' in ran.stderr
        assert "module training starts a cluster when it is imported" in ran.stderr

    @pytest.mark.parametrize(
        ("words", "text"),
        [
            (("my.train.py",), "my.train.py cannot be imported as 'my.train'"),
            (("turtle.py",), "turtle is a module of Python's own; give yours another name"),
            (("-c", SCRIPT), "its text is not known: a call made it, or a plain prompt, a -c"),
            (("-P", "elsewhere/train.py"), "train.py cannot be imported as 'train'"),
        ],
    )
    def test_a_script_that_cannot_be_imported_says_what_to_do(
        self, tmp_path: Path, words: tuple[str, ...], text: str
    ) -> None:
        script = textwrap.dedent(SCRIPT).replace("with Worker() as worker:", "if 0:")
        if words[-1] is SCRIPT:
            words = ("-c", script)
        else:
            file = tmp_path / words[-1]
            file.parent.mkdir(exist_ok=True)
            file.write_text(script)
        ran = run_script(tmp_path, *words)
        assert ran.returncode == 1
        assert text in ran.stderr.splitlines()[-1]


class TestRun:
    def test_a_cluster_starts_by_itself_and_stays_for_the_next_run(self) -> None:
        with Cluster(local_nodes(2, 1)) as cluster:
            pids = cluster.run(os.getpid)
            assert pids == [worker.pid for worker in cluster.workers]
            assert len(set(pids)) == 3
            assert cluster.run(os.getpid) == pids
            assert cluster.run("tests.called.square", 3) == [9] * 3
            assert cluster.workers[1].call(called.square, 4) == 16

    def test_each_rank_finds_its_place(self) -> None:
        names = ("RANK", "LOCAL_RANK", "GROUP_RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE")
        with Cluster(local_nodes(2, 1)) as cluster:
            assert cluster.run(called.variables, *names) == [
                ["0", "0", "0", "2", "3"],
                ["1", "1", "0", "2", "3"],
                ["2", "0", "1", "1", "3"],
            ]
            # A single call is no rank's.
            assert cluster.workers[0].call(called.variables, "RANK") == [None]

    @pytest.mark.ssh
    def test_over_ssh_with_a_copy_of_the_folder(
        self,
        loopback_sshd: ssh.LoopbackNodes,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        (tmp_path / "project").mkdir()
        (tmp_path / "project" / "counting.py").write_text(
            "import os\ndef read(name):\n"
            "    return [open(name).read(), os.environ['RANK'], os.path.dirname(__file__)]\n"
        )
        (tmp_path / "project" / "words.txt").write_text("one two")
        monkeypatch.syspath_prepend(tmp_path / "project")
        nodes = [
            NodeConfig(
                host,
                2,
                python=sys.executable,
                ssh_options=loopback_sshd.ssh_options,
                env={"XDG_CACHE_HOME": str(tmp_path / "cache")},
            )
            for host in loopback_sshd.hosts
        ]
        with Cluster(nodes, sync=str(tmp_path / "project")) as cluster:
            answers = cluster.run("counting.read", "words.txt")
        assert [answer[:2] for answer in answers] == [["one two", str(rank)] for rank in range(4)]
        copies = [Path(answer[2]) for answer in answers]
        assert copies[0] == copies[1] != copies[2] == copies[3]
        assert {copy.parent for copy in copies} == {tmp_path / "cache" / "miniray" / "sync"}

    def test_a_large_argument_is_encoded_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        broadcasts = []
        from miniray import crew

        real = crew.broadcast
        monkeypatch.setattr(crew, "broadcast", lambda *args: [broadcasts.append(args), real(*args)])
        with Cluster(local_nodes(3)) as cluster:
            numbers = numpy.arange(500_000)
            results = cluster.run(called.square, numbers)
            assert all((result == numbers**2).all() for result in results)
        assert len(broadcasts) == 1

    def test_who_fails_is_named_and_the_next_run_starts_anew(self) -> None:
        with Cluster(local_nodes(2, 2)) as cluster:
            with pytest.raises(
                WorkerFailed, match=r"rank 2 at node1:.* raised ValueError: no such"
            ) as caught:
                cluster.run(called.fail_on, 2, timeout=T)
            assert [one.name for one in caught.traceback][1:] == ["run"]
            assert cluster.workers == []
            assert cluster.run(called.square, 3) == [9] * 4

    def test_a_timeout_names_who_has_not_returned(self, fifo: str) -> None:
        text = r"tests\.called\.hang has not returned from all ranks within 0\.2s: rank 0 at .*, r"
        with Cluster(local_nodes(2)) as cluster:
            with pytest.raises(TimeoutError, match=text):
                cluster.run(called.hang, timeout=0.2)
            assert cluster.run(called.square, 3) == [9] * 2

    def test_a_result_that_is_of_no_class_here_ends_all(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "not_imported_here.py").write_text(
            "import dataclasses, os, time\n"
            "@dataclasses.dataclass\nclass Result:\n    one: int = 1\n"
            "def work():\n    return Result() if os.environ['RANK'] == '0' else time.sleep(60)\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        with Cluster(local_nodes(2)) as cluster:
            with pytest.raises(TypeError, match="not known here"):
                cluster.run("not_imported_here.work")
            assert cluster.workers == []
            assert cluster.run(called.square, 3) == [9] * 2

    def test_arguments_that_cannot_be_sent_cost_nothing(self) -> None:
        with Cluster(local_nodes(2)) as cluster:
            pids = cluster.run(os.getpid)
            with pytest.raises(TypeError, match=r'\["args"\]\[0\]'):
                cluster.run(called.describe, lambda: 3)
            assert cluster.run(os.getpid) == pids

    def test_a_result_that_came_too_late_for_a_call_is_dropped(self, fifo: str) -> None:
        with Cluster(local_nodes(2)) as cluster:
            cluster.run(called.square, 3)
            with pytest.raises(TimeoutError):
                cluster.workers[1].call(called.read, fifo, timeout=0.05)
            Path(fifo).write_text("too late")
            assert cluster.run(called.square, 4, timeout=T) == [16, 16]

    def test_a_cluster_with_a_function_of_its_own_refuses(self) -> None:
        with Cluster(local_nodes(1)) as cluster:
            (worker,) = cluster.start(work.echo)  # the function itself, and it goes by its name
            with pytest.raises(
                RuntimeError, match=r"stop it first, or start it with start\(functi"
            ):
                cluster.run(called.square, 3)
            worker.send("still there")
            assert worker.recv(T) == "still there"

    def test_a_module_that_cannot_be_imported_there_is_a_cluster_error(self) -> None:
        with Cluster(local_nodes(1)) as cluster:
            with pytest.raises(ClusterError, match="division by zero"):
                cluster.run("tests.broken_work.work_fn")
            assert cluster.run(called.square, 3) == [9]

    @pytest.mark.thorough
    def test_ranks_join_a_process_group_by_their_environment_again_and_again(self) -> None:
        with Cluster(local_nodes(2, 1), fake_gpus=True) as cluster:
            for function in (called.add_ranks, called.add_ranks_as_under_torchrun) * 2:
                assert cluster.run(function, timeout=60) == [3.0] * 3
            with pytest.raises(WorkerFailed, match=r"rank 1 at node0:.*no such batch: 7"):
                cluster.run(called.fail_in_the_middle, 1, timeout=60)
            assert cluster.run(called.add_ranks, timeout=60) == [3.0] * 3

    def test_a_process_without_a_place_is_told_where_to_get_one(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", "29500")
        text = "'RANK' is not in its environment; give process_group a config, or call it in a fun"
        with pytest.raises(RuntimeError, match=text), process_group():
            pass


def open_if_read(fifo: str) -> int | None:
    """Open a FIFO for writing, if somebody reads it."""
    with contextlib.suppress(OSError):
        return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    return None


class TestTasks:
    def test_results_keep_the_order_of_the_tasks(self) -> None:
        with Cluster(local_nodes(2, 1)) as cluster:
            assert list(cluster.map(called.square, range(20))) == [n**2 for n in range(20)]
            assert list(cluster.map(called.square, [])) == []
            assert list(cluster.map(called.square, [3])) == [9]

    def test_results_come_as_they_are_done(self, fifo: str) -> None:
        with Cluster(local_nodes(2)) as cluster:
            results = cluster.as_completed(called.read_or_not, [fifo, *[""] * 5])
            assert list(itertools.islice(results, 5)) == [("", "at once")] * 5
            Path(fifo).write_text("at last")
            assert list(results) == [(fifo, "at last")]

    def test_a_worker_has_its_next_task_before_its_result_is_looked_at(self, fifo: str) -> None:
        with Worker() as worker:
            results = as_completed([worker], called.read_or_not, ["", fifo])
            assert next(results) == ("", "at once")
            # Nobody asks for more, and there is a reader all the same.
            writer = poll.until(functools.partial(open_if_read, fifo), timeout_s=T)
            os.write(writer, b"at last")
            os.close(writer)
            assert list(results) == [(fifo, "at last")]

    def test_a_result_that_is_early_waits_for_its_turn(self, fifo: str) -> None:
        with Cluster(local_nodes(2)) as cluster:
            results = cluster.map(called.read_or_not, [fifo, "", ""])
            writer = threading.Thread(target=lambda: Path(fifo).write_text("at last"))
            writer.start()
            assert list(results) == ["at last", "at once", "at once"]
            writer.join()

    def test_tasks_without_end_are_taken_as_they_are_needed(self) -> None:
        with Cluster(local_nodes(2)) as cluster:
            results = cluster.map(called.square, itertools.count())
            assert list(itertools.islice(results, 10)) == [n**2 for n in range(10)]
            del results  # and what is under way is dropped
            assert list(cluster.map(called.square, [7])) == [49]
            assert cluster.run(called.square, 8) == [64, 64]

    @pytest.mark.parametrize("between", ["run", "map", "call", "a part of map"])
    def test_results_that_other_calls_come_across_are_kept(self, between: str) -> None:
        with Cluster(local_nodes(2)) as cluster:
            squares = cluster.map(called.square, range(6), timeout=T)
            assert next(squares) == 0
            if between == "run":
                assert cluster.run(called.square, 7, timeout=T) == [49, 49]
            elif between == "call":
                for worker in cluster.workers:
                    assert worker.call(called.square, 7, timeout=T) == 49
            else:
                others = cluster.map(called.square, range(7, 12), timeout=T)
                for number in range(7, 12 if between == "map" else 9):
                    assert next(others) == number**2
            assert list(squares) == [1, 4, 9, 16, 25]
            assert cluster.run(called.square, 3, timeout=T) == [9, 9]

    def test_results_that_nobody_will_take_are_not_kept(self) -> None:
        with Worker() as worker:
            for number in range(3):
                squares = as_completed([worker], called.square, [number, 5], timeout=T)
                assert next(squares) == (number, number**2)
                squares.close()
            assert worker.call(called.square, 3, timeout=T) == 9
        assert not [*calls._awaited]

    def test_more_than_one_iterable_is_refused_before_anything_starts(self) -> None:
        cluster = Cluster([NodeConfig.local()])
        with pytest.raises(TypeError, match=r"only argument; pass zip\(a, b\)"):
            cluster.map(called.square, [1], [2])
        assert cluster.workers == []

    def test_a_task_that_fails_is_named(self) -> None:
        with Cluster(local_nodes(2)) as cluster:
            with pytest.raises(WorkerDied, match="killed by SIGKILL") as caught:
                list(cluster.map(called.square_or_die, [1, 2, -3, 4]))
            assert any("tests.called.square_or_die(-3)" in note for note in caught.value.__notes__)
            assert list(cluster.map(called.square_or_die, [5])) == [25]  # started anew

    def test_a_timeout_says_who_is_under_way(self) -> None:
        with Cluster(local_nodes(2)) as cluster:
            hanging = r"still at tests\.called\.hang_at after 0\.1s: rank 0 at .*, rank 1 at "
            with pytest.raises(TimeoutError, match=hanging):
                list(cluster.as_completed(called.hang_at, range(5), timeout=0.1))
            assert list(cluster.map(called.square, [3])) == [9]

    def test_local_workers_go_on_without_those_that_die(self) -> None:
        with contextlib.ExitStack() as stack:
            workers = [stack.enter_context(Worker()) for _ in range(3)]
            tasks = [1, -2, 3, 4, -5, 6, 7]
            done = dict(as_completed(workers, called.square_or_die, tasks, keep_going=True))
            assert {task: type(done[task]) for task in (-2, -5)} == dict.fromkeys(
                (-2, -5), WorkerDied
            )
            assert {task: done[task] for task in tasks if task > 0} == {
                task: task**2 for task in tasks if task > 0
            }
            text = r"none of 3 workers is left; not done: 8 and what comes after it"
            with pytest.raises(RuntimeError, match=text):
                list(as_completed(workers, called.square_or_die, [-1, -1, -1, 8], keep_going=True))


class TestGather:
    def test_one_message_from_each_in_order(self) -> None:
        with contextlib.ExitStack() as stack:
            workers = [stack.enter_context(Worker(work.echo)) for _ in range(3)]
            for number, worker in enumerate(workers):
                worker.send(number)
                worker.send("next")
            assert gather(workers, T) == [0, 1, 2]
            assert gather(reversed(workers), T) == ["next"] * 3
            assert gather([]) == []

    def test_who_has_ended_is_heard_of_though_others_are_busy(self) -> None:
        with Worker(work.echo) as busy, Worker(work.obey) as worker:
            worker.send("return")
            with pytest.raises(WorkerExited):
                gather([busy, worker])

    def test_a_timeout_names_who_is_silent(self) -> None:
        with Worker(work.echo, name="one") as one, Worker(work.echo, name="other") as other:
            one.send(1)
            with pytest.raises(TimeoutError, match=r"^other sent nothing for 0\.1s"):
                gather([one, other], timeout=0.1)


@pytest.fixture
def pair() -> Iterator[tuple[Channel, Channel]]:
    left, right = socket.socketpair()
    with Channel(left, name="left") as one, Channel(right, name="right") as other:
        yield one, other


class TestAsyncio:
    def test_two_tasks_on_two_channels_make_progress_at_once(self) -> None:
        async def main() -> None:
            with Worker() as one, Worker() as other:
                assert await asyncio.gather(
                    aio.call(one, called.square, 3), aio.call(other, called.square, 4)
                ) == [9, 16]
                # Each can go on only after the other has.
                for turn in range(20):
                    first = asyncio.create_task(aio.recv(one))
                    second = asyncio.create_task(aio.recv(other))
                    other.send(calls.make_call(called.square, turn))
                    assert (await second)["result"] == turn**2
                    assert not first.done()
                    one.send(calls.make_call(called.square, turn))
                    assert (await first)["result"] == turn**2

        asyncio.run(main())

    def test_a_cancelled_one_loses_no_message(self, pair: tuple[Channel, Channel]) -> None:
        ours, theirs = pair

        async def main() -> None:
            waiting = asyncio.create_task(aio.recv(ours))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            theirs.send("after that")
            assert await aio.recv(ours) == "after that"
            assert not asyncio.get_running_loop().remove_reader(ours.fileno())

        asyncio.run(main())

    def test_half_a_message_is_waited_for(self, pair: tuple[Channel, Channel]) -> None:
        ours, theirs = pair

        async def main() -> bytes:
            waiting = asyncio.create_task(aio.recv(ours))
            sending = asyncio.get_running_loop().run_in_executor(None, theirs.send, bytes(8 << 20))
            message: bytes = await waiting
            await sending
            return message

        assert asyncio.run(main()) == bytes(8 << 20)

    def test_a_timeout_leaves_the_channel_usable(self, pair: tuple[Channel, Channel]) -> None:
        ours, theirs = pair

        async def main() -> None:
            with pytest.raises(TimeoutError, match=r"left sent nothing for 0\.05s"):
                await aio.recv(ours, timeout=0.05)
            theirs.send(1)
            assert await aio.recv(ours, timeout=T) == 1

        asyncio.run(main())

    def test_several_tasks_wait_for_one_channel(self, pair: tuple[Channel, Channel]) -> None:
        ours, theirs = pair

        async def main() -> None:
            tasks = [asyncio.create_task(aio.recv(ours, timeout=T)) for _ in range(5)]
            await asyncio.sleep(0)
            tasks.pop(0).cancel()
            for number in range(4):
                theirs.send(number)
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED, timeout=T)
                (done,) = [task for task in tasks if task.done()]
                tasks.remove(done)
                assert done.result() == number

        # Whoever was woken and got nothing is woken for the next message, and not by a clock.
        asyncio.run(asyncio.wait_for(main(), aio.LOOK_S / 2))

    def test_the_end_is_told_and_ends_a_loop_over_messages(self) -> None:
        async def main() -> list[int]:
            def count(channel: Channel) -> None:
                for number in range(3):
                    channel.send(number)

            with Worker(count) as worker:
                numbers = [number async for number in aio.messages(worker)]
                with pytest.raises(WorkerExited):
                    await aio.recv(worker)
            with Worker() as worker, pytest.raises(WorkerFailed, match="no such batch"):
                await aio.call(worker, called.fail, "no such batch")
            return numbers

        assert asyncio.run(main()) == [0, 1, 2]

    def test_calls_of_one_worker_take_turns(self) -> None:
        async def main() -> None:
            with Worker() as worker:
                squares = (aio.call(worker, called.square, number) for number in range(10))
                assert await asyncio.gather(*squares) == [number**2 for number in range(10)]

        for _ in range(2):
            asyncio.run(main())

    def test_a_call_in_between_leaves_it_its_result(self, fifo: str) -> None:
        async def program() -> None:
            with Worker() as worker:
                first = asyncio.create_task(aio.call(worker, called.read, fifo, timeout=T))
                writer = await asyncio.to_thread(open, fifo, "w")  # waits until it has begun
                writer.write("read")
                writer.close()
                assert worker.call(called.square, 3, timeout=T) == 9
                assert await first == "read"

        asyncio.run(program())

    def test_a_call_that_is_late_is_dropped(self, fifo: str) -> None:
        async def main() -> None:
            with Worker() as worker:
                with pytest.raises(TimeoutError):
                    await aio.call(worker, called.read, fifo, timeout=0.05)
                Path(fifo).write_text("too late")
                assert await aio.call(worker, called.square, 3, timeout=T) == 9

        asyncio.run(main())

    def test_a_rank_of_a_group_that_dies_is_heard_of(self) -> None:
        async def main(cluster: Cluster) -> WorkerError:
            cluster.nccl_configs()
            waiting = asyncio.create_task(aio.recv(cluster.workers[0]))
            os.kill(cluster.workers[1].pid, signal.SIGKILL)
            try:
                await asyncio.wait_for(waiting, T)
            except WorkerError as error:
                return error
            raise AssertionError("it should have raised")

        with Cluster(local_nodes(2)) as cluster:
            cluster.start("tests.work.echo")
            assert "rank 1" in str(asyncio.run(main(cluster)))
