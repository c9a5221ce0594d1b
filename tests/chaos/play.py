"""Play a round: start a coordinator, do it, and look at how it ends and at what is left."""

import contextlib
import dataclasses
import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.chaos import harm
from tests.chaos.promises import ERRORS, names_a_culprit, promise
from tests.chaos.rounds import FLOOD_LINES, RUNNING, STARTING, TOLD, Round
from tests.chaos.scene import Scene
from tests.support import poll, processes, ssh

BEGIN_S = 90.0  # until the moment has come, torch and all, on a busy machine
ALLOWANCE_S = 10.0  # what a busy machine may take longer than promised
STOP_S = 15.0
HURRY_S = 5.0  # what is granted at least for being clean, once the coordinator has ended
LOG_TAIL_LINES = 30
TEXT_CHARS_MAX = 110


@dataclass
class Report:
    """How a round went, and what is wrong with that: nothing, if all is well."""

    round: Round
    ending: str = ""
    text: str = ""  # the error, in its own words
    seconds: float = (
        0.0  # from the act to the error; of what goes on, from the act's end to its own
    )
    clean_s: float = 0.0  # from then on until nothing was left
    culprit_is_named: bool | None = None  # None where nobody asks
    left: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    log: str = ""

    def __str__(self) -> str:
        first = f"{self.round}: {self.ending} after {self.seconds:.1f}s, clean {self.clean_s:.1f}s"
        return "\n".join([first, *(f"  {problem}" for problem in self.problems)])

    def as_json(self) -> dict[str, Any]:
        """Return what a results file holds of it."""
        fields = dataclasses.asdict(self.round)
        for name in ("ending", "culprit_is_named", "left", "problems"):
            fields[name] = getattr(self, name)
        words = " ".join(self.text.split("\n")[:2])[:TEXT_CHARS_MAX]
        return {
            **fields,
            "text": re.sub(r":\d{4,5}\b", ":PORT", words),
            "seconds": round(self.seconds, 3),
            "clean_s": round(self.clean_s, 3),
        }


class Player:
    """Whoever plays one round, in a folder of its own."""

    def __init__(self, one: Round, directory: Path) -> None:
        self.round, self.promise = one, promise(one)
        self.directory = directory
        self.report = Report(one)
        self.acted = 0.0
        self.tunnel_ends: set[str] = set()
        self.scene: Scene
        self.coordinator: subprocess.Popen[Any]

    def play(self) -> Report:
        """Play the round; nothing of it is left in the end, whatever is wrong with the code."""
        before = processes.descendants()
        with contextlib.ExitStack() as stack:
            self.scene = Scene(self.round, self.directory, stack)
            if self._is_full_from_the_start:
                self.scene.fill_disk()
            self.coordinator = self.scene.start_coordinator(self.promise)
            try:
                self._wait_for_the_moment()
                self._act(stack)
                self._see_how_it_ends()
            except TimeoutError as error:
                self._complain(str(error))
            if self.report.problems:
                self.coordinator.kill()
            self.coordinator.wait()
            self._look_for_remains(before)
            for _ in range(3):  # to kill a parent hands its children to us
                processes.end(processes.descendants() - before)
            self.report.log = self._read_events() + self.scene.log.read_text(errors="replace")
        return self.report

    @property
    def _ranks(self) -> list[int]:
        """The ranks of the node that something happens to."""
        count = self.round.workers_per_node
        return list(range(self.round.node * count, (self.round.node + 1) * count))

    @property
    def _is_full_from_the_start(self) -> bool:
        return (self.round.victim, self.round.moment) == ("disk", "launch")

    def _wait_for_the_moment(self) -> None:
        if self._is_full_from_the_start:
            return
        self._until(self._sessions_have_begun, "the sessions")
        match self.round.moment:
            case "import":
                self._until(lambda: len(self._signs("importing")) == 2, "the imports")
            case "connect":
                self._until(lambda: len(self._signs("imported")) == 2, "the end of the imports")
            case "stop":
                self._until(lambda: self._event("stopping"), "the stop")
            case "idle" | "traffic" | "group":
                self._until(lambda: self._event("runs"), "the run")

    def _act(self, stack: contextlib.ExitStack) -> None:
        one = self.round
        undo = self._harm(stack)
        if one.lasts_s:
            # Nothing can be waited for: that nothing happens meanwhile is the point.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.coordinator.wait(one.lasts_s)
            undo()
            self.acted = time.monotonic()
        if self.promise.goes_on:
            (self.scene.signs / "go").touch()

    def _harm(self, stack: contextlib.ExitStack) -> Callable[[], object]:
        """Do it, and return what undoes it; `acted` is when it begins."""
        one, scene = self.round, self.scene
        process = one.victim not in ("disk", "link", "session") and one.act != "line"
        victim = self._until(self._find_victim, f"a {one.victim}") if process else None
        self.acted = time.monotonic()
        match one.victim, one.act:
            case "disk", _:
                if one.moment in RUNNING:  # and there is much to be written
                    harm.have_it_done(self._worker(), "flood", scene.signs, stack)
                return harm.nothing if self._is_full_from_the_start else scene.fill_disk()
            case "link", _:
                return scene.harm_link()
            case "session", _:
                return harm.cut_session(scene)
            case "coordinator", "line":
                return harm.nothing  # it does that by itself
            case "server", "strangers":
                return harm.send_strangers(victim, one.lasts_s)
            case "worker", act if act in TOLD:
                return harm.have_it_done(victim, one.act, scene.signs, stack)
        return harm.send(victim, one.act, one.victim)

    def _see_how_it_ends(self) -> None:
        limit_s = self.promise.within_s + ALLOWANCE_S
        is_over = self._has_ended
        poll.until(is_over, timeout_s=limit_s, what=f"the promised end ({self.promise})")
        with contextlib.suppress(TimeoutError):
            poll.until(lambda: self.coordinator.poll() is not None, timeout_s=STOP_S)
        status = self.coordinator.poll()
        self._look_at_a_line()
        self.report.ending, self.report.text, ended = self._ending(status)
        self.report.seconds = max(ended - self.acted, 0.0)
        if status is None:
            self._complain(f"the coordinator did not end within {STOP_S:.0f}s more")
        if self.report.ending not in self.promise.endings:
            self._complain(f"it ended with {self.report.ending}, not {set(self.promise.endings)}")
        if ended - self.acted > limit_s:
            self._complain(f"that took {ended - self.acted:.1f}s, not {self.promise.within_s}")
        self._check_words()

    def _has_ended(self) -> bool:
        return self.coordinator.poll() is not None or self._event("ended") is not None

    def _look_at_a_line(self) -> None:
        """Count from the Ctrl-C on, where that came by itself."""
        if (event := self._event("interrupted")) is None or not event["interrupted"]:
            return
        self.acted = float(event["when"])
        endings = [self._event(name) or {} for name in ("ended", "stopped")]
        if not any("KeyboardInterrupt" in one.values() for one in endings):
            self._complain(f"the Ctrl-C at {event['interrupted']} was swallowed")

    def _ending(self, status: int | None) -> tuple[str, str, float]:
        if status is not None and status < 0:
            return "killed", "", time.monotonic()
        ended, stopped = self._event("ended"), self._event("stopped")
        for event, name in ((ended, "ended"), (stopped, "stopped")):
            if event is not None and event[name] != "done":
                noticed = self._event("noticed") or event
                return str(event[name]), str(event["text"]), float(noticed["time"])
        last = stopped or ended
        return ("done", "", float(last["time"])) if last else ("nothing", "", time.monotonic())

    def _check_words(self) -> None:
        """Look for the culprit in the error, in a process group in every rank's."""
        one, text = self.round, self.report.text
        if self.promise.says not in text:
            self._complain(f"the error does not say {self.promise.says!r}: {text[:300]}")
        if one.moment in STARTING and self.report.ending == "ClusterError":
            self._check_nodes()
        if (one.victim, one.act) == ("worker", "flood"):
            self._check_flood()
        if not names_a_culprit(one, self.report.ending):
            return
        ranks = self._ranks[:1] if one.victim == "worker" else self._ranks
        culprit = rf"\brank ({'|'.join(map(str, ranks))}) at "
        texts = [text]
        for rank, (error, words) in enumerate((self._event("ranks") or {"ranks": []})["ranks"]):
            texts.append(words)
            if error not in ERRORS:
                self._complain(f"rank {rank} said {error}: {words[:300]}")
        wrong = [words for words in texts if not re.search(culprit, words)]
        self.report.culprit_is_named = not wrong
        if wrong:
            self._complain(f"one of {ranks} is not named: {wrong[0][:300]}")

    def _check_nodes(self) -> None:
        """Look for the node in the error of a start; at a launch an sshd may be of either."""
        one, text = self.round, self.report.text
        is_known = (one.victim, one.moment) != ("sshd", "launch")
        if is_known and one.victim not in ("coordinator", "disk"):
            self.report.culprit_is_named = f"\n  {ssh.HOSTS[one.node]}: " in text
            if not self.report.culprit_is_named:
                self._complain(f"{ssh.HOSTS[one.node]} is not named: {text[:500]}")

    def _check_flood(self) -> None:
        """Look for the flood in the log: what is not there has been counted."""
        log = self.scene.log.read_text(errors="replace")
        missing = FLOOD_LINES - log.count("] flood xxx")
        if missing and "bytes of output were dropped" not in log:
            self._complain(f"{missing} lines of the flood were lost without a word")

    def _look_for_remains(self, before: set[psutil.Process]) -> None:
        is_end = self.report.ending == "done"
        since = time.monotonic() if is_end or not self.acted else self.acted
        within_s = max(since + self.promise.clean_within_s - time.monotonic(), HURRY_S)

        def remains() -> list[str]:
            left = [one for one in processes.descendants() - before if _counts(one)]
            paths = [Path(path) for path in self.tunnel_ends if os.path.exists(path)]
            for folder in self.scene.folders.values():
                paths += folder.glob("miniray-*")
            return [*map(processes.describe, left), *(f"folder {path}" for path in paths)]

        with contextlib.suppress(TimeoutError):
            poll.until(lambda: not remains(), timeout_s=within_s)
        self.report.clean_s = time.monotonic() - since
        self.report.left = remains()
        for line in self.report.left:
            self._complain(f"left after {self.report.clean_s:.0f}s: {line}")

    def _worker(self) -> psutil.Process:
        started = self._event("pids")
        assert started is not None
        return psutil.Process(started["pids"][self._ranks[0]])

    def _find_victim(self) -> psutil.Process | None:
        one = self.round
        if one.victim == "coordinator":
            return psutil.Process(self.coordinator.pid)
        if one.victim == "ssh":
            return self._clients().get(ssh.HOSTS[one.node])
        if one.moment == "launch":  # any session's, as soon as there is one
            below = psutil.Process().children(recursive=True)
            return next((child for child in below if _is_session(child)), None)
        family = {}
        if self._event("pids"):
            family["worker"] = self._worker()
            server = family["worker"].parent()
        else:
            server = psutil.Process(self._signs("importing")[ssh.HOSTS[one.node]])
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
                    self.tunnel_ends |= tunnel_ends(command)
        return found

    def _sessions_have_begun(self) -> bool:
        if self.round.transport == "local":
            return len(psutil.Process(self.coordinator.pid).children()) >= len(ssh.HOSTS)
        return len(self._clients()) == len(ssh.HOSTS)

    def _signs(self, name: str) -> dict[str, int]:
        """Return the servers that have come so far, by their hosts."""
        found = [path.name.split("-") for path in self.scene.signs.glob(f"{name}-*")]
        return {host: int(pid) for _, host, pid in found}

    def _event(self, name: str) -> dict[str, Any] | None:
        """Return what the coordinator has written down under a name."""
        lines = self._read_events().splitlines(keepends=True)
        events = [json.loads(line) for line in lines if line.endswith("\n")]
        found: dict[str, Any] | None = next((event for event in events if name in event), None)
        return found

    def _read_events(self) -> str:
        path = self.scene.signs / "events"
        return path.read_text() if path.exists() else ""

    def _until(self, condition: Any, what: str) -> Any:
        """Wait for a moment that comes before anything is wrong."""

        def check() -> Any:
            if self.coordinator.poll() is not None:
                if self.round.act == "line":  # it is done, without us
                    return True
                raise TimeoutError(f"waiting for {what}: the coordinator has ended already")
            return condition()

        return poll.until(check, timeout_s=BEGIN_S, what=what)

    def _complain(self, problem: str) -> None:
        self.report.problems.append(problem)


def tunnel_ends(command: list[str]) -> set[str]:
    """Return the folders of the sockets that an ssh connects: one here, and one on the node."""
    return set(re.findall(r"/tmp/miniray-[^/]*", " ".join(command)))


def _is_sshd(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return str(process.name()).startswith("sshd")
    return False


def _counts(process: psutil.Process) -> bool:
    """Say whether it is ours to end: sshd has its own limits, and a zombie needs its parent."""
    return processes.is_running(process.pid) and not _is_sshd(process)


def _is_session(process: psutil.Process) -> bool:
    return _is_sshd(process) and process.pid not in processes.exempt_pids
