"""One ssh session with a node: its three streams, its last words and its end.

stdin carries nothing until Python there has given a sign of life, then the code, the key and the
settings, and from then on it is the lease: a line to stop, heartbeats, or the end. stdout brings
that sign, a report once the server is ready, and one when all there has ended. stderr brings logs.
"""

import contextlib
import json
import linecache
import math
import os
import re
import secrets
import select
import signal
import subprocess
import sys
import threading
import time
from types import ModuleType
from typing import IO, Any

from miniray import inherited, pacemaker
from miniray.faults import Fault
from miniray.node_config import NodeConfig
from miniray.node_log import HURRY_S, SHOWN_LINES, NodeLog
from miniray.process import describe
from miniray.waiting import READABLE, WRITABLE, deadline_after, time_left
from miniray.worker_log import printable

NOISE_BYTES_MAX = 1024 * 1024
SHOWN_CHARS = 500

TOO_MANY = "MaxStartups|exchange_identification: .*(closed|reset)"
_ADVICE = {
    "Permission denied": "if the key has a passphrase: ssh-add",
    TOO_MANY: "its sshd may have too many at once: raise MaxStartups there",
}


class Session:
    """A running ssh, or launcher, that is about to start Python on a node.

    `marker` is in all that the node reports. `socket_path`, if any, is forwarded to
    `self.socket`.
    """

    def __init__(self, config: NodeConfig, log: NodeLog, *, marker: int, socket_path: str) -> None:
        self._config, self.log, self._marker = config, log, marker
        self._began = time.monotonic()
        self._received = b""
        self._reading = threading.Lock()
        self._python_answers = self._holds_lease = False
        self._hung_up = 0.0
        # What it prints is no part of its text: some shells print what they run.
        program = (
            f"import sys;print(sys.version_info[:3]+({marker},));sys.stdout.flush();"
            "exec(sys.version_info>(3,)and sys.stdin.buffer.raw.readline()or str())"
        )
        # Not in TMPDIR: a socket's path is short, and % and : in it mean something to ssh.
        self.socket = socket_path and f"/tmp/miniray-{secrets.token_hex(8)}/server"
        command = config.command(program, socket_path and f"{self.socket}:{socket_path}")
        self._name = os.path.basename(command[0])
        python = [sys.executable, "-ISc", source_of(pacemaker), self.socket]
        # What a launcher starts is not where our own ssh session arrived, if there is one.
        away = "SSH_CONNECTION" if config.launcher is not None else ""
        pipes: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        with inherited.lock:
            self._process = subprocess.Popen(
                [*python, *command],
                bufsize=0,
                start_new_session=True,  # Ctrl-C and Ctrl-Z are for the coordinator alone
                env={name: value for name, value in os.environ.items() if name != away},
                **pipes,
            )
            self._stdin: IO[bytes] = self._process.stdin  # type: ignore[assignment]
            self._stdout: IO[bytes] = self._process.stdout  # type: ignore[assignment]
            self._stderr: IO[bytes] = self._process.stderr  # type: ignore[assignment]
            inherited.own(self)
        # Whoever drops the session drops the lease: what waits for the process is not to hold it.
        self._process.stdin = None
        os.set_blocking(self._stdin.fileno(), False)
        log.follow(self._stderr, self._process)

    def abandon(self) -> None:
        """Close, in a forked child, the copies of the pipes."""
        for pipe in (self._stdin, self._stdout, self._stderr):
            pipe.close()

    def wait_for_python(self, deadline: float) -> tuple[int, ...]:
        """Return the version of the Python there, once it has given a sign of life."""
        sign = rb"\((\d+), (\d+), (\d+), %d\)" % self._marker
        found = self._receive(sign, deadline, "before Python answered")
        self._python_answers = True
        return tuple(map(int, found.groups()))

    def send(self, data: bytes, deadline: float) -> bool:
        """Send code, settings or files; return False if it has ended, of which stdout will tell.

        Raises TimeoutError if it takes too long.
        """
        rest = memoryview(data)
        with contextlib.suppress(BrokenPipeError):
            while rest:
                if not _is_ready(self._stdin, WRITABLE, deadline):
                    raise TimeoutError(self._late("while it took its code in"))
                rest = rest[os.write(self._stdin.fileno(), rest) :]
        return not rest

    def hold_lease(self) -> None:
        """Have the heart beat: all is sent, and the node lives as long as its stdin brings more."""
        self._process.send_signal(pacemaker.BEAT_SIGNAL)
        self._holds_lease = True

    def wait_for_report(self, deadline: float, meanwhile: str) -> dict[str, Any]:
        """Return the next report; an error says what the node was doing `meanwhile`.

        Raises TimeoutError at the deadline, and Fault if the session has ended.
        """
        found = self._receive(rb"miniray-%d (\{.*\})\r?\n" % self._marker, deadline, meanwhile)
        report: dict[str, Any] = json.loads(found[1])
        return report

    def _receive(self, pattern: bytes, deadline: float, meanwhile: str) -> re.Match[bytes]:
        while not (found := re.search(pattern, self._received)):
            if not _is_ready(self._stdout, READABLE, deadline):
                raise TimeoutError(self._late(meanwhile))
            with self._reading:
                if not _is_ready(self._stdout, READABLE, deadline=0.0):
                    continue  # another thread was faster
                data = os.read(self._stdout.fileno(), 1 << 16)
                self._received += data
            if not data:
                raise Fault(self._describe_end(meanwhile))
            if len(self._received) > NOISE_BYTES_MAX:
                noise = f"it printed {len(self._received)} bytes on stdout {meanwhile}"
                raise Fault(self.last_words(f"{noise}; does a start-up file there never end?"))
        self._received = found.string[found.end() :]
        return found

    def _late(self, meanwhile: str) -> str:
        seconds = time.monotonic() - self._began
        return self.last_words(f"not ready after {seconds:.1f}s, {meanwhile}")

    def _describe_end(self, meanwhile: str) -> str:
        ending = "closed its stdout"
        with contextlib.suppress(subprocess.TimeoutExpired):
            ending = describe(self._process.wait(HURRY_S))
            self.log.wait_until_quiet(time.monotonic())
        return self.last_words(f"{self._name} {ending} {meanwhile}")

    def last_words(self, problem: str) -> str:
        """Return a problem with what was said there, what to do about it, what to try by hand."""
        noise = self._received.decode(errors="replace").splitlines()
        lines = [*self.log.said(), *noise[:SHOWN_LINES], *noise[-SHOWN_LINES:]]
        shown = (printable(line.strip()[:SHOWN_CHARS]) for line in lines)
        said = "; ".join(dict.fromkeys(filter(None, shown)))
        words = [f"{problem}: {said}" if said else f"{problem}; it said nothing"]
        words += [advice for pattern, advice in _ADVICE.items() if re.search(pattern, said)]
        by_hand = "" if self._python_answers else self._config.try_by_hand()
        return "; ".join(words) + (by_hand and f"\n    try: {by_hand}")

    def fileno(self) -> int:
        """Return a descriptor that is readable when the session, or the server there, has ended."""
        return -1 if self._stdout.closed else self._stdout.fileno()

    def how_it_ended(self, timeout: float = 0.0) -> str | None:
        """Say how the session, or the server there, has ended; None if both live on till then."""
        if self._stdout.closed:
            return "its cluster was stopped"
        try:
            return f"its server {self._wait_for_end(deadline_after(timeout))}"
        except TimeoutError:
            return None
        except Fault as fault:
            return str(fault)

    def _wait_for_end(self, deadline: float) -> str:
        # A look ahead: the report stays where it is, for all who ask.
        pattern = rb'(?=miniray-%d \{"ended": (".*")\}\r?\n)' % self._marker
        return str(json.loads(self._receive(pattern, deadline, "while its server ran")[1]))

    def begin_end(self, timeout: float) -> None:
        """Have all on the node end within `timeout` seconds; a later call may hurry it."""
        if not self._holds_lease:
            self.kill()  # nothing is there yet that could do it in order
            return
        with contextlib.suppress(OSError, ValueError):  # it has ended, or takes nothing in
            os.write(self._stdin.fileno(), f"{timeout}\n".encode())

    def hang_up(self, deadline: float) -> None:
        """Wait until all on the node has ended, or for the deadline, and let go of the lease."""
        if self._stdin.closed:
            return
        if self._holds_lease:
            with contextlib.suppress(Fault, TimeoutError):
                self._wait_for_end(deadline)
        self._stdin.close()
        self._hung_up = time.monotonic()

    def end(self, deadline: float) -> None:
        """Hang up, and kill what does not end by itself then, as some launchers do not."""
        self.hang_up(deadline)
        self.log.wait_until_quiet(self._hung_up)
        self.kill()
        self._process.wait()
        self.log.wait_until_quiet(self._hung_up)
        self._stdout.close()
        pacemaker.remove(self.socket)

    def kill(self) -> None:
        """End the session's processes here at once."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # another thread waits, and was faster
                os.killpg(self._process.pid, signal.SIGKILL)


def _is_ready(stream: IO[bytes], events: int, deadline: float) -> bool:
    poller = select.poll()
    poller.register(stream, events)
    return bool(poller.poll(math.ceil(time_left(deadline) * 1000)))


def source_of(module: ModuleType) -> str:
    """Return the source of a module, which may have come from a file, a zip or over stdin."""
    return "".join(linecache.getlines(str(module.__file__), vars(module)))
