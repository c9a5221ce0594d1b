"""One session with a node, as doctor opens it: what comes is sorted into what was found out."""

import contextlib
import dataclasses
import json
import os
import re
import secrets
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from miniray import pacemaker
from miniray.cli import doctor_probe
from miniray.cli.doctor_findings import Findings
from miniray.node_config import NodeConfig, quote_path
from miniray.session import source_of
from miniray.worker_log import printable

NOISE_LINES_MAX, NOISE_BYTES_MAX = 200, 1 << 20
TICK_S, END_S = 0.05, 0.4
# Parts of the time that there is.
CONNECT, ANSWER, MEET, END, TRY = 0.4, 0.48, 0.6, 0.92, 0.15


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


class Session:
    """A session that starts as a cluster's would, its pacemaker included, and a tunnel with it.

    `socket` is the near end of the tunnel and `remote_socket` the far one, or both are empty.
    """

    def __init__(self, findings: Findings, limits: Limits) -> None:
        self._findings, self._limits = findings, limits
        self._number = secrets.randbits(60)
        self.marker = f"miniray-{self._number}"
        self.socket = self.remote_socket = ""
        self.got = 0.0  # when the last bytes came
        self._unread = {"stdout": b"", "stderr": b""}
        config, more = findings.config, list[str]()
        if config.launcher is None:
            # In /tmp, as a cluster's: a socket's path is short.
            self.socket = f"/tmp/miniray-{secrets.token_hex(8)}/server"
            self.remote_socket = f"/tmp/miniray-{secrets.token_hex(16)}/server"
            more = ["-v", f"-L{self.socket}:{self.remote_socket}"]
        command = with_limit(config, limits.connect_s).shell(_line(config, self._number), *more)
        self._process = subprocess.Popen(
            [sys.executable, "-ISc", source_of(pacemaker), self.socket, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )

    def write(self, text: str) -> None:
        """Send text; raises BrokenPipeError if the session has ended."""
        assert self._process.stdin is not None
        data = memoryview(text.encode())
        while data:
            data = data[self._process.stdin.write(data) or 0 :]

    def read_until(self, is_done: Callable[[], bool], step_s: float) -> None:
        """Take in what comes until something is the case; TimeoutError or EOFError if it is not."""
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
                    self.got = time.monotonic()
                    self._take_in(key.data, data)
                    if not data:
                        selector.unregister(key.fileobj)
                        getattr(self._process, key.data).close()
                if self._is_closed("stdout") and not is_done():
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        self._findings.exit_status = self._process.wait(END_S)
                    raise EOFError

    def _take_in(self, stream: str, data: bytes) -> None:
        *lines, self._unread[stream] = (self._unread[stream] + data).split(b"\n")
        for line in lines:
            text = printable(line.decode(errors="replace").rstrip("\r"))
            if stream == "stderr":
                self._keep(self._findings.said, text)
            elif not self._understand(text):
                self._keep(self._findings.noise, text)
        if len(self._unread[stream]) > NOISE_BYTES_MAX:
            self._unread[stream] = b""

    def _keep(self, lines: list[str], text: str) -> None:
        if text.strip() and len(lines) < NOISE_LINES_MAX:
            lines.append(text[:500])

    def _understand(self, line: str) -> bool:
        findings, number = self._findings, self._number
        if line.startswith(f"{self.marker} ["):
            try:
                name, facts = json.loads(line.partition(" ")[2])
            except ValueError:  # something else has written into it
                return False
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

    def end(self) -> None:
        """End the session: the probe notices that its stdin has ended, and goes."""
        process = self._process
        with contextlib.suppress(OSError):
            if process.stdin:
                process.stdin.close()
        if self._findings.version or self._findings.exit_status is not None:
            with contextlib.suppress(TimeoutError, EOFError):  # what it still has to say
                self.read_until(lambda: self._is_closed("stderr"), self._limits.passed() + END_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        pacemaker.remove(self.socket)
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
