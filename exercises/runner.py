"""Run an exercise's checks on an answer, each in a process of its own that cannot outlive it."""

import compileall
import contextlib
import ctypes
import faulthandler
import importlib
import importlib.util
import json
import os
import re
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from exercises.catalogue import Exercise, WrongAnswer
from exercises.checking import Check, Wrong, children, descendants
from exercises.mine import Bench

BUDGET_S = 1.7  # for all checks of an exercise together, so that the answer comes within two
STACK_LINES_MAX = 6
OUTPUT_CHARS_MAX, OUTPUT_LINES_MAX, LINE_CHARS_MAX = 4000, 12, 90
OUTPUT_BYTES_MAX = 16 * 1024 * 1024
CHILDREN_SHOWN_MAX = 4
PR_SET_CHILD_SUBREAPER, PR_GET_CHILD_SUBREAPER = 36, 37

PASSED, WRONG, RAISED, HUNG = "passed", "wrong", "raised", "hung"


@dataclass
class Outcome:
    """How one check went."""

    check: str
    did: str
    kind: str
    expected: str = ""
    happened: str = ""
    where: str = ""  # file:line
    details: list[str] = field(default_factory=list)


class Package:
    """A package whose modules are imported when they are asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, module: str) -> ModuleType:
        return importlib.import_module(f"{self._name}.{module}")


def run(exercise: Exercise, answer: Bench, budget_s: float = BUDGET_S) -> list[Outcome]:
    """Run the checks in their order up to the first that fails; return how each went."""
    compileall.compile_dir(answer.folder, quiet=2)  # once, and not in every process
    deadline = time.monotonic() + budget_s
    outcomes: list[Outcome] = []
    with parent_of_orphans():
        for name, check in find_checks(exercise):
            outcomes.append(_run_one(name, check, answer, deadline))
            if outcomes[-1].kind != PASSED:
                break
    return outcomes


def find_checks(exercise: Exercise) -> list[tuple[str, Check]]:
    """Return an exercise's checks, in the order of its file."""
    module = load_module(exercise.folder / "checks.py", f"checks_of_{exercise.name}")
    found = [(name, value) for name, value in vars(module).items() if name.startswith("check_")]
    return [(name.removeprefix("check_"), value) for name, value in found]


def load_module(path: Path, name: str) -> ModuleType:
    """Import a file under a name of its own."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def diagnose(exercise: Exercise, outcome: Outcome) -> WrongAnswer | None:
    """Return the known mistake that a failed check looks like."""
    for one in exercise.wrong_answers:
        same = re.fullmatch(one.check, outcome.check) and one.outcome == outcome.kind
        if same and re.search(one.happened, outcome.happened):
            return one
    return None


@contextlib.contextmanager
def parent_of_orphans() -> Iterator[None]:
    """Become the parent of whatever a check leaves behind, instead of process 1."""
    libc, before = ctypes.CDLL(None), ctypes.c_int()
    libc.prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(before))
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        libc.prctl(PR_SET_CHILD_SUBREAPER, before.value)


def _run_one(name: str, check: Check, answer: Bench, deadline: float) -> Outcome:
    spared = descendants()
    did = " ".join((check.__doc__ or name).split())
    result_read, result_write = os.pipe()
    note_read, note_write = os.pipe()
    with tempfile.TemporaryFile() as stack, tempfile.TemporaryFile() as output:
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            os.close(result_read)
            os.close(note_read)
            _run_in_child(check, answer, result_write, note_write, stack, output)
        os.close(result_write)
        os.close(note_write)
        try:
            with os.fdopen(result_read, "rb") as result, os.fdopen(note_read, "rb") as notes:
                report = _wait_for_report(pid, result.fileno(), deadline)
                if report is not None:
                    outcome = Outcome(name, did, **report)
                else:
                    outcome = _describe_hang(answer, name, did, pid, stack, notes.fileno())
        finally:  # also when somebody presses Ctrl-C
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)  # at once, or it might fork faster than we kill
            end_all_but(spared)
        output.seek(0)
        said = output.read(OUTPUT_CHARS_MAX).decode(errors="replace")
        printed = answer.translate(said).splitlines()
        outcome.happened = answer.translate(outcome.happened)
        if printed and outcome.kind != PASSED:
            shown = printed[:OUTPUT_LINES_MAX]
            outcome.details += ["it printed:", *(f"  {line[:LINE_CHARS_MAX]}" for line in shown)]
    return outcome


def _wait_for_report(pid: int, result: int, deadline: float) -> dict[str, Any] | None:
    """Return what the process says of its check, or how it ended without a word; None: it hangs."""
    pidfd = os.pidfd_open(pid)
    data = b""
    watched = [result, pidfd]
    try:
        while readable := select.select(watched, [], [], max(deadline - time.monotonic(), 0))[0]:
            if result in readable:
                piece = os.read(result, 1 << 16)
                data += piece
                if data.endswith(b"\n"):
                    report: dict[str, Any] = json.loads(data)
                    return report
                if not piece:  # it has closed more than its own, and may live on
                    watched = [pidfd]
            else:
                return {"kind": RAISED, "happened": _how_it_ended(pid)}
    finally:
        os.close(pidfd)
    return None


def _run_in_child(
    check: Check, answer: Bench, result: int, notes: int, stack: Any, output: Any
) -> None:
    report: dict[str, Any] = {"kind": PASSED}
    pid = os.getpid()
    try:
        os.setpgid(0, 0)
        os.environ["MINIRAY_NOTE_FD"] = str(notes)
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", 1, closefd=False) for n in (1, 2))
        faulthandler.register(signal.SIGUSR1, file=stack)
        resource.setrlimit(resource.RLIMIT_FSIZE, (OUTPUT_BYTES_MAX, OUTPUT_BYTES_MAX))
        sys.dont_write_bytecode = True
        check(_load(answer))
    except Wrong as wrong:
        report = {"kind": WRONG, "expected": wrong.expected, "happened": wrong.happened}
        report["where"] = _last_line_in(answer, wrong.__cause__ or wrong)
    except BaseException as error:
        happened = f"{type(error).__name__}: {error}"
        report = {"kind": RAISED, "happened": happened, "where": _last_line_in(answer, error)}
    finally:
        if os.getpid() == pid:  # an answer may have let a forked child escape to here
            with contextlib.suppress(OSError):
                os.write(result, json.dumps(report).encode() + b"\n")
        os._exit(0)


def _load(answer: Bench) -> Any:
    """Return what a check calls: a package of modules, or the one file of a side exercise."""
    if not answer.package:
        (file,) = answer.folder.glob("*.py")
        return load_module(file, file.stem)
    sys.path.insert(0, str(answer.root))
    return Package(answer.package)


def _last_line_in(answer: Bench, error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        places = [(Path(error.filename), error.lineno or 0)]
    else:
        frames = traceback.extract_tb(error.__traceback__)
        places = [(Path(one.filename), one.lineno or 0) for one in frames]
    places = [(file, number) for file, number in places if file.parent == answer.folder]
    if not places:
        return ""
    file, number = places[-1]
    return f"{file.name}:{answer.number(file, number)}"


def _how_it_ended(pid: int) -> str:
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    how = f"status {status}" if status >= 0 else f"signal {signal.Signals(-status).name}"
    return f"the process that ran your code ended with {how}, in the middle of the check"


def _describe_hang(answer: Bench, name: str, did: str, pid: int, stack: Any, notes: int) -> Outcome:
    """Ask a process that hangs where it is and what it holds, before it is killed."""
    descriptors = sorted(os.listdir(f"/proc/{pid}/fd"), key=int)
    targets = [_target(pid, descriptor) for descriptor in descriptors]
    held = [target for target in targets if target.startswith(("socket", "pipe"))]
    family = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    os.kill(pid, signal.SIGUSR1)
    deadline = time.monotonic() + 0.15
    while stack.tell() == 0 and time.monotonic() < deadline:
        select.select([], [], [], 0.005)
        stack.seek(0, os.SEEK_END)
    stack.seek(0)
    lines = [line.strip() for line in stack.read().decode(errors="replace").splitlines()]
    calls = [line for line in lines if line.startswith("File ")]
    until = [number for number, line in enumerate(calls) if 'checks.py", ' in line]
    calls = calls[: until[-1] + 1 if until else STACK_LINES_MAX]  # what called that is ours
    calls = [_in_the_readers_lines(line, answer) for line in calls]
    mine = next((line for line in calls if f'File "{answer.folder}/' in line), "")
    match = re.search(r'File ".*?([^/"]+)", line (\d+) in (\w+)', mine)
    said = b""
    while select.select([notes], [], [], 0)[0] and (piece := os.read(notes, 4096)):
        said += piece
    standing = said.decode().rstrip().rpartition("\n")[2]
    happened = f"hung in {match[3]}" if match else "hung"
    return Outcome(
        name,
        did,
        HUNG,
        expected="an answer",
        happened=f"{happened}: {standing}" if standing else happened,
        where=f"{match[1]}:{match[2]}" if match else "",
        details=[
            "the stack, innermost first:",
            *(f"  {_shorten(line)}" for line in calls[:STACK_LINES_MAX]),
            f"open sockets and pipes: {len(held)}; pids of children: {_list(family)}",
        ],
    )


def _in_the_readers_lines(line: str, answer: Bench) -> str:
    """Return a line of a traceback with the number that it has in the reader's file."""
    match = re.search(r'File "([^"]+)", line (\d+)', line)
    if match is None or Path(match[1]).parent != answer.folder:
        return line
    number = answer.number(Path(match[1]), int(match[2]))
    return line.replace(f'", line {match[2]}', f'", line {number}')


def _list(pids: list[str]) -> str:
    more = len(pids) - CHILDREN_SHOWN_MAX
    shown = " ".join(pids[:CHILDREN_SHOWN_MAX]) or "none"
    return f"{shown} and {more} more" if more > 0 else shown


def _shorten(line: str) -> str:
    return re.sub(r'File ".*/', 'File "', line)


def _target(pid: int, descriptor: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/fd/{descriptor}")
    except OSError:
        return ""


def end_all_but(spared: set[int]) -> None:
    """Kill and reap the children of this process, and what it inherits from them.

    Processes that fork faster than we kill are stopped first, and killed once none is born.
    `spared` are pids of descendants.
    """
    while left := {*children()} - spared:
        stopped: set[int] = set()
        while born := descendants() - spared - stopped:
            for pid in born:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            stopped |= born
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in left:
            os.waitpid(pid, 0)
