"""What a node's server can tell of a worker without the worker's help: it asks the kernel."""

import contextlib
import ctypes
import mmap
import os
import signal
import socket
import struct
import sys
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from miniray import window
from miniray.looking import gpus
from miniray.looking.stacks import is_complete
from miniray.worker_record import WorkerRecord

# Two who look at the same moment read the same stacks.
SAME_LOOK_S = 0.2
# What a stopped process gets to say where it is, before it is stopped again.
WAKE_S = 0.2
THREADS_MAX = 64
_TICKS_S = 1 / os.sysconf("SC_CLK_TCK")
_STATE, _USER_TIME, _SYSTEM_TIME, _THREADS, _PAGES = 0, 11, 12, 17, 21
# Of Linux's struct tcp_info, from byte 44 on: milliseconds since data was sent and received; and
# from byte 120 on, how many bytes the other side has acknowledged and how many came from there.
_SINCE, _BYTES = struct.Struct("=I4xI"), struct.Struct("=QQ")
_TCP_INFO_BYTES = 136
_asked: "weakref.WeakKeyDictionary[WorkerRecord, float]" = weakref.WeakKeyDictionary()
# Stopped ones that wait in the handler of HOLD_SIGNAL.
_held: "weakref.WeakSet[WorkerRecord]" = weakref.WeakSet()


def look(record: WorkerRecord, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the kernel knows of a running worker, in numbers and short words.

    With `look` "ask" it is asked to write its stacks down, and with "read" they come along.
    """
    pid, through = record.process.pid, record.output.window.descriptor
    facts = {"clock_s": time.monotonic(), **of_process(pid), **_of_connection(record.sock)}
    if gpu := gpus.of_process(pid):
        facts["gpu"] = gpu
    if through >= 0:
        _, *facts["fake_gpu_bytes"] = window.read_facts(through)
        if request["look"] == "ask" and time.monotonic() - _asked.get(record, 0.0) > SAME_LOOK_S:
            _asked[record] = time.monotonic()
            with contextlib.suppress(OSError):  # no descriptors are left, say
                _ask(record, facts["state"], wake=bool(request.get("wake")))
        if request["look"] == "read":
            facts["stacks"] = window.read_stacks(through)
            if not facts["stacks"]:
                facts["why_silent"] = why_silent(pid, through)
    return facts


def of_process(pid: int) -> dict[str, Any]:
    """Return what /proc says of a process; nothing elsewhere than on Linux.

    Only files that the kernel fills in at once: others, such as `cmdline`, wait for a process that
    is stuck in the kernel.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return {"state": ""}
    return {
        "state": fields[_STATE],
        "cpu_s": (int(fields[_USER_TIME]) + int(fields[_SYSTEM_TIME])) * _TICKS_S,
        "queued_s": _queued_s(pid),
        "threads": int(fields[_THREADS]),
        "memory_bytes": int(fields[_PAGES]) * os.sysconf("SC_PAGE_SIZE"),
    }


def _queued_s(pid: int) -> float:
    """Return how long the threads of a process have waited for a core that was others'."""
    waited_ns = 0
    with contextlib.suppress(OSError, ValueError, IndexError):  # not every kernel counts it
        for task in os.listdir(f"/proc/{pid}/task")[:THREADS_MAX]:
            waited_ns += int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[1])
    return waited_ns / 1e9


def why_silent(pid: int, through: int) -> str:
    """Say why a process is not asked, or would not answer: it has no handler for the signal, say.

    The signal would then end it. One that is being debugged would be stopped by any signal.
    """
    if not window.read_facts(through)[0]:
        return "its module has a use for the signal"
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        names = ("TracerPid:", "SigBlk:", "SigPnd:", "SigCgt:")
        tracer, *masks = (status.partition(one)[2].split()[0] for one in names)
        bits = (int(one, 16) >> (window.LOOK_SIGNAL - 1) & 1 for one in masks)
        is_blocked, waits, is_caught = map(bool, bits)
    except (OSError, ValueError, IndexError):
        return "it has ended"
    if tracer != "0":
        return f"process {tracer} is debugging it"
    if not is_caught:
        return "it has become another program, or given the signal's handler up"
    # While the handler runs it is blocked, too; but then none waits.
    return "it blocks the signal" if is_blocked and waits else ""


def _ask(record: WorkerRecord, state: str, *, wake: bool) -> None:
    """Have a worker write down where it is; a stopped one only if it is to be woken."""
    through, brake = record.output.window.descriptor, record.output.window.brake
    os.set_blocking(brake, False)
    # It has gone on since it was held the last time, or else is where it was, as is written there.
    if _drain(brake) or state != "T":
        _held.discard(record)
    if record in _held:
        return
    window.clear(through)
    if not why_silent(record.process.pid, through):
        if state != "T":
            send(record.process.pid, window.LOOK_SIGNAL)
        elif wake:
            _wake(record)


def send(pid: int, number: int) -> None:
    """Send a signal to the main thread of a process, and to no other.

    A child's number is its own until it is reaped.
    """
    try:
        ctypes.CDLL(None).tgkill(pid, pid, number)
    except AttributeError:  # a C library without it: whichever thread gets it will do
        os.kill(pid, number)


def _wake(record: WorkerRecord) -> None:
    """Have a stopped worker write down where it is, and stop it again before it does anything.

    Both signals are there when it wakes: it answers the first, and waits in the second's handler,
    because the pipe is full. Once it has been stopped again, there is room for it to go on. Its
    other threads run for that moment, as far as they do not want the GIL.
    """
    pid, through = record.process.pid, record.output.window.descriptor
    brake = record.output.window.brake
    with open(f"/proc/self/fd/{brake}", "wb", 0, opener=_open_without_waiting) as pipe:
        while pipe.write(bytes(mmap.PAGESIZE)):
            pass
    _held.add(record)
    send(pid, window.HOLD_SIGNAL)
    send(pid, window.LOOK_SIGNAL)
    os.kill(pid, signal.SIGCONT)
    _wait_briefly(lambda: is_complete(window.read_stacks(through)))
    os.kill(pid, signal.SIGSTOP)
    _wait_briefly(lambda: of_process(pid)["state"] == "T")  # before there is room to go on
    _drain(brake)


def _wait_briefly(is_done: Callable[[], bool]) -> None:
    """Wait for something that should come in a moment: the server does nothing else meanwhile."""
    until = time.monotonic() + WAKE_S
    while not is_done() and time.monotonic() < until:
        time.sleep(0.0005)


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def _drain(pipe: int) -> bool:
    """Take out all that is in a pipe; return whether there was anything."""
    found = False
    with contextlib.suppress(BlockingIOError):
        while os.read(pipe, 1 << 16):
            found = True
    return found


def _of_connection(sock: socket.socket) -> dict[str, Any]:
    """Return how much the worker has sent to the coordinator, received from it, and left unread."""
    facts: dict[str, Any] = {}
    if sys.platform != "linux" or sock.fileno() < 0:
        return facts
    import fcntl
    import termios

    waiting = fcntl.ioctl(sock.fileno(), termios.FIONREAD, b"\0" * 4)
    facts["unread_bytes"] = int.from_bytes(waiting, sys.byteorder)
    if sock.family != socket.AF_UNIX:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        sent_ms, received_ms = _SINCE.unpack_from(info, 44)
        facts |= {"sent_s_ago": sent_ms / 1000, "received_s_ago": received_ms / 1000}
        if len(info) == _TCP_INFO_BYTES:
            facts["sent_bytes"], facts["received_bytes"] = _BYTES.unpack_from(info, 120)
    return facts
