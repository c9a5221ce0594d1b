"""Bring large files that have changed a little to a node by rsync, if both sides have it.

It makes a connection of its own, over the same ssh or launcher, and sends what is different in a
file. What it cannot do, the tar through the session does.
"""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence

from miniray import inherited
from miniray.node_config import NodeConfig
from miniray.waiting import time_left

TICK_S = 0.2
# Less than this, and a second connection takes longer than the file.
FILE_BYTES_MIN = 1024 * 1024

# rsync calls it with a host, which it has from us, and the words to run there.
_SHELL = (
    "import json,os,shlex,sys;"
    "w=json.loads(os.environ['MINIRAY_SHELL'])+['exec /bin/sh -c '+shlex.quote(shlex.join("
    "sys.argv[2:]))];os.execvp(w[0],w)"
)
# Dies with us, whatever ends us, and then what it has started here and there ends as well.
_RUN = (
    "import ctypes,os,sys;"
    "sys.platform=='linux'and ctypes.CDLL(None).prctl(1,9);os.execvp(sys.argv[1],sys.argv[1:])"
)


def is_here() -> bool:
    """Return whether this machine has rsync."""
    return shutil.which("rsync") is not None


def copy_files(
    config: NodeConfig,
    folder: str,
    paths: Sequence[str],
    there: str,
    deadline: float,
    tick: Callable[[], bool],
) -> str | None:
    """Copy some files of a folder to a folder on a node; return None, or what rsync says is wrong.

    `tick` is called now and then, and says whether to go on.
    """
    # --ignore-times: we know that they differ, and it would not look at parts of a second.
    shell = f'{shlex.quote(sys.executable)} -ISc "{_SHELL}"'
    program = [sys.executable, "-ISc", _RUN, "rsync", "--links", "--perms", "--times", "--from0"]
    # Files, not pipes: of those a forked child could keep the ends that somebody waits for.
    with tempfile.TemporaryFile() as names, tempfile.TemporaryFile() as said:
        names.write(b"".join(os.fsencode(path) + b"\0" for path in paths))
        names.seek(0)
        with inherited.lock:
            process = subprocess.Popen(
                [
                    *program,
                    "--files-from=-",
                    "--ignore-times",
                    "-s",
                    f"--rsh={shell}",
                    f"{folder}/",
                    f"node:{there}/",
                ],
                stdin=names,
                stdout=subprocess.DEVNULL,
                stderr=said,
                env={**os.environ, "MINIRAY_SHELL": json.dumps(config.shell("")[:-1])},
                start_new_session=True,
            )
        try:
            while tick():
                if not time_left(deadline):
                    return "it took too long"
                with contextlib.suppress(subprocess.TimeoutExpired):
                    status = process.wait(TICK_S)
                    said.seek(0)
                    words = said.read().decode(errors="replace").strip().replace("\n", "; ")
                    return f"status {status}: {words}" if status else None
            return "the start was broken off"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
