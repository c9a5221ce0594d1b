"""Forking, the shutdown ladder, and how a process died."""

import io
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from miniray import Worker, process
from tests import work
from tests.support import processes
from tests.support.interrupts import signalled_while_waiting

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
    # Without a buffer there would be nothing to write twice.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env)
    assert ended.stdout == "once\n", ended.stderr


@pytest.mark.parametrize("is_closed", [False, True], ids=["none", "closed"])
def test_whoever_has_no_stdout_may_fork(monkeypatch: pytest.MonkeyPatch, is_closed: bool) -> None:
    stdout = None
    if is_closed:
        stdout = io.StringIO()
        stdout.close()
    monkeypatch.setattr(sys, "stdout", stdout)
    assert process.fork(lambda: 7).wait(T) == 7


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
        stubborn.close(timeout=0.2)
        assert time.monotonic() - begun < T
        assert stubborn.wait() == -signal.SIGKILL


def test_children_of_a_worker_end_with_it() -> None:
    with Worker(work.obey) as worker:
        worker.send("grandchildren")
        _, ours, *gone = worker.recv(T)
    processes.wait_until_gone([ours])
    for pid in gone:  # they left the group; a node's keeper finds such, we do not
        os.kill(pid, signal.SIGKILL)


def test_a_status_that_somebody_else_took_is_said_to_be_unknown() -> None:
    child = process.fork(lambda: 3)
    os.waitpid(child.pid, 0)
    assert child.wait(T) == process.STATUS_TAKEN
    assert "took its status" in process.describe(process.STATUS_TAKEN)


def test_a_signal_reaches_one_that_has_no_group_yet() -> None:
    with subprocess.Popen(["sleep", "600"]) as ungrouped:
        process._kill_group(ungrouped.pid, signal.SIGKILL)
    assert ungrouped.returncode == -signal.SIGKILL


def test_a_number_that_another_process_has_now_is_not_signalled() -> None:
    """After somebody else's wait, our child's number and its group's may be a stranger's."""
    child = process.fork(lambda: 0)
    os.waitpid(child.pid, 0)
    with subprocess.Popen(["sleep", "600"], process_group=0) as stranger:
        child.pid = stranger.pid  # the kernel gives numbers out again, only not at our command
        process.stop([child], 0.0)
        child.signal_group(signal.SIGKILL)
        survived = stranger.poll() is None
        stranger.kill()
    assert survived


@pytest.mark.parametrize("threads", [8])
def test_threads_that_poll_at_once_agree_and_close_one_descriptor(threads: int) -> None:
    for status in range(1, 40):
        child = process.fork(lambda status=status: status)
        began = threading.Barrier(threads)
        codes: list[int] = []

        def poll(child: process.Process, began: threading.Barrier, codes: list[int]) -> None:
            began.wait()
            codes.append(child.wait(T))

        pollers = [
            threading.Thread(target=poll, args=(child, began, codes)) for _ in range(threads)
        ]
        for poller in pollers:
            poller.start()
        for poller in pollers:
            poller.join()
        assert codes == [status] * threads


def test_a_fork_for_which_no_descriptor_is_left_leaves_no_child() -> None:
    script = """if True:
        import contextlib, os, resource, signal
        from miniray import Worker, process
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        fill = []
        with contextlib.suppress(OSError):
            while True:
                fill.append(os.open(os.devnull, os.O_RDONLY))
        for room in range(3):  # for the halves of a socketpair, and none for a pidfd
            with contextlib.suppress(OSError):
                Worker(print) if room else process.fork(signal.pause)
                raise SystemExit(f"started with {room} descriptors left")
            os.close(fill.pop())
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)
                raise SystemExit("a child was left")
        print("refused")
    """
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (ended.stdout, ended.returncode) == ("refused\n", 0), ended.stderr


def test_an_interrupt_while_a_worker_is_closed_ends_it_at_once() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with Worker(work.obey) as stubborn:
        stubborn.send("hang")
        assert stubborn.recv(T) == "hanging"
        with signalled_while_waiting(interrupt), pytest.raises(KeyboardInterrupt):
            stubborn.close(timeout=1000.0)
        assert stubborn.wait(0) == -signal.SIGKILL


def test_workers_that_are_dropped_are_named_and_leave_nothing() -> None:
    with pytest.warns(ResourceWarning, match="Worker dropped: open.* was dropped; close it"):
        pid = Worker(work.echo, name="dropped").pid
    assert not processes.is_running(pid)


def test_a_worker_needs_a_function() -> None:
    with pytest.raises(TypeError, match="work_fn must be a function"):
        Worker("tests.work.echo")  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [signal.SIGRTMIN, 40, signal.SIGRTMAX])
def test_a_signal_without_a_name_has_its_number(number: int) -> None:
    assert str(int(number)) in process.describe(-number) or "SIGRT" in process.describe(-number)


@pytest.mark.parametrize(("status", "code"), [(256, 0), (-1, 255), (2**40 + 5, 5), (True, 1)])
def test_a_status_too_large_ends_as_in_a_shell(status: int, code: int) -> None:
    assert process.fork(lambda: status).wait(T) == code


def test_a_function_that_returns_no_status_does_not_escape(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert process.fork(lambda: None).wait(T) == 1  # type: ignore[arg-type, return-value]
    assert "TypeError" in capfd.readouterr().err


def test_a_fork_is_refused_once_cuda_is_initialised(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(RuntimeError, match="CUDA is initialised"):
        process.fork(lambda: 0)
    with pytest.raises(
        RuntimeError,
        match=r"in a notebook: restart the kernel\), or use Cluster\(\[NodeConfig.local",
    ):
        Worker(work.echo)


@pytest.mark.skipif(sys.platform != "linux", reason="PDEATHSIG is Linux's")
def test_a_child_dies_with_a_parent_killed_by_sigkill() -> None:
    script = (
        "import os, signal\nfrom miniray import process\n"
        "child = process.fork(lambda: signal.pause() or 0)\n"
        "print(child.pid, flush=True)\nsignal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert processes.is_running(child)
        parent.kill()
    processes.wait_until_gone([child], timeout_s=T)


def test_a_worker_dies_with_a_coordinator_killed_by_sigkill_though_it_ignores_sigterm() -> None:
    script = (
        "import signal\nfrom miniray import Worker\nfrom tests import work\n"
        "worker = Worker(work.obey)\nworker.send('hang')\nworker.recv(20)\n"
        "print(worker.pid, flush=True)\nsignal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert processes.is_running(worker)
        parent.kill()
    processes.wait_until_gone([worker], timeout_s=T)


def test_the_ladder_kills_the_group_of_one_that_ended_first() -> None:
    read_end, write_end = os.pipe()

    def leave_a_child() -> int:
        sleeper = subprocess.Popen(["sleep", "600"])
        os.write(write_end, f"{sleeper.pid}\n".encode())
        return 0

    assert process.fork(leave_a_child).wait(T) == 0
    sleeper = int(os.read(read_end, 100))
    os.close(read_end)
    os.close(write_end)
    processes.wait_until_gone([sleeper], timeout_s=T)


def test_a_child_starts_with_the_default_signals() -> None:
    old = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        child = process.fork(lambda: signal.pause() or 0)
    finally:
        signal.signal(signal.SIGTERM, old)
    process.stop([child], 0.2)
    # SIGTERM was enough, unless it came before the child had set its signals.
    assert child.exit_code in (-signal.SIGTERM, -signal.SIGKILL)


def test_stopping_many_takes_as_long_as_stopping_one() -> None:
    children = [process.fork(_ignore_sigterm) for _ in range(8)]
    begun = time.monotonic()
    process.stop(children, 0.3)
    assert time.monotonic() - begun < 8 * 0.6
    assert {child.exit_code for child in children} <= {-signal.SIGKILL, -signal.SIGTERM}


def _ignore_sigterm() -> int:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        signal.pause()


def test_a_child_that_is_interrupted_before_it_runs_never_gets_into_its_parents_code() -> None:
    script = (
        "import ctypes, functools, os, signal\nfrom miniray import process\n"
        # From C, so that Python notices only on the way back from os.fork.
        "press = functools.partial(getattr(ctypes.CDLL(None), 'raise'), int(signal.SIGINT))\n"
        "os.register_at_fork(after_in_child=press)\n"
        "try:\n    process.fork(lambda: 7).wait(10)\n"
        "finally:\n    print('left', flush=True)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.stdout == "left\n", ended.stderr


def test_threads_that_wait_for_the_same_process_all_hear_how_it_ended() -> None:
    for _ in range(20):
        codes: list[int] = []
        child = process.fork(lambda: 3)
        threads = [
            threading.Thread(target=lambda child, codes: codes.append(child.wait(T)), args=args)
            for args in [(child, codes)] * 3
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(T)
        assert codes == [3, 3, 3]


def test_a_system_without_pidfds_waits_and_stops_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process, "HAS_PIDFD", False)
    monkeypatch.delattr(signal, "pidfd_send_signal")
    child = process.fork(lambda: signal.pause() or 0)
    began = time.process_time()
    with pytest.raises(TimeoutError):
        child.wait(0.3)
    assert time.process_time() - began < 0.2
    process.stop([child], 0.1)
    assert child.exit_code == -signal.SIGTERM
