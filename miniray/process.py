"""Fork a child, end it step by step, reap it, and say how it died."""

import contextlib
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

GRACE_S = 1.5
UNKILLABLE_S = 5.0
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


class Process:
    """A forked child, the leader of its own process group."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.exit_code: int | None = None
        self._due: list[tuple[float, int]] | None = None
        self._pidfd = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else -1

    def fileno(self) -> int:
        """Return a descriptor that is readable once the process has ended; -1 if there is none."""
        return self._pidfd

    def poll(self) -> int | None:
        """Reap the process if it has ended; return its exit code, -N for signal N, else None.

        What it left running in its process group is killed first, while the number is its own.
        """
        if self.exit_code is None and self._has_ended():
            self.signal_group(signal.SIGKILL)
            try:
                self.exit_code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            except ChildProcessError:
                self.exit_code = 255  # somebody else's wait took the status
            if self._pidfd >= 0:
                os.close(self._pidfd)
                self._pidfd = -1
        return self.exit_code

    def _has_ended(self) -> bool:
        try:
            options = os.WEXITED | os.WNOHANG | os.WNOWAIT
            return os.waitid(os.P_PID, self.pid, options) is not None
        except ChildProcessError:
            return True

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; return the exit code, raise TimeoutError after `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(f"process {self.pid} still runs after {timeout}s")
            _wait_for_end([self], left)
        return code

    def signal_group(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # gone, or a zombie
            os.killpg(self.pid, number)

    def begin_stop(self, grace_s: float) -> None:
        """Start the ladder for a process that was hung up on; call it again to hurry."""
        now = time.monotonic()
        self._due = [(now + grace_s, signal.SIGTERM), (now + 2 * grace_s, signal.SIGKILL)]

    def advance_stop(self) -> float | None:
        """Send the signals that are due; return the seconds until the next, None if no more."""
        while self._due:
            seconds = self._due[0][0] - time.monotonic()
            if seconds > 0:
                return seconds
            self.signal_group(self._due.pop(0)[1])
        return None


def stop(processes: Iterable[Process], grace_s: float = GRACE_S) -> None:
    """End processes that were hung up on: grace, SIGTERM to each group, grace, SIGKILL."""
    alive = list(processes)
    for process in alive:
        process.begin_stop(grace_s)
    deadline = time.monotonic() + 2 * grace_s + UNKILLABLE_S
    while (alive := [process for process in alive if process.poll() is None]) and (
        time.monotonic() < deadline
    ):
        steps = [process.advance_stop() for process in alive]
        _wait_for_end(alive, min(UNKILLABLE_S if step is None else step for step in steps))


def _wait_for_end(processes: list[Process], timeout: float | None) -> None:
    """Wait until one of the processes may have ended."""
    poller = select.poll()
    for process in processes:
        if process.fileno() < 0:  # no pidfd on this system: look again soon
            time.sleep(0.02)
            return
        poller.register(process.fileno(), select.POLLIN)
    poller.poll(None if timeout is None else max(timeout, 0) * 1000 + 1)


def describe(exit_code: int) -> str:
    """Say how a process ended, in words that continue its name."""
    if exit_code >= 0:
        return f"exited with status {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:  # a real-time signal has no name
        name = f"signal {-exit_code}"
    return f"was killed by {name}" + (" (probably out of memory)" if name == "SIGKILL" else "")


def fork(run: Callable[[], int], *, death_signal: int = signal.SIGKILL) -> Process:
    """Run a function in a forked child, which ends with the exit code that it returns.

    The child gets `death_signal` when this process dies (Linux; not if forked by a thread other
    than the main one, whose end the kernel would take for ours). Raises RuntimeError after CUDA
    was initialised.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise RuntimeError(
            "cannot fork: CUDA is initialised in this process and would be broken in the child; "
            "use the GPU in workers only, or start them before the first CUDA call"
        )
    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # else the child would write what is in the buffer a second time
    parent = os.getpid()
    dies_with_us = threading.current_thread() is threading.main_thread()
    pid = os.fork()
    if pid == 0:
        _run_child(run, parent, death_signal if dies_with_us else 0)
    with contextlib.suppress(PermissionError, ProcessLookupError):  # the child was faster
        os.setpgid(pid, pid)
    return Process(pid)


def _run_child(run: Callable[[], int], parent: int, death_signal: int) -> None:
    code = 1
    try:
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if death_signal:
            _prctl(PR_SET_PDEATHSIG, death_signal)
            if os.getppid() != parent:
                return  # it died before the kernel knew whom to watch
        code = run() & 0xFF  # as the kernel would: os._exit raises on what is no C int
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(option, value)


def run_with_keeper(run: Callable[[], int]) -> int:
    """Run a function in a child; when it ends, even by SIGKILL, leave no descendant of it.

    This process does nothing but wait for that.
    """
    adopt_orphans()
    child = fork(run, death_signal=signal.SIGTERM)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: os.kill(child.pid, signal.SIGTERM))
    code = child.wait()
    end_orphans()
    return code


def adopt_orphans() -> None:
    """Become the parent of every orphan below this process, whatever group it has joined."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def end_orphans() -> None:
    """Kill all children of this process, and those that it inherits from them."""
    children = f"/proc/self/task/{os.getpid()}/children"
    with contextlib.suppress(ChildProcessError):  # raised once there are no more
        while True:
            if os.path.exists(children):  # Linux has it
                for pid in Path(children).read_text().split():
                    os.kill(int(pid), signal.SIGKILL)
            os.waitpid(-1, 0)
