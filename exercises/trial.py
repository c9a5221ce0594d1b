"""Run a stage's own tests and its demo on the reader's copy, where nothing can outlive them."""

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from exercises.checking import descendants
from exercises.mine import Bench
from exercises.runner import end_all_but, parent_of_orphans
from stages import torch_here

SILENCE_S = 30.0  # a test that takes longer hangs
WHOLE_S_MAX = 600.0  # of all tests of a stage, of which the slowest takes a minute
PROCESSES_MAX = 150  # at a time; the stage with the most has some 20
LOOK_S = 0.1  # how often they are counted
FAILURES_SHOWN_MAX = 2
SAID_LINES_MAX = 4
HANGS = "it hangs"
# As python -m does, without a traceback of Ctrl-C.
DEMO = """\
import runpy, sys
del sys.argv[0]
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
except KeyboardInterrupt:
    sys.exit(130)
"""
DONE = re.compile(r"\.\.\. (?:ok|FAIL|ERROR|skipped .*)$|^(?:ok|FAIL|ERROR)$", re.MULTILINE)


@dataclass
class Failure:
    """A test of the stage that the reader's copy does not pass."""

    test: str
    happened: str
    where: list[str]  # file:line, the last call last
    said: list[str] = field(default_factory=list)  # what its processes printed meanwhile


@dataclass
class Report:
    """How a stage's tests went."""

    count: int  # of those that were begun, with those that were skipped
    seconds: float
    failures: list[Failure]
    skipped: list[str]  # why, for each test that could not run here


def run_tests(bench: Bench, tell: Callable[[int], None]) -> Report:
    """Run the tests of a stage, each of which is told as it ends; end what does not end itself."""
    argv = [sys.executable, "-u", "-m", "unittest", "discover", "-v"]
    argv += ["-s", bench.package, "-t", "."]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(bench.root)}
    started, spared = time.monotonic(), descendants()
    said, fault = b"", ""
    with parent_of_orphans():
        process = subprocess.Popen(
            argv,
            cwd=bench.root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # so that all of it can be ended
        )
        assert process.stderr
        output = process.stderr.fileno()
        try:
            heard = time.monotonic()
            while not fault:
                if select.select([output], [], [], LOOK_S)[0]:
                    heard = time.monotonic()
                    if not (piece := os.read(output, 1 << 16)):
                        process.wait(SILENCE_S)
                        break
                    said += piece
                    tell(len(DONE.findall(said.decode(errors="replace"))))
                fault = _what_is_wrong(started, heard, len(descendants() - spared))
        except subprocess.TimeoutExpired:
            fault = HANGS
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            process.stderr.close()
            end_all_but(spared)
    text = said.decode(errors="replace")
    failures = _read_failures(text, bench)
    begun = [*dict.fromkeys(re.findall(r"(?m)^(test_\w+) \(", text))]
    if fault:
        last = begun[-1] if begun else "the tests"
        failures = [one for one in failures if one.test != last]
        failures.insert(0, Failure(last, fault, []))
    if process.returncode != 0 and not failures:
        happened = (text.strip().splitlines() or ["it said nothing"])[-1]
        failures.append(Failure("the tests", happened, []))
    skipped = re.findall(r"(?m)\.\.\. skipped ['\"](.*)['\"]$", text)

    return Report(len(begun), time.monotonic() - started, failures, skipped)


def _what_is_wrong(started: float, heard: float, processes: int) -> str:
    """Return why the tests are to be ended at once; "" while they may go on."""
    now = time.monotonic()
    if processes > PROCESSES_MAX:
        return f"{processes} processes at once: a child that comes back from fork goes on as parent"
    if now - heard > SILENCE_S:
        return HANGS
    if now - started > WHOLE_S_MAX:
        return f"after {WHOLE_S_MAX:.0f} s the tests go on still"
    return ""


def _read_failures(text: str, bench: Bench) -> list[Failure]:
    """Return the failures that unittest has reported, one for each test.

    A child that goes on as the parent reports its own, and so tests may fail many times.
    """
    found: dict[str, Failure] = {}
    for block in text.split("=" * 70)[1:]:
        head = re.match(r"\s*(?:FAIL|ERROR): (\S+)(?: \((\S+)\))?", block)
        if head is None:
            continue
        block = re.split(r"(?m)^-{70}$\n\nRan ", block)[0]
        calls = re.findall(r'File "([^"]+)", line (\d+), in (\w+)', block)
        where = [
            f"{Path(file).name}:{bench.number(Path(file), int(number))} in {name}"
            for file, number, name in calls
            if Path(file).parent == bench.folder
        ]
        lines = [line for line in block.splitlines() if re.match(r"[A-Za-z_][\w.]*(:|$)", line)]
        test = head[1] if "." not in head[1] else head[1].rpartition(".")[2]
        happened = lines[-1] if lines else "it failed"
        found.setdefault(
            test, Failure(test, happened, where, _said_in(bench.translate(text), test))
        )
    return [*found.values()]


def _said_in(text: str, test: str) -> list[str]:
    """Return the end of the last traceback that a process of a test has printed while it ran."""
    ran = re.search(rf"(?ms)^{test} \(.*?(?=^test_\w+ \(|^={{70}}$|\Z)", text)
    traces = ran[0].split("Traceback (most recent call last):\n")[1:] if ran else []
    lines = re.split(r"(?m)^(?:ok|FAIL|ERROR)$", traces[-1])[0].splitlines() if traces else []
    return lines[-SAID_LINES_MAX:]


def run_demo(bench: Bench, arguments: list[str]) -> int:
    """Run the demo of a stage, and pass on what it says; return its exit status."""
    argv = [sys.executable, "-c", DEMO, f"{bench.package}.demo", *arguments]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(bench.root)}
    environment["PYTHONUNBUFFERED"] = "1"
    process = subprocess.Popen(
        argv, cwd=bench.root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        _pass_on(process, bench)
        return process.wait()
    except KeyboardInterrupt:  # the terminal has sent it to the demo, too
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        for pipe in (process.stdout, process.stderr):
            assert pipe
            pipe.close()


def _pass_on(process: "subprocess.Popen[bytes]", bench: Bench) -> None:
    """Print each line of a demo as it comes, with the reader's files in it, until it has ended."""
    assert process.stdout
    assert process.stderr
    ends = {process.stdout.fileno(): sys.stdout, process.stderr.fileno(): sys.stderr}
    begun = dict.fromkeys(ends, b"")
    ended = os.pidfd_open(process.pid)  # a process that it leaves behind may keep the pipes open
    try:
        while ready := select.select([*begun, ended], [], [])[0]:
            spoke = [end for end in ready if end != ended]
            for end in spoke:
                piece = os.read(end, 1 << 16)
                whole, newline, rest = (begun[end] + piece).rpartition(b"\n")
                said = whole + newline if piece else rest
                print(bench.translate(said.decode(errors="replace")), end="", file=ends[end])
                ends[end].flush()
                begun[end] = rest
                if not piece:
                    del begun[end]
            if not spoke:
                break
    finally:
        os.close(ended)


def missing_for(stage: int) -> str | None:
    """Return what a stage needs and this machine has not, with the remedy; None if all is there."""
    if stage == 5 and (remedy := torch_here.remedy()):
        return f"stage 5 needs torch: {remedy}"
    return None
