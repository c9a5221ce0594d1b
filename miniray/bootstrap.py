"""The first code of ours on a node: take in MiniRay, the settings, the user's modules; start.

The coordinator sends it as one line, once it has seen that Python is there; `pack` says in which
form. It may import nothing but the standard library.
"""

import os
import sys

if __name__ == "__main__":
    # `python -c` looks for modules where it is started, and at home there may be a random.py.
    try:
        here = os.getcwd()
    except OSError:  # removed meanwhile
        here = ""
    sys.path[:] = [path for path in sys.path if path not in ("", here)]

import contextlib
import fcntl
import functools
import importlib
import io
import json
import shutil
import signal
import tempfile
import zipfile
from typing import Any

SILENCE_MAX_S = 25


def pack(bootstrap: str, payload: bytes) -> bytes:
    """Return what a node reads from stdin: this file in one line, a length, the payload."""
    return f"exec({bootstrap!a})\n{len(payload)}\n".encode() + payload


def main() -> None:
    """Take in the payload, be the keeper, and remove what was unpacked."""
    with contextlib.suppress(OSError):  # sshd did it; a launcher's end shall not cut ours short
        os.setsid()
    line, _, archive = _read_payload().partition(b"\n")
    settings = json.loads(line)
    try:
        settings["folder"] = unpack(archive, settings["env"].get("TMPDIR"))
    except OSError as error:
        return report(1, settings, {"error": str(error)})
    try:
        sys.path.insert(0, settings["folder"])
        from miniray import folder_copy

        if copy := settings.pop("copy"):
            os.environ.update(settings["env"])
            tell = functools.partial(report, 1, settings)
            settings["workdir"] = folder_copy.bring_up_to_date(copy["name"], copy["files"], tell)
        module, _, function = settings.get("keep", "miniray.node_server.keep").rpartition(".")
        ended = getattr(importlib.import_module(module), function)(settings)
    except OSError as error:
        return report(1, settings, {"error": str(error)})
    finally:
        shutil.rmtree(settings["folder"], ignore_errors=True)
    report(1, settings, {"ended": ended})


def unpack(archive: bytes, parent: "str | None" = None) -> str:
    """Unpack the code into a new folder that is ours alone, and return its path.

    It is locked, shared, until this process ends: that keeps away what tidies /tmp up. Raises
    OSError, and leaves nothing, if there is no room for it.
    """
    try:
        folder = tempfile.mkdtemp(prefix="miniray-", dir=parent)
        try:
            zipfile.ZipFile(io.BytesIO(archive)).extractall(folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    except OSError as error:
        problem = f"cannot unpack the code there: {error}; set TMPDIR: NodeConfig.env or --env"
        raise OSError(problem) from error
    with contextlib.suppress(OSError):  # not every file system has locks
        fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_SH)
    return folder


def report(descriptor: int, settings: "dict[str, Any]", facts: "dict[str, Any]") -> None:
    """Tell the coordinator, in one line that nothing else on the node prints."""
    with contextlib.suppress(OSError):  # nobody is there any more
        os.write(descriptor, f"\nminiray-{settings['marker']} {json.dumps(facts)}\n".encode())


def _read_payload() -> bytes:
    # Nothing is read ahead: what follows is the lease.
    stdin: Any = sys.stdin.buffer.raw  # type: ignore[union-attr]
    payload = bytearray(int(stdin.readline()))
    have = 0
    while have < len(payload):
        signal.alarm(SILENCE_MAX_S)  # whose sender is lost does not stay
        have += stdin.readinto(memoryview(payload)[have:]) or sys.exit("its sender has gone")
    signal.alarm(0)
    return bytes(payload)


if __name__ == "__main__":
    main()
