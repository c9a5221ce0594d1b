"""The node's side of a Cluster: the keeper, who leaves nothing behind, and the server it keeps.

sshd -> sh -> keeper -> server -> workers. The keeper runs no code of the user's and holds stdin,
the lease: when that ends, or is silent for too long, all below has to end. If the keeper itself is
killed, the server's stdin ends, and it does the same. What a worker leaves behind becomes the
server's child, and the keeper's once the server is gone.
"""

import contextlib
import ctypes
import faulthandler
import fcntl
import gc
import glob
import importlib
import ipaddress
import json
import math
import os
import select
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from miniray.bootstrap import SILENCE_MAX_S, report
from miniray.process import STOP_S, describe
from miniray.waiting import deadline_after, time_left

if TYPE_CHECKING:
    from miniray.worker_server import WorkerServer

MARGIN_S = 0.5  # what a server gets, beyond its workers' time, to end
TICK_S = 0.2  # where no pidfd tells of the server's end
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, F_SETSIG = 1, 36, 10
LINUX = sys.platform == "linux"


def keep(settings: dict[str, Any]) -> str:
    """Run the server, with the code in settings["folder"], until it ends or the lease does.

    Leaves no process of it; returns how it ended.
    """
    _adopt_orphans()
    if LINUX:
        # A byte on stdin, and its end, continue this process even if somebody has stopped it.
        fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(0, F_SETSIG, signal.SIGCONT)
        fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)
    try:
        if settings["tunnel"]:
            os.mkdir(os.path.dirname(settings["host"]), 0o700)
        env = os.environ | settings["env"]
        # Also for whatever its workers start.
        env["PYTHONPATH"] = os.pathsep.join(
            filter(None, [settings["folder"], env.get("PYTHONPATH")])
        )
        with subprocess.Popen(
            [sys.executable, "-Pc", "from miniray import node_server; node_server.serve()"],
            stdin=subprocess.PIPE,
            bufsize=0,
            cwd=os.path.expanduser(settings["workdir"] or "."),
            env=env,
            start_new_session=True,
        ) as server:
            _guard(server, settings)
            _clear_up(settings)
        return describe(server.returncode)
    except (OSError, ValueError) as error:
        raise OSError(f"its Python could not be started: {error}") from error


def _guard(server: subprocess.Popen[bytes], settings: dict[str, Any]) -> None:
    """Tell the server what to do, and return when it has ended or was told to and did not."""
    assert server.stdin is not None
    lease = server.stdin.fileno()
    _tell(lease, json.dumps(settings))
    pidfds = [os.pidfd_open(server.pid)] if hasattr(os, "pidfd_open") else []
    watched, tick = [0, *pidfds], math.inf if pidfds else TICK_S
    silent, deadline = deadline_after(SILENCE_MAX_S), math.inf
    while server.poll() is None and time_left(deadline):
        seconds = min(time_left(silent), time_left(deadline), tick)
        ready, _, _ = select.select(watched, [], [], seconds)
        _reap_orphans(lambda pid: pid == server.pid)
        said = os.read(0, 4096) if 0 in ready else b""
        if said:
            silent = deadline_after(SILENCE_MAX_S)
        if said.strip():
            timeout = float(said.split()[-1])
        elif (0 in ready and not said) or not time_left(silent):
            # Nobody is left who would wait longer.
            timeout = min(STOP_S, time_left(deadline))
            watched, silent = pidfds, math.inf
        else:
            continue
        deadline = deadline_after(timeout + MARGIN_S)
        _tell(lease, str(timeout))


def _reap_orphans(has_owner: Callable[[int], bool]) -> None:
    """Bury the orphans that have ended; what becomes of others is for their own objects to find."""
    with contextlib.suppress(ChildProcessError):
        flags = os.WEXITED | os.WNOHANG
        while ended := os.waitid(os.P_ALL, 0, flags | os.WNOWAIT):
            if has_owner(ended.si_pid):
                return
            os.waitid(os.P_PID, ended.si_pid, flags)


def _tell(lease: int, line: str) -> None:
    with contextlib.suppress(OSError):  # it has just ended
        os.write(lease, f"{line}\n".encode())


def _clear_up(settings: dict[str, Any]) -> None:
    """Kill all that is below this process, and remove the code and the tunnel's directory."""
    with contextlib.suppress(ChildProcessError):  # raised once there are no more
        while True:
            for children in glob.glob("/proc/self/task/*/children"):
                for pid in Path(children).read_text().split():
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(int(pid), signal.SIGKILL)
            os.waitpid(-1, 0)
    shutil.rmtree(settings["folder"], ignore_errors=True)
    if settings["tunnel"]:
        shutil.rmtree(os.path.dirname(settings["host"]), ignore_errors=True)


def _adopt_orphans() -> None:
    """Become the parent of every orphan below this process, whatever group it has joined."""
    if LINUX:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def serve() -> NoReturn:
    """Be the server: import the work module, report, and serve until stdin says to stop.

    One line goes to stdout: where the server listens, or what is wrong. Everything else that would
    go there goes to stderr, where the logs are.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("its keeper has gone"))
    _adopt_orphans()
    if LINUX:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # while it does not watch stdin
    stdout = os.dup(1)
    os.dup2(2, 1)
    faulthandler.enable()
    # Nothing is read ahead: what follows is the lease.
    settings = json.loads(sys.stdin.buffer.raw.readline())  # type: ignore[union-attr]
    try:
        _serve(settings, stdout)
    except (SystemExit, BrokenPipeError) as gone:
        with contextlib.suppress(OSError):  # nobody may be left to hear it
            print(gone, file=sys.stderr, flush=True)
    signal.signal(signal.SIGTERM, lambda *_: None)  # what is left to do has to be done anyway
    _clear_up(settings)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # the user's threads and exit handlers have no say here


def _serve(settings: dict[str, Any], stdout: int) -> None:
    sys.argv = [""]
    sys.path.insert(1, os.getcwd())  # after the code that was sent
    first = [os.path.abspath(one) for one in settings["import_paths"]]
    sys.path[:0] = first
    os.environ["PYTHONPATH"] = os.pathsep.join([*first, os.environ["PYTHONPATH"]])
    gc.disable()  # imports make much, and hardly any garbage
    os.environ["MINIRAY_IMPORTING"] = settings["work_fn"].rpartition(".")[0]
    server: WorkerServer | None = None
    try:
        server, facts = _make_server(settings)
    except BaseException as error:  # the user's module may raise anything
        facts = _explain(error)
    # From here on stdin tells.
    signal.signal(signal.SIGTERM, lambda *_: None)
    del os.environ["MINIRAY_IMPORTING"]
    report(stdout, settings, facts)
    os.close(stdout)
    if server is not None:
        # What is here now stays: a worker's collector would copy every page by looking at it.
        gc.freeze()
        gc.enable()
        _obey_stdin(server)
        server.serve_forever()


def _make_server(settings: dict[str, Any]) -> "tuple[WorkerServer, dict[str, Any]]":
    from miniray import cells
    from miniray.calls import answer_calls
    from miniray.work_fn import load_work_fn
    from miniray.worker_server import WorkerServer

    cells.define(settings["cells"])
    work_fn = load_work_fn(settings["work_fn"])  # also if it is to be called later
    if "torch" in sys.modules:
        # Imported once here instead of once in every worker, on their first step.
        for module in ("torch.distributed.fsdp", "torch._dynamo"):
            with contextlib.suppress(ImportError):  # a torch that was built without it
                importlib.import_module(module)
    connection = os.environ.get("SSH_CONNECTION", "")
    address = None
    with contextlib.suppress(ValueError, IndexError):  # there is none, or it is "UNKNOWN", say
        address = str(ipaddress.ip_address(connection.split()[2]))
    host = settings["host"] or address or settings["default_host"]
    if host is None:
        raise ValueError(
            "the session does not tell which address of the node it came to (SSH_CONNECTION is "
            f"{connection!r} there); set NodeConfig(address=...) or tunnel=True"
        )
    key, count = settings["key"].encode(), settings["num_workers"]
    if settings["calls"]:
        work_fn = answer_calls
    names = {"node": settings["node"], "encrypt": settings["encrypt"]}
    server = WorkerServer(work_fn, host=host, key=key, max_workers=count, **names)
    facts = {"host": host, "port": server.port, "address": address or "127.0.0.1"}
    return server, facts


def _explain(error: BaseException) -> dict[str, Any]:
    """Return what is wrong, with the traceback from the first line of the user's on."""
    trace = error.__traceback__
    # The first line of all is in no file.
    ours = ("<string>", "<frozen importlib", importlib.__file__, os.path.dirname(__file__))
    while trace and trace.tb_frame.f_code.co_filename.startswith(ours):
        trace = trace.tb_next
    facts = {"error": traceback.format_exception_only(error)[-1].strip()}
    if trace or isinstance(error, SyntaxError):
        facts["traceback"] = "".join(traceback.format_exception(error.with_traceback(trace)))
    return facts


def _obey_stdin(server: "WorkerServer") -> None:
    def on_stdin(events: int) -> None:
        said = os.read(0, 4096).split()
        if not said:  # the keeper has gone, and its part is ours
            server.loop.unwatch(0)
        server.stop(float(said[-1]) if said else STOP_S)

    def bury() -> None:
        _reap_orphans(server.has_worker)

    server.loop.watch(0, select.POLLIN, on_stdin)
    if LINUX:
        server.loop.duties.append(bury)
