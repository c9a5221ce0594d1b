"""Run a stage's own tests and its demo on the reader's copy, where nothing can outlive them."""

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from exercises.checking import children
from exercises.mine import Bench
from exercises.runner import end_all_but, parent_of_orphans
from stages import torch_here

SILENCE_S = 30.0  # a test that takes longer hangs
FAILURES_SHOWN_MAX = 2
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


@dataclass
class Report:
    """How a stage's tests went."""

    count: int  # with those that were skipped
    seconds: float
    failures: list[Failure]
    skipped: list[str]  # why, for each test that could not run here


def run_tests(bench: Bench, tell: Callable[[int], None]) -> Report:
    """Run the tests of a stage, each of which is told as it ends; kill what hangs."""
    argv = [sys.executable, "-u", "-m", "unittest", "discover", "-v"]
    argv += ["-s", bench.package, "-t", "."]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(bench.root)}
    started, spared = time.monotonic(), {*children()}
    said, hangs = b"", False
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
            while not hangs:
                hangs = not select.select([output], [], [], SILENCE_S)[0]
                piece = b"" if hangs else os.read(output, 1 << 16)
                if not piece:
                    break
                said += piece
                tell(len(DONE.findall(said.decode(errors="replace"))))
            if not hangs:
                process.wait(SILENCE_S)
        except subprocess.TimeoutExpired:
            hangs = True
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            process.stderr.close()
            end_all_but(spared)
    text = said.decode(errors="replace")
    failures = _read_failures(text, bench)
    if hangs:
        last = re.findall(r"(?m)^(test_\w+) \(", text)
        failures.insert(0, Failure(last[-1] if last else "the tests", "it hangs", []))
    ran = re.search(r"(?m)^Ran (\d+) tests?", text)
    if process.returncode != 0 and not failures:
        happened = (text.strip().splitlines() or ["it said nothing"])[-1]
        failures.append(Failure("the tests", happened, []))
    skipped = re.findall(r"(?m)\.\.\. skipped ['\"](.*)['\"]$", text)
    count = int(ran[1]) if ran else len(re.findall(r"(?m)^test_\w+ \(", text))  # begun, at least
    return Report(count, time.monotonic() - started, failures, skipped)


def _read_failures(text: str, bench: Bench) -> list[Failure]:
    """Return the failures that unittest has reported."""
    found = []
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
        found.append(Failure(test, lines[-1] if lines else "it failed", where))
    return found


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
