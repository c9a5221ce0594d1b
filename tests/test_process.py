"""Forking, the shutdown ladder, and how a process died."""

import os
import signal
import subprocess
import sys
import time

import pytest

from miniray import Worker, process
from tests import work
from tests.support import processes

T = 20.0


def test_exit_code_is_what_the_function_returned() -> None:
    assert process.fork(lambda: 7).wait(T) == 7


def test_an_exception_in_the_child_never_gets_out_of_it(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise SystemExit("leaving")

    assert process.fork(fail).wait(T) == 1
    assert "SystemExit: leaving" in capfd.readouterr().err


def test_output_before_the_fork_is_written_once(tmp_path: object) -> None:
    script = (
        "import os\nfrom miniray import process\n"
        "print('once')\nassert process.fork(lambda: 0).wait(10) == 0\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.stdout == "once\n", ended.stderr


def test_a_signal_is_named() -> None:
    child = process.fork(lambda: signal.pause() or 0)
    os.kill(child.pid, signal.SIGTERM)
    assert child.wait(T) == -signal.SIGTERM
    assert process.describe(-signal.SIGTERM) == "was killed by SIGTERM"
    assert process.describe(-signal.SIGKILL) == "was killed by SIGKILL (probably out of memory)"
    assert process.describe(3) == "exited with status 3"


def test_wait_has_a_deadline() -> None:
    child = process.fork(lambda: signal.pause() or 0)
    with pytest.raises(TimeoutError, match=f"process {child.pid} still runs after 0.05s"):
        child.wait(0.05)
    process.stop([child], 0.0)
    assert child.exit_code is not None


def test_the_ladder_spares_those_that_end_by_themselves() -> None:
    read_end, write_end = os.pipe()

    def until_hung_up() -> int:
        os.close(write_end)
        os.read(read_end, 1)
        return 0

    child = process.fork(until_hung_up)
    os.close(write_end)
    process.stop([child], T)
    os.close(read_end)
    assert child.exit_code == 0


def test_the_ladder_ends_with_sigkill() -> None:
    with Worker(work.obey) as stubborn:
        stubborn.send("hang")
        assert stubborn.recv(T) == "hanging"
        begun = time.monotonic()
        stubborn.close(grace=0.1)
        assert time.monotonic() - begun < T
        assert stubborn.wait() == -signal.SIGKILL


def test_children_of_a_worker_end_with_it() -> None:
    with Worker(work.obey) as worker:
        worker.send("grandchildren")
        _, ours, gone = worker.recv(T)
    processes.wait_until_gone([ours])
    os.kill(gone, signal.SIGKILL)  # it left the group; a node's keeper finds such, we do not


def test_a_status_that_somebody_else_took_is_no_crash() -> None:
    child = process.fork(lambda: 0)
    os.waitpid(child.pid, 0)
    assert child.wait(T) == 255


def test_a_keeper_leaves_nothing_of_a_killed_child() -> None:
    read_end, write_end = os.pipe()

    def spawn_and_die() -> int:
        for session in (False, True):
            sleeper = subprocess.Popen(["sleep", "600"], start_new_session=session)
            os.write(write_end, f"{sleeper.pid}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    keeper = process.fork(lambda: -process.run_with_keeper(spawn_and_die))
    assert keeper.wait(T) == signal.SIGKILL
    sleepers = [int(line) for line in os.read(read_end, 100).split()]
    os.close(read_end)
    os.close(write_end)
    assert len(sleepers) == 2
    processes.wait_until_gone(sleepers, timeout_s=T)


def test_a_worker_needs_a_function() -> None:
    with pytest.raises(TypeError, match="work_fn must be a function"):
        Worker("tests.work.echo")  # type: ignore[arg-type]
