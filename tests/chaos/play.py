"""Play a round: start a coordinator, do it, and look at how it ends and at what is left."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.chaos import rounds
from tests.support import poll, processes, ssh
from tests.support.proxy import Proxy

REPOSITORY = Path(__file__).resolve().parents[2]
BEGIN_S = 60.0  # until the moment has come, torch and all, on a busy machine
ALLOWANCE_S = 10.0  # what a busy machine may take longer than promised
STOP_S = 15.0
LOG_TAIL_LINES = 30

WORK = """\
import os
import signal
import time
from pathlib import Path

SIGNS = Path({signs!r})

def wait_for_go():
    while not (SIGNS / "go").exists():
        time.sleep(0.01)

(SIGNS / f"importing-{{os.getpid()}}").touch()
if {moment!r} == "import":
    wait_for_go()
if {moment!r} == "group":
    import torch
    import torch.distributed
    from miniray import process_group
(SIGNS / f"imported-{{os.getpid()}}").touch()

def work_fn(channel):
    order = channel.recv()
    match order["order"]:
        case "wait":
            wait_for_go()
            channel.send("done")
        case "echo":
            for message in channel:
                channel.send(message)
        case "hang":
            channel.send("hanging")
            while True:
                signal.pause()
        case "all_reduce":
            with process_group(order["config"]) as device:
                while True:
                    ones = torch.ones(1, device=device)
                    torch.distributed.all_reduce(ones)
                    channel.send(ones.item())
                    channel.recv()
"""


@dataclass
class Report:
    """What is wrong with how a round went; nothing, if all is well."""

    round: rounds.Round
    ending: str = ""
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    log: str = ""

    def __str__(self) -> str:
        first = f"{self.round}: {self.ending} after {self.seconds:.1f}s"
        return "\n".join([first, *(f"  {problem}" for problem in self.problems)])


class Player:
    """Whoever plays one round, in a folder of its own."""

    def __init__(self, one: rounds.Round, directory: Path) -> None:
        self.round, self.promise = one, rounds.promise(one)
        self.directory, self.signs = directory, directory / "signs"
        self.signs.mkdir()
        (directory / "tmp").mkdir()
        (directory / "chaos_work.py").write_text(
            WORK.format(signs=str(self.signs), moment=one.moment)
        )
        self.log = directory / "log"
        self.report = Report(one)
        self.paths_on_nodes: set[str] = set()
        self.proxy: Proxy | None = None
        self.coordinator: subprocess.Popen[bytes]

    def play(self) -> Report:
        """Play the round; nothing of it is left in the end, whatever is wrong with the code."""
        before = processes.descendants()
        with contextlib.ExitStack() as stack:
            self._launch(stack)
            try:
                self._act()
                self._see_how_it_ends()
            except TimeoutError as error:
                self._complain(str(error))
            if self.report.problems:
                self.coordinator.kill()
            self.coordinator.wait()
            self._look_for_remains(before)
            for _ in range(3):  # to kill a parent hands its children to us
                processes.end(processes.descendants() - before)
        self.report.log = self._read_events() + self.log.read_text(errors="replace")
        return self.report

    def _launch(self, stack: contextlib.ExitStack) -> None:
        one = self.round
        node: dict[str, Any] = {"num_workers": one.workers_per_node, "python": sys.executable}
        nodes = [{**node, "host": host} for host in ssh.HOSTS]
        if one.transport == "local":
            nodes = [{**fields, "launcher": ["/bin/sh", "-c"]} for fields in nodes]
        else:
            sshd = stack.enter_context(ssh.loopback_nodes(self.directory))
            for fields in nodes:
                fields |= {"ssh_options": sshd.ssh_options, "tunnel": one.transport == "tunnel"}
            if one.victim == "link":
                self.proxy = stack.enter_context(Proxy((sshd.address, sshd.port)))
                detour = f"-oPort={self.proxy.port}", f"-oHostKeyAlias=[127.0.0.1]:{sshd.port}"
                nodes[one.node]["ssh_options"] = (*sshd.ssh_options, *detour)
        settings = {
            "signs": str(self.signs),
            "moment": one.moment,
            "nodes": nodes,
            "patience_s": self.promise.patience_s,
            "start_timeout_s": self.promise.start_timeout_s,
        }
        paths = os.pathsep.join([str(REPOSITORY), str(self.directory)])
        with self.log.open("wb") as log:
            self.coordinator = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.coordinator", json.dumps(settings)],
                cwd=self.directory,
                env={**os.environ, "PYTHONPATH": paths, "TMPDIR": str(self.directory / "tmp")},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def _rank(self) -> int:
        """The first rank of the node that something happens to."""
        return self.round.node * self.round.workers_per_node

    def _act(self) -> None:
        one = self.round
        self._until(self._sessions_have_begun, "the sessions")
        match one.moment:
            case "import":
                self._until(lambda: len(self._signs("importing")) == 2, "the imports")
            case "connect":
                self._until(lambda: len(self._signs("imported")) == 2, "the end of the imports")
            case "stop":
                self._until(lambda: self._event("stopping"), "the stop")
            case "idle" | "traffic" | "group":
                self._until(lambda: self._event("runs"), "the run")
        self.acted = time.monotonic()
        if self.proxy is not None:
            self.proxy.hang_up(reset=True) if one.act == "reset" else self.proxy.silence()
        elif (victim := self._until(self._find_victim, f"a {one.victim}")) is not None:
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended by itself
                victim.send_signal(signal.Signals[one.act])
        if one.coordinator_is_stopped:
            # Nothing can be waited for: that nothing happens meanwhile is the point.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.coordinator.wait(one.stopped_s)
            self.acted = time.monotonic()
            self.coordinator.send_signal(signal.SIGCONT)
        if self.promise.goes_on:
            (self.signs / "go").touch()

    def _see_how_it_ends(self) -> None:
        limit_s = self.promise.within_s + ALLOWANCE_S
        is_over = self._has_ended
        poll.until(is_over, timeout_s=limit_s, what=f"the promised end ({self.promise})")
        with contextlib.suppress(TimeoutError):
            poll.until(lambda: self.coordinator.poll() is not None, timeout_s=STOP_S)
        status = self.coordinator.poll()
        self.report.ending, ended = self._ending(status)
        self.report.seconds = ended - self.acted
        if status is None:
            self._complain(f"the coordinator did not end within {STOP_S:.0f}s more")
        if self.report.ending not in self.promise.endings:
            self._complain(f"it ended with {self.report.ending}, not {self.promise.endings}")
        if ended - self.acted > limit_s:
            self._complain(f"that took {ended - self.acted:.1f}s, not {self.promise.within_s}")
        self._check_ranks()

    def _has_ended(self) -> bool:
        return self.coordinator.poll() is not None or self._event("ended") is not None

    def _ending(self, status: int | None) -> tuple[str, float]:
        if status is not None and status < 0:
            return "killed", time.monotonic()
        ended, stopped = self._event("ended"), self._event("stopped")
        for event, name in ((ended, "ended"), (stopped, "stopped")):
            if event is not None and event[name] != "done":
                noticed = self._event("noticed") or event
                return str(event[name]), float(noticed["time"])
        last = stopped or ended
        return ("done", float(last["time"])) if last else ("nothing", time.monotonic())

    def _check_ranks(self) -> None:
        """In a process group each rank has to name the culprit."""
        if (event := self._event("ranks")) is None or "TimeoutError" in self.promise.endings:
            return
        for rank, (error, text) in enumerate(event["ranks"]):
            if error not in rounds.ERRORS:
                self._complain(f"rank {rank} said {error}: {text[:300]}")
            elif self.round.victim == "worker" and f"rank {self._rank} at " not in text:
                self._complain(f"rank {rank} did not name rank {self._rank}: {text[:300]}")

    def _look_for_remains(self, before: set[psutil.Process]) -> None:
        temporary = self.directory / "tmp"

        def remains() -> list[str]:
            left = [one for one in processes.descendants() - before if _counts(one)]
            paths = [path for path in self.paths_on_nodes if os.path.exists(path)]
            return [
                *map(processes.describe, left),
                *(f"folder {path} on a node" for path in paths),
                *(f"{path} on the coordinator" for path in temporary.glob("miniray-*")),
            ]

        within_s = self.promise.clean_within_s
        try:
            poll.until(lambda: not remains(), timeout_s=within_s)
        except TimeoutError:
            for line in remains():
                self._complain(f"left after {within_s:.0f}s: {line}")

    def _find_victim(self) -> psutil.Process | None:
        one = self.round
        if one.victim == "coordinator":
            return psutil.Process(self.coordinator.pid)
        if one.victim == "ssh":
            return self._clients().get(ssh.HOSTS[one.node])
        if one.moment == "launch":  # any session's, as soon as there is one
            below = psutil.Process().children(recursive=True)
            return next((child for child in below if _is_session(child)), None)
        if started := self._event("pids"):
            worker = psutil.Process(started["pids"][self._rank])
            server = worker.parent()
        else:
            server = psutil.Process(self._signs("importing")[one.node])
        family = {"worker": worker} if started else {}
        assert server is not None
        family |= {"server": server, "keeper": server.parent()}
        family["sshd"] = next(filter(_is_sshd, server.parents()), None)
        return family[one.victim]

    def _clients(self) -> dict[str, psutil.Process]:
        """Return the ssh clients by the host that they went to."""
        found: dict[str, psutil.Process] = {}
        for child in psutil.Process(self.coordinator.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.name() == "ssh":
                    command = child.cmdline()
                    found |= {host: child for host in ssh.HOSTS if host in command}
                    self.paths_on_nodes |= set(re.findall(r":(/tmp/[^/ ]*)", " ".join(command)))
        return found

    def _sessions_have_begun(self) -> bool:
        if self.round.transport == "local":
            return len(psutil.Process(self.coordinator.pid).children()) >= len(ssh.HOSTS)
        return len(self._clients()) == len(ssh.HOSTS)

    def _signs(self, name: str) -> list[int]:
        found = self.signs.glob(f"{name}-*")
        return [int(path.name.partition("-")[2]) for path in sorted(found)]

    def _event(self, name: str) -> dict[str, Any] | None:
        """Return what the coordinator has written down under a name."""
        lines = self._read_events().splitlines(keepends=True)
        events = [json.loads(line) for line in lines if line.endswith("\n")]
        found: dict[str, Any] | None = next((event for event in events if name in event), None)
        return found

    def _read_events(self) -> str:
        path = self.signs / "events"
        return path.read_text() if path.exists() else ""

    def _until(self, condition: Any, what: str) -> Any:
        """Wait for a moment that comes before anything is wrong."""

        def check() -> Any:
            if self.coordinator.poll() is not None:
                raise TimeoutError(f"waiting for {what}: the coordinator has ended already")
            return condition()

        return poll.until(check, timeout_s=BEGIN_S, what=what)

    def _complain(self, problem: str) -> None:
        self.report.problems.append(problem)


def _is_sshd(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return str(process.name()).startswith("sshd")
    return False


def _counts(process: psutil.Process) -> bool:
    """Say whether it is ours to end: sshd has its own limits, and a zombie needs its parent."""
    return processes.is_running(process.pid) and not _is_sshd(process)


def _is_session(process: psutil.Process) -> bool:
    return _is_sshd(process) and process.pid not in processes.exempt_pids
