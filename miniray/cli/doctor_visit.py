"""One node's visit: a session as a cluster would start it, and the probe's answers through it.

Each step has its own limit, so that a node that is not there costs no more than that.
"""

import contextlib
import json
import random
import secrets
import threading
import time
from typing import Any

from miniray.cli import doctor_probe
from miniray.cli.doctor_findings import Findings
from miniray.cli.doctor_session import Limits, Session
from miniray.session import TOO_MANY, source_of

AGAIN_S = 1.0
OTHER_ADDRESSES_MAX = 3


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
        self._settings, self._token = settings, secrets.token_hex(16)
        findings.num_places = len(settings["places"])
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
        self._session = Session(self.findings, self._limits)
        try:
            with contextlib.suppress(TimeoutError, EOFError, BrokenPipeError):
                self._go_through()
        finally:
            self._session.end()

    def _is_turned_away(self) -> bool:
        ended = self.findings.exit_status is not None and not self.findings.has_shell
        return ended and self.findings.find(TOO_MANY) is not None

    def _go_through(self) -> None:
        findings, limits = self.findings, self._limits
        self._session.read_until(lambda: findings.version is not None, limits.answer_s)
        self.doing = "looking"
        own = {
            "marker": self._session.marker,
            "socket": self._session.remote_socket,
            "token": self._token,
            "life_s": int(limits.total_s) + 10,
            "import_s": max(1.0, limits.left(limits.end_s) - 1.0),
        }
        settings = json.dumps({**self._settings, **own})
        self._session.write(f"exec({source_of(doctor_probe)!a})\n{settings}\n")
        with contextlib.suppress(TimeoutError):  # what has not come by then is missing in the facts
            self._meet_the_others()
        self._meeting.bring(findings.name, [])
        self._meeting.part(findings.name)
        self.doing = "importing " + ", ".join(self._settings["modules"])
        places = [f"place{number}" for number in range(len(self._settings["places"]))]
        self._wait_for_facts(*places, "memory", "gpus", "modules", step_s=limits.end_s)
        self._session.read_until(
            lambda: not self._tries() and self._meeting.is_over(), limits.end_s
        )

    def _meet_the_others(self) -> None:
        findings, limits = self.findings, self._limits
        self._wait_for_facts("listening", "system", "network", step_s=limits.meet_s)
        self._ask_for_clock()
        self._try_from_here()
        self._meeting.bring(findings.name, self._describe_to_peers())
        with contextlib.suppress(TimeoutError):  # those that are late are not met
            self._session.read_until(self._meeting.is_complete, limits.meet_s)
        self.doing = "reaching the others"
        peers = self._meeting.others(findings.name)
        self._ask("peers", {"peers": peers, "limit_s": limits.try_s})
        self._wait_for_facts("peers", step_s=limits.end_s)

    def _wait_for_facts(self, *names: str, step_s: float) -> None:
        facts = self.findings.facts
        self._session.read_until(lambda: all(name in facts for name in names), step_s)

    def _tries(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def _ask(self, question: str, about: Any = None) -> None:
        self._session.write(json.dumps({"ask": question, "about": about}) + "\n")

    def _ask_for_clock(self) -> None:
        """Compare the clocks: the node's time belongs between our question and its answer."""
        findings = self.findings
        before, started = time.time(), time.monotonic()
        self._ask("clock")
        self._wait_for_facts("clock", step_s=self._limits.meet_s)
        took = self._session.got - started
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
            where = self._session.socket, 0, self._token
            findings.tunnel = doctor_probe.try_to_reach(*where, limit_s=self._limits.try_s)

        tries = [try_addresses] * bool(port) + [try_tunnel] * bool(self._session.socket)
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
