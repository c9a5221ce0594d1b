"""What is done to a victim, and what undoes it again."""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.chaos import cgroup
from tests.chaos.scene import Scene

MEMORY_BYTES = 64 << 20
# What a process may still take that is to have no more. A thread that cannot even begin for want
# of memory has Python's Thread.start wait for ever, so there has to be some for a thread or two.
ROOM_BYTES = {"coordinator": 32 << 20}


def nothing() -> None:
    """Undo what cannot be undone, or need not."""


def send(victim: psutil.Process, act: str, who: str) -> Callable[[], object]:
    """Send a process a signal, stop it for a while, or let it have no more memory."""
    with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended by itself
        if act == "memory":
            limit = victim.memory_info().vms + ROOM_BYTES.get(who, 0)
            victim.rlimit(psutil.RLIMIT_AS, (limit, -1))
            return nothing
        if act == "pause":
            victim.suspend()
            return lambda: _resume(victim)
        victim.send_signal(signal.Signals[act])
    return nothing


def _resume(victim: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        victim.resume()


def have_it_done(
    worker: psutil.Process, act: str, signs: Path, stack: contextlib.ExitStack
) -> Callable[[], object]:
    """Have a worker do something to itself."""
    if act == "oom":
        group = stack.enter_context(cgroup.limited(f"chaos-{worker.pid}", MEMORY_BYTES))
        (group / "cgroup.procs").write_text(f"{worker.pid}\n")
    (signs / "act").write_text(act)
    worker.send_signal(signal.SIGUSR1)
    return nothing


def send_strangers(server: psutil.Process, seconds: float) -> Callable[[], object]:
    """Send 3,000 strangers a second to the port that a server listens on."""
    (port,) = {
        one.laddr.port for one in server.net_connections("tcp") if one.status == psutil.CONN_LISTEN
    }
    command = [sys.executable, "-m", "tests.support.strangers", "127.0.0.1", str(port)]
    flood = subprocess.Popen([*command, f"--seconds={seconds}"], stdout=subprocess.DEVNULL)
    return flood.wait


def cut_session(scene: Scene) -> Callable[[], object]:
    """Reset the connection of a node's ssh, or let it bring nothing any more."""
    assert scene.proxy is not None
    if scene.round.act == "reset":
        scene.proxy.hang_up(reset=True)
    else:
        scene.proxy.silence()
    return nothing
