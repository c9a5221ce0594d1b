"""One node's visit: a session as a cluster would start it, and the probe's answers through it.

Each step has its own limit, so that a node that is not there costs no more than that.
"""

import contextlib
import dataclasses
import json
import os
import random
import re
import secrets
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from miniray import pacemaker
from miniray.cli import doctor_probe
from miniray.cli.doctor_findings import Findings
from miniray.node_config import NodeConfig, quote_path
from miniray.session import TOO_MANY, source_of
from miniray.worker_log import printable

NOISE_LINES_MAX, NOISE_BYTES_MAX = 200, 1 << 20
TICK_S, END_S, AGAIN_S = 0.05, 0.4, 1.0
# Parts of the time that there is.
CONNECT, ANSWER, MEET, END, TRY = 0.4, 0.48, 0.6, 0.92, 0.15
OTHER_ADDRESSES_MAX = 3


class Limits:
    """When each step of all visits has to be over, in seconds since they began."""

    def __init__(self, total_s: float) -> None:
        self.began, self.is_over = time.monotonic(), False
        self.total_s = total_s
        self.connect_s = max(1, int(CONNECT * total_s))  # ssh's own, in whole seconds
        self.answer_s, self.meet_s = ANSWER * total_s, MEET * total_s
        self.end_s, self.try_s = END * total_s, TRY * total_s  # the latter for one address

    def passed(self) -> float:
        """Return how many seconds have passed."""
        return time.monotonic() - self.began

    def left(self, step_s: float) -> float:
        """Return how many seconds are left until a step has to be over; none once all is over."""
        return 0.0 if self.is_over else max(0.0, step_s - self.passed())


class Meeting:
    """Where visits wait until each node listens, or will not."""

    def __init__(self, names: list[str]) -> None:
        self._missing, self._needed, self._lock = set(names), set(names), threading.Lock()
        self._peers: dict[str, list[dict[str, Any]]] = {}

    def bring(self, name: str, peers: list[dict[str, Any]]) -> None:
        """Say how a node is reached by the others; not at all, if there are no `peers`."""
        with self._lock:
            self._missing.discard(name)
            self._peers.setdefault(name, peers)

    def is_complete(self) -> bool:
        """Return whether nobody is missing."""
        return not self._missing

    def part(self, name: str) -> None:
        """Say that a node needs the others no more."""
        with self._lock:
            self._needed.discard(name)

    def is_over(self) -> bool:
        """Return whether nobody needs anybody."""
        return not self._needed

    def others(self, name: str) -> list[dict[str, Any]]:
        """Return how those are reached that have come so far, without one of them."""
        with self._lock:
            return [one for other, some in self._peers.items() if other != name for one in some]


class Visit:
    """A look at one node; `findings` grows while it runs."""

    def __init__(
        self, findings: Findings, settings: dict[str, Any], limits: Limits, meeting: Meeting
    ) -> None:
        self.findings, self.doing = findings, "connecting"
        self._limits, self._meeting = limits, meeting
        self._number = secrets.randbits(60)
        self._marker, self._token = f"miniray-{self._number}", secrets.token_hex(16)
        self._settings = settings
        findings.num_places = len(settings["places"])
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = {"stdout": b"", "stderr": b""}
        self._got = 0.0  # when the last bytes came
        self._socket = ""
        self._threads: list[threading.Thread] = []

    def run(self) -> None:
        """Visit the node. What went wrong there is no error, but among the findings."""
        try:
            self._try_once()
            # Of many sessions at a time, some sshds turn a part away.
            while self._is_turned_away() and self._limits.left(self._limits.answer_s) > AGAIN_S:
                time.sleep(random.uniform(0.3, AGAIN_S))
                self.findings.said.clear()
                self.findings.exit_status = None
                self._try_once()
        except OSError as error:  # of this machine: it may have no more processes
            self.findings.said.append(f"cannot run {error.filename}: {error.strerror}")
            self.findings.exit_status = 127
        finally:
            self._meeting.bring(self.findings.name, [])
            self._meeting.part(self.findings.name)
            self.doing = ""
            self.findings.seconds = self._limits.passed()

    def _try_once(self) -> None:
        try:
            with contextlib.suppress(TimeoutError, EOFError, BrokenPipeError):
                self._start()
                self._go_through()
        finally:
            self._end()

    def _is_turned_away(self) -> bool:
        ended = self.findings.exit_status is not None and not self.findings.has_shell
        return ended and self.findings.find(TOO_MANY) is not None

    def _start(self) -> None:
        """Start a session as a cluster would, its pacemaker included, and a tunnel with it."""
        config = self.findings.config
        more = []
        self._settings["socket"] = ""
        if config.launcher is None:
            # In /tmp, as a cluster's: a socket's path is short.
            self._socket = f"/tmp/miniray-{secrets.token_hex(8)}/server"
            self._settings["socket"] = f"/tmp/miniray-{secrets.token_hex(16)}/server"
            more = ["-v", f"-L{self._socket}:{self._settings['socket']}"]
        command = with_limit(config, self._limits.connect_s).shell(
            _line(config, self._number), *more
        )
        self._process = subprocess.Popen(
            [sys.executable, "-ISc", source_of(pacemaker), self._socket, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )

    def _go_through(self) -> None:
        findings, limits = self.findings, self._limits
        self._read_until(lambda: findings.version is not None, limits.answer_s)
        self.doing = "looking"
        own = {"marker": self._marker, "token": self._token, "life_s": int(limits.total_s) + 10}
        own["import_s"] = max(1.0, limits.left(limits.end_s) - 1.0)
        settings = json.dumps({**self._settings, **own})
        self._write(f"exec({source_of(doctor_probe)!a})\n{settings}\n")
        with contextlib.suppress(TimeoutError):  # what has not come by then is missing in the facts
            self._meet_the_others()
        self._meeting.bring(findings.name, [])
        self._meeting.part(findings.name)
        self.doing = "importing " + ", ".join(self._settings["modules"])
        places = [f"place{number}" for number in range(len(self._settings["places"]))]
        self._wait_for_facts(*places, "memory", "gpus", "modules", step_s=limits.end_s)
        self._read_until(lambda: not self._tries() and self._meeting.is_over(), limits.end_s)

    def _meet_the_others(self) -> None:
        findings, limits = self.findings, self._limits
        self._wait_for_facts("listening", "system", "network", step_s=limits.meet_s)
        self._ask_for_clock()
        self._try_from_here()
        self._meeting.bring(findings.name, self._describe_to_peers())
        with contextlib.suppress(TimeoutError):  # those that are late are not met
            self._read_until(self._meeting.is_complete, limits.meet_s)
        self.doing = "reaching the others"
        peers = self._meeting.others(findings.name)
        self._ask("peers", {"peers": peers, "limit_s": limits.try_s})
        self._wait_for_facts("peers", step_s=limits.end_s)

    def _wait_for_facts(self, *names: str, step_s: float) -> None:
        facts = self.findings.facts
        self._read_until(lambda: all(name in facts for name in names), step_s)

    def _tries(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def _ask(self, question: str, about: Any = None) -> None:
        self._write(json.dumps({"ask": question, "about": about}) + "\n")

    def _write(self, text: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        data = memoryview(text.encode())
        while data:
            data = data[self._process.stdin.write(data) or 0 :]

    def _ask_for_clock(self) -> None:
        """Compare the clocks: the node's time belongs between our question and its answer."""
        findings = self.findings
        before, started = time.time(), time.monotonic()
        self._ask("clock")
        self._wait_for_facts("clock", step_s=self._limits.meet_s)
        took = self._got - started
        findings.clock_ahead_s = findings.facts["clock"]["time"] - (before + took / 2)
        findings.clock_error_s = took / 2

    def _try_from_here(self) -> None:
        findings, port = self.findings, self.findings.facts["listening"].get("port")

        def try_addresses() -> None:
            for address in findings.addresses()[: OTHER_ADDRESSES_MAX + 1]:
                where = address, port, self._token
                found = doctor_probe.try_to_reach(*where, limit_s=self._limits.try_s)
                findings.reached[address] = found
                if found["how"] == "ok":
                    break

        def try_tunnel() -> None:
            where = self._socket, 0, self._token
            findings.tunnel = doctor_probe.try_to_reach(*where, limit_s=self._limits.try_s)

        tries = [try_addresses] * bool(port) + [try_tunnel] * bool(self._socket)
        self._threads = [threading.Thread(target=one, daemon=True) for one in tries]
        for thread in self._threads:
            thread.start()

    def _describe_to_peers(self) -> list[dict[str, Any]]:
        """Return how the others reach this node: by its addresses, and at named interfaces."""
        findings = self.findings
        port = findings.facts["listening"].get("port")
        if not port:
            return []
        peer = {"name": findings.name, "port": port, "token": self._token}
        peers = [{**peer, "addresses": findings.addresses()[: OTHER_ADDRESSES_MAX + 1]}]
        for variable in findings.fact("network").get("variables", {}):
            addresses = [
                address for one in findings.chosen_by(variable) for address in one["addresses"]
            ]
            name = f"{findings.name}/{variable}"
            peers.append({**peer, "name": name, "addresses": addresses[:1]})
        return peers

    def _read_until(self, is_done: Callable[[], bool], step_s: float) -> None:
        """Take in what comes until something is the case; TimeoutError or EOFError if it is not."""
        assert self._process is not None
        with selectors.DefaultSelector() as selector:
            for name in ("stdout", "stderr"):
                stream = getattr(self._process, name)
                if not stream.closed:
                    selector.register(stream, selectors.EVENT_READ, name)
            while not is_done():
                left = self._limits.left(step_s)
                if not left:
                    raise TimeoutError
                for key, _ in selector.select(min(left, TICK_S)):
                    data = os.read(key.fd, 1 << 16)
                    self._got = time.monotonic()
                    self._take_in(key.data, data)
                    if not data:
                        selector.unregister(key.fileobj)
                        getattr(self._process, key.data).close()
                if self._is_closed("stdout") and not is_done():
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        self.findings.exit_status = self._process.wait(END_S)
                    raise EOFError

    def _take_in(self, stream: str, data: bytes) -> None:
        *lines, self._unread[stream] = (self._unread[stream] + data).split(b"\n")
        for line in lines:
            text = printable(line.decode(errors="replace").rstrip("\r"))
            if stream == "stderr":
                self._keep(self.findings.said, text)
            elif not self._understand(text):
                self._keep(self.findings.noise, text)
        if len(self._unread[stream]) > NOISE_BYTES_MAX:
            self._unread[stream] = b""

    def _keep(self, lines: list[str], text: str) -> None:
        if text.strip() and len(lines) < NOISE_LINES_MAX:
            lines.append(text[:500])

    def _understand(self, line: str) -> bool:
        findings, number = self.findings, self._number
        if line.startswith(f"{self._marker} ["):
            name, facts = json.loads(line.partition(" ")[2])
            findings.facts[name] = facts
        elif f"miniray-{number}-sh" in line:
            findings.has_shell = True
        elif match := re.search(rf"miniray-{number}-none:(.*)", line):
            findings.pythons = list(dict.fromkeys(filter(None, match[1].split(":"))))
        elif match := re.search(rf"\((\d+), (\d+), (\d+), {number}\)", line):
            findings.version = tuple(map(int, match.groups()))
        else:
            return findings.version is not None  # an empty line, to begin a new one
        return True

    def _end(self) -> None:
        """End the session: the probe notices that its stdin has ended, and goes."""
        process = self._process
        if process is None:
            return
        with contextlib.suppress(OSError):
            if process.stdin:
                process.stdin.close()
        if self.findings.version or self.findings.exit_status is not None:
            with contextlib.suppress(TimeoutError, EOFError):  # what it still has to say
                self._read_until(lambda: self._is_closed("stderr"), self._limits.passed() + END_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        pacemaker.remove(self._socket)
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()

    def _is_closed(self, stream: str) -> bool:
        return bool(getattr(self._process, stream).closed)


def with_limit(config: NodeConfig, connect_s: int) -> NodeConfig:
    """Return a node whose ssh does not try longer to connect, unless its user says so."""
    options = (*config.ssh_options, f"-oConnectTimeout={connect_s}")
    return dataclasses.replace(config, ssh_options=options)


def _line(config: NodeConfig, number: int) -> str:
    """Return what sh is to run: it tells that it is there, then starts Python, or says which are.

    It holds no quote that a login shell could take for its own, nor our marker as it is printed.
    """
    program = (
        f"import sys;print(tuple(sys.version_info[:3])+({number},));sys.stdout.flush();"
        "exec(sys.version_info>(3,6)and sys.stdin.buffer.raw.readline()or str())"
    )
    python, places = quote_path(config.python), " ".join(doctor_probe.PYTHON_PLACES)
    return (
        f"N={number};echo;echo miniray-$N-sh;"
        f'if command -v {python} >/dev/null;then exec {python} -Sc "{program}";fi;'
        f"IFS=:;for d in $PATH {places};do for p in $d/python3 $d/python3.1?;do "
        "if [ -x $p ];then L=$L:$p;fi;done;done;unset IFS;echo miniray-$N-none:$L;exit 127"
    )
