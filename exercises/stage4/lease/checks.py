"""What holding a lease means."""

import os
import signal
import time
from collections.abc import Callable
from types import ModuleType

from exercises.checking import expect, is_running, note


class Worker:
    """A child that leads a group, and a lease on it."""

    def __init__(self, run: Callable[[Callable[[bytes], object]], None]) -> None:
        self.lease, self.coordinator = os.pipe()
        self.output, say = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.setpgid(0, 0)
            os.close(self.coordinator)
            run(lambda text: os.write(say, text))
            os._exit(0)
        os.close(say)

    def hear(self) -> bytes:
        """Return what the worker says next."""
        return os.read(self.output, 100)

    def lose_the_coordinator(self) -> None:
        os.close(self.coordinator)


def _work(say: Callable[[bytes], object]) -> None:
    say(b"ready")
    while True:
        signal.pause()


def check_a_worker_that_ends(answer: ModuleType) -> None:
    """hold the lease of a worker that ends with 3, while the coordinator is well"""

    def run(say: Callable[[bytes], object]) -> None:
        os._exit(3)

    worker = Worker(run)
    note("the worker had ended, and the coordinator was well")
    code = answer.hold(worker.lease, worker.pid, 10.0)
    expect(code == 3, expected="exit code 3", happened=repr(code))


def check_a_sign_of_life(answer: ModuleType) -> None:
    """hold the lease of a worker that ends with 4 once the coordinator has sent three bytes"""

    def run(say: Callable[[bytes], object]) -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(9))
        say(b"ready")
        signal.sigtimedwait([signal.SIGUSR1], 0.3)
        os._exit(4)

    worker = Worker(run)
    worker.hear()
    os.write(worker.coordinator, b"...")
    note("the coordinator had sent three bytes, and the worker was at work")
    code = answer.hold(worker.lease, worker.pid, 0.5)
    expect(code == 4, expected="exit code 4, of its own", happened=repr(code))


def check_a_lease_that_ends(answer: ModuleType) -> None:
    """hold the lease of a worker that tidies up on SIGTERM and ends with 5; its coordinator goes"""

    def run(say: Callable[[bytes], object]) -> None:
        def tidy_up(*_: object) -> None:
            time.sleep(0.1)
            os._exit(5)

        signal.signal(signal.SIGTERM, tidy_up)
        _work(say)

    worker = Worker(run)
    worker.hear()
    worker.lose_the_coordinator()
    note("the coordinator was gone, and the worker at work")
    code = answer.hold(worker.lease, worker.pid, 10.0)
    expect(code == 5, expected="exit code 5", happened=repr(code))


def check_one_that_ignores_sigterm(answer: ModuleType) -> None:
    """hold the lease of a worker that ignores SIGTERM; its coordinator goes; 0.2 s of grace"""

    def run(say: Callable[[bytes], object]) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _work(say)

    worker = Worker(run)
    worker.hear()
    worker.lose_the_coordinator()
    note("SIGTERM had been ignored, and the grace was over")
    code = answer.hold(worker.lease, worker.pid, 0.2)
    expect(code == -9, expected="exit code -9, which is SIGKILL", happened=repr(code))


def check_the_whole_family(answer: ModuleType) -> None:
    """hold the lease of a worker with a child that ignores SIGTERM; its coordinator goes"""

    def run(say: Callable[[bytes], object]) -> None:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            _work(lambda text: say(str(os.getpid()).encode()))
        while True:
            signal.pause()

    worker = Worker(run)
    child = int(worker.hear())
    worker.lose_the_coordinator()
    note("the coordinator was gone, and the worker and its child at work")
    code = answer.hold(worker.lease, worker.pid, 0.2)
    expect(code == -15, expected="exit code -15", happened=repr(code))
    deadline = time.monotonic() + 0.5
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    expect(not is_running(child), expected="nobody left", happened="the worker's child runs on")


def check_what_a_worker_leaves(answer: ModuleType) -> None:
    """hold the lease of a worker that starts a child and ends; the coordinator is well"""

    def run(say: Callable[[bytes], object]) -> None:
        child = os.fork()
        if child == 0:
            _work(lambda text: say(str(os.getpid()).encode()))
        time.sleep(0.1)
        os._exit(3)

    worker = Worker(run)
    child = int(worker.hear())
    note("the worker had ended, and its child was at work")
    code = answer.hold(worker.lease, worker.pid, 10.0)
    expect(code == 3, expected="exit code 3", happened=repr(code))
    deadline = time.monotonic() + 0.5
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    expect(not is_running(child), expected="nobody left", happened="the worker's child runs on")
