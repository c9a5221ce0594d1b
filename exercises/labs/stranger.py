"""Lab: strangers at the port of a server that works: HTTP, a wrong key, and silence."""

import contextlib
import os
import signal
import socket
import sys
import time
from pathlib import Path

from exercises.labs.lab import Lab, Record, ms
from stages.stage3_worker_server import auth
from stages.stage3_worker_server.channel import Channel
from stages.stage3_worker_server.errors import AuthenticationError
from stages.stage3_worker_server.remote_worker import RemoteWorker
from stages.stage3_worker_server.worker import Worker
from stages.stage3_worker_server.worker_server import STRANGER_S, WorkerServer

KEY = auth.make_key()
T = 5.0


def echo(channel: Channel) -> None:
    """Send back whatever comes."""
    for message in channel:
        channel.send(message)


def serve(control: Channel, log: int) -> None:
    """Run a server whose stderr is a pipe, and say where it listens."""
    sys.stderr = os.fdopen(log, "w", buffering=1)
    server = WorkerServer(echo, key=KEY)
    control.send([server.host, server.port])
    server.serve_forever()


def wait_for_close(stranger: socket.socket) -> tuple[bytes, str]:
    """Return what a stranger gets until it is hung up on, and how that looks."""
    stranger.settimeout(T)
    try:
        data = stranger.recv(4096)
        return data, "something" if data else "end of file"
    except ConnectionResetError:
        return b"", "a reset"


def run(record: Record) -> None:
    """Let three strangers come while a worker works, and then a client that holds the key."""
    with contextlib.ExitStack() as stack:
        log_read, log_write = os.pipe()
        log = stack.enter_context(os.fdopen(log_read))
        process = Worker(lambda control: serve(control, log_write))
        os.close(log_write)
        stack.callback(process.close, 0.1)
        address = tuple(process.recv(T))
        worker = stack.enter_context(RemoteWorker(*address, key=KEY))
        record.say(f"a server, process {process.pid}, and its worker {worker.pid}, which works")

        with socket.create_connection(address) as browser:
            browser.sendall(b"GET / HTTP/1.1\r\nHost: a-worker\r\n\r\n")
            began = time.monotonic()
            http, how = wait_for_close(browser)
            http_s = time.monotonic() - began
        record.say(f"one speaks HTTP: {how} after {ms(http_s)}, and {len(http)} bytes")
        refused = "nothing"
        try:
            RemoteWorker(*address, key=b"a key that I have made up")
        except AuthenticationError as error:
            refused = f"AuthenticationError: {error}"
        record.say(f"one has made up a key, and gets {refused}")

        silent = stack.enter_context(socket.create_connection(address))
        began = time.monotonic()
        worker.send("working")
        answer = worker.recv(T)
        answer_s = time.monotonic() - began
        record.say(f"one is silent; meanwhile our worker answers, after {ms(answer_s)}")
        later = stack.enter_context(RemoteWorker(*address, key=KEY))
        later_s = time.monotonic() - began
        record.say(f"a client with the key is served {ms(later_s)} after the silent one came")
        silence, how = wait_for_close(silent)
        record.say(f"the silent one has got {how}, and {len(silence)} bytes")
        forked = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(process.pid, signal.SIGTERM)
        status = process.wait(T)
        lines = log.read().splitlines()
    for line in lines:
        record.say(f"the server's log: {line}")

    record.left("HTTP got", f"{len(http)} bytes, {ms(http_s)}", claim=not http, expected="0 bytes")
    claim = "different key" in refused
    record.left("the wrong key got", refused.partition(":")[0], claim=claim, expected="a refusal")
    found = f"{len(silence)} bytes, and cost the next client {ms(later_s)}"
    claim = not silence and abs(later_s - STRANGER_S) < 1
    record.left("silence got", found, claim=claim, expected=f"0 bytes, about {STRANGER_S} s")
    found = f"{len(forked)}; the last has number {later.worker_id}"
    claim = sorted(map(int, forked)) == sorted([worker.pid, later.pid]) and later.worker_id == 2
    record.left("workers forked", found, claim=claim, expected="2, both for clients with the key")
    found = f"answered after {ms(answer_s)} while the silent one was there"
    claim = answer == "working" and answer_s < 1
    record.left("our worker", found, claim=claim, expected="an answer at once")
    claim = len(lines) == 3
    record.left("lines in the log", str(len(lines)), claim=claim, expected="3, one a stranger")
    record.left("the server's status", str(status), claim=status == 0, expected="0")


LAB = Lab(
    title="strangers at the port: HTTP, a wrong key, silence",
    stage=3,
    question="""A server has a worker at work. Three strangers connect: one speaks HTTP, one holds
    another key, one says nothing at all. Whom do they cost anything?""",
    answers=(
        "nobody: each is sent away before it can cost anything",
        "the server: it forks a worker for each, which then finds out",
        "the next client, which the silent one keeps waiting; our worker notices nothing",
        "our worker: it shares the server's loop, and waits while the silent one is there",
    ),
    right=2,
    run=run,
    why="""Nothing is forked without a proof, so a stranger costs a few reads and one line in the
    log. HTTP is refused by its first four bytes. With a wrong key it is the client that finds out,
    because the server proves first, and the key itself is never sent. Silence can only be told by
    time: this stage does one handshake after the other, so the next client waits for the two
    seconds that a stranger has. Workers are processes with connections of their own and do not pass
    through that loop; miniray does the handshakes within the loop, and there nobody waits.""",
)
