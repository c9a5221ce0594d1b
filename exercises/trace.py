"""Record a run of a stage, and show it as time in rows and processes in columns.

Every process appends its events, one line each, to a file whose descriptor it inherits. Nothing in
the stages knows of it: their fork, send, recv and close are wrapped while the trace is made.
"""

import contextlib
import functools
import importlib
import json
import os
import runpy
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from stages import snapshots

Event = dict[str, Any]  # at_s, pid, what, text
COLUMN, TEXT_CHARS_MAX = 24, 36  # a text may run on: there is one in each row
FILE = "MINIRAY_TRACE_FILE"
ROLES = ("coordinator", "keeper", "server", "worker")


def note(what: str, text: str = "") -> None:
    """Record an event of this process."""
    event = {"at_s": time.monotonic(), "pid": os.getpid(), "what": what, "text": text}
    # One write to a file opened for appending is not mixed with another's.
    descriptor = os.open(os.environ[FILE], os.O_WRONLY | os.O_APPEND)
    try:
        os.write(descriptor, json.dumps(event).encode() + b"\n")
    finally:
        os.close(descriptor)


def watch(package: str) -> None:
    """Wrap what a stage does with processes and messages, so that it is recorded."""
    process: Any = importlib.import_module(f"{package}.process")
    channel = importlib.import_module(f"{package}.channel")
    cls = channel.Channel
    fork, send, recv, close = process.fork, cls.send, cls.recv, cls.close

    def recording_fork(run: Callable[[], int]) -> Any:
        def recording_run() -> int:
            note("begins", str(os.getppid()))
            code = run()
            note("ends", f"status {code}")
            return code

        child = fork(recording_run)
        note("forks", str(child.pid))
        return child

    @functools.wraps(send)
    def recording_send(self: Any, message: Any, *timeout: float) -> None:
        note("sends", shorten(message))
        send(self, message, *timeout)

    @functools.wraps(recv)
    def recording_recv(self: Any, *timeout: float) -> Any:
        try:
            message = recv(self, *timeout)
        except Exception as error:
            note("learns", shorten(f"{type(error).__name__}: {error}"))
            raise
        note("receives", shorten(message))
        return message

    @functools.wraps(close)
    def recording_close(self: Any) -> None:
        if self._sock.fileno() >= 0:
            note("hangs up")
        close(self)

    process.fork = recording_fork
    cls.send, cls.recv, cls.close = recording_send, recording_recv, recording_close


def shorten(message: Any) -> str:
    """Return a message as text, without what differs from run to run."""
    if isinstance(message, dict) and ("nonce" in message or "proof" in message):
        return "{" + ", ".join(message) + "}"  # a handshake
    text = message if isinstance(message, str) else json.dumps(message, default=repr)
    return text if len(text) <= TEXT_CHARS_MAX else f"{text[: TEXT_CHARS_MAX - 3]}..."


def square(channel: Any) -> None:
    """Answer numbers with their squares; die at a negative one."""
    note("is", "worker")
    for number in channel:
        if number < 0:
            note("is killed", "SIGKILL")
            os.kill(os.getpid(), signal.SIGKILL)
        channel.send(number**2)


def run_scenario(stage: int, package: str) -> None:
    """Have a worker square a number, and another one die."""
    note("is", "coordinator")
    module = functools.partial(_module, package)
    if stage == 1:
        workers = [module("worker").Worker(square) for _ in range(2)]
        _talk(workers)
        return
    if stage in (2, 3):
        key = {} if stage == 2 else {"key": b"k" * 64}

        def serve(channel: Any) -> None:
            note("is", "server")
            server = module("worker_server").WorkerServer(square, **key)
            channel.send([server.host, server.port])
            server.serve_forever()

        with module("worker").Worker(serve) as process:
            address = process.recv()
            remote = module("remote_worker").RemoteWorker
            _talk([remote(*address, **key) for _ in range(stage - 1)])
            process.close(0.1)
        return
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder, "python")
        python.write_text(
            f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m exercises.trace "$@"\n'
        )
        python.chmod(0o755)
        cluster = module("cluster")
        nodes = [
            cluster.NodeConfig.local(1, host=host, python=str(python))
            for host in ("node1", "node2")
        ]
        with cluster.Cluster(nodes) as started:
            _talk(started.start("exercises.trace.square"))


def _module(package: str, name: str) -> ModuleType:
    return importlib.import_module(f"{package}.{name}")


def _talk(workers: list[Any]) -> None:
    first, last = workers[0], workers[-1]
    first.send(12)
    first.recv()
    if last is not first:
        last.send(-1)
        with contextlib.suppress(Exception):  # the trace shows what it learns
            last.recv()
    for worker in workers:
        worker.close()


def record(stage: int) -> list[Event]:
    """Run a stage's scenario in a process of its own; return its events, in their order."""
    package = f"stages.{snapshots.NAMES[stage - 1]}"
    with tempfile.NamedTemporaryFile(prefix="miniray-trace-") as file:
        os.environ[FILE] = file.name
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                watch(package)
                run_scenario(stage, package)
                code = 0
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        del os.environ[FILE]
        if code:
            raise RuntimeError(f"the scenario of stage {stage} ended with {code}")
        events = [json.loads(line) for line in file.read().splitlines()]
    return sorted(events, key=lambda event: float(event["at_s"]))


def name_processes(events: list[Event]) -> dict[int, str]:
    """Return a name for each process, by role, in the order in which they were forked."""
    roles = {event["pid"]: event["text"] for event in events if event["what"] == "is"}
    born = {}
    for event in reversed(events):
        born[event["pid"]] = event["at_s"]
    # A child may be faster than its parent, which forked another one before it.
    born |= {int(event["text"]): event["at_s"] for event in events if event["what"] == "forks"}
    names: dict[int, str] = {}
    pids = dict.fromkeys(event["pid"] for event in events)
    parents = {int(event["text"]): event["pid"] for event in events if event["what"] == "forks"}

    def place(pid: int) -> tuple[int, int, float]:
        role, parent = ROLES.index(roles.get(pid, "server")), parents.get(pid, 0)
        # Nodes start all at once, and each notes what it forks when it gets to that, so what is
        # first among them is chance; their keepers' numbers are not.
        if ROLES[role] in ("keeper", "server"):
            return role, parent or pid, 0.0
        return role, parents.get(parent, parent), born[pid]

    for pid in sorted(pids, key=place):
        role = roles.get(pid, "server")
        same = sum(one.startswith(role) for one in names.values())
        names[pid] = f"{role} {same + 1}" if role != "coordinator" else role
    return names


def as_text(events: list[Event]) -> str:
    """Return the diagram: a row for each event, a column for each process."""
    names = name_processes(events)
    columns = list(names)
    lines = [f"{'ms':>8}  " + "".join(f"{names[pid]:{COLUMN}}" for pid in columns).rstrip()]
    for event in events:
        if event["what"] == "is":
            continue
        milliseconds = (event["at_s"] - events[0]["at_s"]) * 1000
        text = event["text"]
        if event["what"] in ("forks", "begins"):
            text = names.get(int(text), "")
            text = f"forked by {text}" if event["what"] == "begins" and text else text
        at = columns.index(event["pid"]) * COLUMN
        lines.append(f"{milliseconds:8.1f}  {' ' * at}{event['what']} {text}".rstrip())
    return "\n".join(lines)


def as_chrome_trace(events: list[Event]) -> str:
    """Return the events as a file that Perfetto opens: an instant each, a row for each process."""
    names = name_processes(events)
    made: list[Event] = [
        {"name": "process_name", "ph": "M", "pid": pid, "tid": pid, "args": {"name": name}}
        for pid, name in names.items()
    ]
    for event in events:
        if event["what"] != "is":
            pid, at_us = event["pid"], event["at_s"] * 1e6
            fields = {"ph": "i", "s": "p", "ts": at_us, "pid": pid, "tid": pid}
            made.append({"name": event["what"], "args": {"text": event["text"]}, **fields})
    return json.dumps({"traceEvents": made, "displayTimeUnit": "ms"}) + "\n"


def main() -> None:
    """Be the Python of a traced node, which is called as `python -m MODULE ARGUMENTS`."""
    _, _, module, *arguments = sys.argv
    watch(module.rpartition(".")[0])
    note("is", "keeper")
    # The work function is in this module, which the node imports by its name.
    sys.modules["exercises.trace"] = sys.modules["__main__"]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
