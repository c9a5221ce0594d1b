"""The coordinator's side of one node: bring up its server and its workers, and end them."""

import contextlib
import errno
import json
import random
import re
import secrets
import threading
import time
from typing import Any, TextIO

from miniray import bootstrap, rsync
from miniray.connection import server_status
from miniray.errors import MiniRayError
from miniray.faults import Fault
from miniray.node_config import NodeConfig
from miniray.node_log import HURRY_S, NodeLog
from miniray.remote_worker import RemoteWorker
from miniray.session import TOO_MANY, Session, source_of
from miniray.sync import Folder, Luggage
from miniray.waiting import deadline_after, time_left

PYTHON_MIN = (3, 11)
CONNECT_S = 5.0
ASK_AGAIN_S = 0.002
LAUNCHES_MAX = 4
SAID_FROM_BYTES = 1024 * 1024  # what takes long enough to wonder
_OUR_OWN_TROUBLE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)


class Node:
    """One node of a cluster, called `label` in errors and logs."""

    def __init__(self, config: NodeConfig, label: str, log: TextIO) -> None:
        self.config, self.label = config, label
        self.host, self.port, self.address = "", 0, ""
        self.workers: list[RemoteWorker] = []
        self._log = log
        self._key, self._rendezvous = b"", list[str]()
        self._session: Session | None = None
        self._starting = threading.Lock()
        self._stopping = threading.Event()

    def bring_up(self, settings: dict[str, Any], luggage: Luggage, deadline: float) -> None:
        """Have a server there that runs no rank: the one that is there, or a new one.

        Raises Fault, TimeoutError or another OSError that says in words what is wrong.
        """
        if self.end_ranks():
            return
        with self._starting:
            if self._stopping.is_set():  # somebody ends its session at this moment
                raise Fault("the start was broken off")
            if self._session is not None:  # lost; its ranks may be there yet, and new ones wait
                self._session.begin_end(0.0)
                self._session.end(deadline_after(min(CONNECT_S, time_left(deadline))))
            session = self.start_session(settings, luggage, deadline)
            module = settings["work_fn"].rpartition(".")[0].replace("__main__", "what a cell names")
            self._wait_for_server(session, module, deadline)

    def end_ranks(self) -> bool:
        """End all ranks at once; return whether there is a server, and it has done so."""
        session = self._session
        self.close_workers()
        deadline = deadline_after(CONNECT_S)
        with contextlib.suppress(OSError, MiniRayError):
            while session and session.how_it_ended() is None and (left := time_left(deadline)):
                if not self.status(left, type="end_workers")["server"]["workers_running"]:
                    return True
                time.sleep(ASK_AGAIN_S)
        return False

    def fork_ranks(self, first_rank: int, world_size: int, deadline: float) -> None:
        """Have the server fork the workers, the first of which is rank `first_rank`.

        Raises Fault, TimeoutError or another OSError that says in words what is wrong.
        """
        with self._starting:
            assert self._session is not None
            try:
                for rank in range(first_rank, first_rank + self.config.num_workers):
                    self._connect(self._session, rank, f"rank {rank} of {world_size}", deadline)
            finally:
                if self._stopping.is_set():  # meanwhile, so nobody else knows of them
                    self.close_workers()

    def start_session(self, settings: dict[str, Any], luggage: Luggage, deadline: float) -> Session:
        """Start Python there, and give it the settings, the code and the folder.

        What it does with them is `settings["keep"]`, the name of a function; else it is a server.
        Raises Fault, TimeoutError or another OSError that says in words what is wrong.
        """
        config = self.config
        with_luggage, sources = luggage.for_node(config, self.label)
        marker, self._key = secrets.randbits(60), settings["key"].encode()
        remote_socket = f"/tmp/miniray-{secrets.token_hex(16)}/server" if config.tunnel else ""
        for_node = {
            "node": self.label,
            "marker": marker,
            "num_workers": config.num_workers,
            **with_luggage,
            "tunnel": config.tunnel,
            "encrypt": config.encrypt,
            "env": {**settings["env"], **config.env},
            "host": remote_socket or (config.launcher and config.address),
            "default_host": config.address or (config.launcher and "127.0.0.1"),
        }
        payload = json.dumps({**settings, **for_node}).encode() + b"\n" + sources
        data = bootstrap.pack(source_of(bootstrap), payload)
        for attempt in range(1, LAUNCHES_MAX + 1):
            if self._stopping.is_set():
                raise Fault("the start was broken off")
            log = NodeLog(self.label, self._log)
            session = self._session = Session(config, log, marker=marker, socket_path=remote_socket)
            if self._stopping.is_set():
                session.kill()
            try:
                version = session.wait_for_python(deadline)
                break
            except Fault as fault:
                if not re.search(TOO_MANY, str(fault)) or attempt == LAUNCHES_MAX:
                    raise
            log.write([b"sshd hung up at once; it may have too many: trying again"])
            session.end(deadline_after(0.0))
            self._stopping.wait(attempt * random.uniform(0.3, 1.0))
        if version < PYTHON_MIN:
            text = ".".join(map(str, version))
            raise Fault(f"python there is {text}, MiniRay needs 3.11; set python= or --python")
        session.send(data, deadline)
        if luggage.folder is not None and with_luggage["copy"]:
            self._send_folder(luggage.folder, session, deadline)
        session.hold_lease()
        return session

    def _send_folder(self, folder: Folder, session: Session, deadline: float) -> None:
        doing = f"while it looked what it lacks of {folder.path}"
        report = session.wait_for_report(deadline, doing)
        if "error" in report:
            raise Fault(report["error"])
        nbytes, count = folder.nbytes_of(report["lacking"]), len(report["lacking"])
        if nbytes > SAID_FROM_BYTES:
            copied = f"copying {count} files, {nbytes / 2**20:.1f} MiB, to {report['folder']}"
            session.log.write([copied.encode()])
        try:
            done = self._send_differences(folder, session, report, deadline)
            folder.send([path for path in report["lacking"] if path not in done], session, deadline)
        except TimeoutError as late:
            more = "raise start_timeout, or start again: what has arrived need not come again"
            raise TimeoutError(f"{late}; {more}") from None

    def _send_differences(
        self, folder: Folder, session: Session, report: dict[str, Any], deadline: float
    ) -> set[str]:
        """Have rsync bring large files up to date that are there already; return which it has."""

        def tick() -> bool:
            session.send(b"\n", deadline)  # it is there, and busy elsewhere
            return not self._stopping.is_set()

        paths = [one for one in report["older"] if folder.files[one][0] >= rsync.FILE_BYTES_MIN]
        if not paths or not rsync.is_here():
            return set()
        # Some launchers do not end when they are done: then there is time for another way.
        until = deadline_after(time_left(deadline) / 2)
        where = str(folder.path), paths, report["folder"]
        if problem := rsync.copy_files(self.config, *where, until, tick):
            session.log.write([f"sending whole files, because of rsync: {problem}".encode()])
            return set()
        return set(paths)

    def _wait_for_server(self, session: Session, module: str, deadline: float) -> None:
        report = session.wait_for_report(deadline, f"while it imported {module}")
        if "ended" in report:
            raise Fault(f"its Python {report['ended']} while it imported {module}")
        if "error" in report:
            raise Fault(report["error"], report.get("traceback", ""))
        self.host = session.socket or self.config.address or report["host"]
        self.port, self.address = report["port"], self.config.address or report["address"]
        # The node's own addresses: the one that was asked for, and where the server listens.
        own = report["address"] if self.config.tunnel else report["host"]
        self._rendezvous = [self.config.address or own, own]

    def _connect(self, session: Session, rank: int, title: str, deadline: float) -> None:
        session.log.heard.clear()
        timeout = min(CONNECT_S, time_left(deadline))
        try:
            worker = RemoteWorker(
                self.host, self.port, key=self._key, name=f"rank{rank}", timeout=timeout,
                rendezvous=() if rank else self._rendezvous,
                encrypt=self.config.encrypt, title=title,
            )  # fmt: skip
        except (OSError, MiniRayError) as error:
            raise Fault(self._why_no_worker(session, error)) from error
        self.workers.append(worker)
        worker.name = f"rank {rank} at {self.label}:{self.port or 'tunnel'}"
        worker.session = session

    def _why_no_worker(self, session: Session, error: Exception) -> str:
        if words := session.how_it_ended(HURRY_S):
            return words
        problem = f"its server is ready, but: {error}"
        if self.config.tunnel and session.log.heard.is_set():
            return session.last_words(
                "its server is ready, but ssh does not get through to it; sshd there may need "
                "AllowStreamLocalForwarding and AllowTcpForwarding yes, or set tunnel=False"
            )
        reason = getattr(error.__cause__, "errno", None)
        if str(error).startswith("cannot connect") and reason not in _OUR_OWN_TROUBLE:
            tunnel = "" if self.config.launcher else ", or tunnel=True"
            problem += f"; set NodeConfig(address=...) to where the coordinator reaches it{tunnel}"
        return problem

    def whereabouts(self) -> dict[str, Any]:
        """Return where its server is and how to ask it, for whoever wants to look at the ranks."""
        config, where = self.config, {"node": self.label, "host": self.host, "port": self.port}
        ask = {"key": self._key.decode(), "encrypt": config.encrypt}
        return where | ask | {"ranks": config.num_workers}

    def status(self, timeout: float = 5.0, **request: int | str) -> dict[str, Any]:
        """Ask this node's server for its status."""
        return server_status(self.host, self.port, key=self._key, timeout=timeout, **request)

    def begin_stop(self, timeout: float) -> None:
        """Have all on the node end within `timeout` seconds; a later call may hurry it."""
        self._stopping.set()
        if self._session is not None:
            self._session.begin_end(timeout)

    def hang_up(self, deadline: float) -> None:
        """Wait for the end of everything on the node, or for the deadline."""
        if self._starting.acquire(timeout=time_left(deadline)):
            self._starting.release()
        if self._session is not None:
            self._session.hang_up(deadline)

    def end(self, deadline: float) -> None:
        """End the session, whatever is on the node."""
        if self._session is not None:
            self._session.end(deadline)
        self.close_workers()

    def close_workers(self) -> None:
        """Say goodbye to all ranks; the server ends them."""
        for worker in self.workers:
            worker.close(timeout=0.0)
        self.workers = []
