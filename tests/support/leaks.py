"""Find what a test left behind: processes, descriptors, ports, namespaces and directories."""

import collections
import contextlib
import gc
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.support import poll, processes

# Opened on first use by the interpreter or a library and kept for good.
LAZY_TARGETS = ("/dev/urandom", "/dev/random", "/dev/null", "/dev/tty", "/sys/devices/system/cpu")
NAMESPACES = Path("/run/netns")
TCP_LISTEN = "0A"


@dataclass(frozen=True)
class Snapshot:
    """What exists at one moment and belongs to this test process."""

    processes: frozenset[psutil.Process]
    descriptors: collections.Counter[str]
    paths: frozenset[str]


def namespace_prefix() -> str:
    """Return how the name of every namespace made here begins; parallel runs do not collide."""
    return f"mr{os.getpid()}"


def take_snapshot() -> Snapshot:
    """Note what exists now; what this process may use again is given back first."""
    if loans := sys.modules.get("miniray.loans"):
        loans.empty()
    return Snapshot(
        processes=frozenset(processes.descendants()),
        descriptors=collections.Counter(_open_targets()),
        paths=frozenset(_own_paths()),
    )


def find(before: Snapshot, *, timeout_s: float = 20.0) -> list[str]:
    """Return a line for each thing that was not there before and stays for `timeout_s`."""
    with contextlib.suppress(TimeoutError):
        poll.until(lambda: not _new_since(before), timeout_s=0.1)
        return []
    # What only a reference cycle keeps open is closed by collecting it, which is too slow to do
    # after each test.
    gc.collect()
    with contextlib.suppress(TimeoutError):
        poll.until(lambda: not _new_since(before), timeout_s=timeout_s)
    return _new_since(before)


def end_new_processes(before: Snapshot) -> None:
    """Kill every process that was not there before."""
    for _ in range(3):  # killing a parent hands its children to us: look again
        processes.end(processes.descendants() - before.processes)


def _new_since(before: Snapshot) -> list[str]:
    now = take_snapshot()
    new_descriptors = now.descriptors - before.descriptors
    listeners = _listeners() if new_descriptors else {}
    found = [processes.describe(process) for process in now.processes - before.processes]
    for target in new_descriptors.elements():
        where = f", listening on port {listeners[target]}" if target in listeners else ""
        found.append(f"descriptor of {target}{where}")
    found += [f"path {path}" for path in now.paths - before.paths]
    return sorted(found)


def _open_targets() -> list[str]:
    targets = []
    with contextlib.suppress(FileNotFoundError):  # macOS has no /proc
        for descriptor in os.listdir("/proc/self/fd"):
            # The descriptor that lists the directory is gone by now.
            with contextlib.suppress(FileNotFoundError):
                target = os.readlink(f"/proc/self/fd/{descriptor}")
                if not target.startswith(LAZY_TARGETS):
                    targets.append(target)
    return targets


def _listeners() -> dict[str, int]:
    """Return the port of each listening TCP socket by its descriptor's target."""
    ports = {}
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        with contextlib.suppress(FileNotFoundError):
            for line in Path(table).read_text().splitlines()[1:]:
                _, local, _, state, *rest = line.split()
                if state == TCP_LISTEN:
                    ports[f"socket:[{rest[5]}]"] = int(local.rpartition(":")[2], 16)
    return ports


def _own_paths() -> list[str]:
    found = list(Path(tempfile.gettempdir()).glob("miniray-*"))
    if os.environ.get("MINIRAY_CI"):
        # Where a tunnel ends on a node, whatever TMPDIR says. Elsewhere it may be somebody else's.
        found += Path("/tmp").glob("miniray-*")
    for directory in (NAMESPACES, Path("/etc/netns"), Path("/sys/class/net")):
        found += directory.glob(f"{namespace_prefix()}-*")
    return [str(path) for path in found]
