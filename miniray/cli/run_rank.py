"""What a rank of `miniray run` does: take its place, and run a script as torchrun would."""

import atexit
import contextlib
import importlib
import io
import os
import runpy
import sys
import threading
import traceback
import types
from collections.abc import Callable, Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

from miniray import Channel, NCCLConfig
from miniray.fake_gpu import has_fake_gpus, limited_memory
from miniray.nccl import note_failure
from miniray.rendezvous import environment

PRELOAD = "MINIRAY_RUN_PRELOAD"  # what a node's server imports before it forks the ranks
EXIT_S = 5.0  # what a failed rank's exit handlers may take, while the others wait to hear of it


def run_rank(channel: Channel) -> None:
    """Receive what to run and in which place, and run it; leave as a Python of its own would."""
    task = channel.recv()
    _write_through()
    if task["restart_count"]:
        print(first_line(task["run_id"], task["restart_count"]))
    config = NCCLConfig(**task["config"])
    with environment(config), _fake_gpu(config.rank):
        os.environ.update(_torchrun_environment(config, task))
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
        _forget_own_path()
        try:
            _run(channel, task)
        except BaseException as error:
            if not isinstance(error, SystemExit) or error.code:
                _fail(error)
                raise
        _leave()


def first_line(run_id: str, restarted: int | str) -> str:
    """Return the line with which a rank's output begins after a restart: what was before is old."""
    return f"{run_id}: restart {restarted} begins"


def _torchrun_environment(config: NCCLConfig, task: dict[str, Any]) -> dict[str, str]:
    """Return what torchrun sets beside a rank's place.

    There is one role, and the store is rank 0's own.
    """
    return {
        "GROUP_WORLD_SIZE": str(task["nodes"]),
        "ROLE_NAME": "default",
        "ROLE_RANK": str(config.rank),
        "ROLE_WORLD_SIZE": str(config.world_size),
        "TORCHELASTIC_RUN_ID": task["run_id"],
        "TORCHELASTIC_RESTART_COUNT": str(task["restart_count"]),
        "TORCHELASTIC_MAX_RESTARTS": str(task["max_restarts"]),
        "TORCHELASTIC_USE_AGENT_STORE": "False",
    }


def _write_through() -> None:
    """Have no output wait in a buffer, as with python -u: a rank may end at any moment."""
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(
            open(number, "wb", 0, closefd=False),  # noqa: SIM115  # they last as long as we do
            encoding="utf-8",
            errors="backslashreplace",
            write_through=True,
        )
        for number in (1, 2)
    )


@contextlib.contextmanager
def _fake_gpu(rank: int) -> Iterator[None]:
    """Limit what an optimizer may hold, if the GPUs are fake and there is a torch."""
    with contextlib.ExitStack() as undo:
        if has_fake_gpus() and "torch" in sys.modules:
            undo.enter_context(limited_memory(rank))
        yield


def _forget_own_path() -> None:
    """Have the script's own modules come before MiniRay's, which the server needed first."""
    folder = str(Path(__file__).parents[2])
    paths = os.environ.pop("PYTHONPATH", "").split(os.pathsep)
    if rest := [path for path in paths if path not in ("", folder)]:
        os.environ["PYTHONPATH"] = os.pathsep.join(rest)
    for path in (folder, os.getcwd()):
        with contextlib.suppress(ValueError):
            sys.path.remove(path)
    sys.path.append(folder)


def _run(channel: Channel, task: dict[str, Any]) -> None:
    target, arguments = task["target"], task["arguments"]
    if task["kind"] == "script":
        _run_script(target, arguments)
    else:
        sys.path.insert(0, os.getcwd())
        sys.argv = [target, *arguments]
        if task["kind"] == "module":
            runpy.run_module(target, run_name="__main__", alter_sys=True)
        else:
            _call(channel, target, task["keywords"])


def _run_script(target: str, arguments: list[str]) -> None:
    """Run a file as `python FILE ARGUMENTS` does: in a module __main__ that stays.

    runpy would take that module away again before the exit handlers run.
    """
    path = os.path.abspath(target)
    try:
        source = Path(path).read_bytes()
    except OSError as error:
        raise SystemExit(
            f"cannot read the script {target} in {os.getcwd()}: {error.strerror}; "
            "--workdir names the directory on the node"
        ) from error
    sys.argv = [target, *arguments]
    sys.path.insert(0, os.path.dirname(os.path.realpath(path)))
    main = types.ModuleType("__main__")
    vars(main).update(__file__=path, __cached__=None, __loader__=SourceFileLoader("__main__", path))
    sys.modules["__main__"] = main
    exec(compile(source, path, "exec"), vars(main))


def _call(channel: Channel, target: str, keywords: dict[str, Any]) -> None:
    """Call "module:function", and tell the coordinator what it returns."""
    module, _, name = target.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    returned = found(**keywords)
    if returned is not None:
        channel.send({"returned": repr(returned)})


def _fail(error: BaseException) -> None:
    """Print what Python would, and run the exit handlers, but not for ever: the others wait."""
    note_failure(error)
    trace = error.__traceback__
    ours = (__file__, runpy.__file__, "<frozen runpy>", importlib.__file__, "<frozen importlib")
    while trace and trace.tb_frame.f_code.co_filename.startswith(ours):
        trace = trace.tb_next
    error.__traceback__ = trace
    if not isinstance(error, SystemExit):
        try:
            sys.excepthook(type(error), error, trace)
        except Exception:  # the script's own hook may raise anything
            traceback.print_exception(error)
    handlers = threading.Thread(target=atexit._run_exitfuncs, daemon=True)
    handlers.start()
    handlers.join(EXIT_S)
    if not isinstance(error, SystemExit):
        sys.stderr = None  # it is printed; whoever ends us need not


def _leave() -> None:
    """Do what Python does at its end: wait for threads, and run the exit handlers.

    All but the last part: the process then leaves by os._exit, because a torch that is taken down
    by the interpreter now and then aborts, after all has gone well.
    """
    end_threads: Callable[[], None] = threading._shutdown  # type: ignore[attr-defined]
    end_threads()  # as in every process of multiprocessing
    atexit._run_exitfuncs()


def _preload() -> None:
    """Import what the coordinator found in the script, once, before the ranks are forked."""
    for name in os.environ.pop(PRELOAD, "").split():
        with contextlib.suppress(ImportError):  # a name in a module, or nothing that is here
            importlib.import_module(name)


_preload()
