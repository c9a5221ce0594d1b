"""Lab: a reader that does not read, and a sender that has a deadline."""

import array
import contextlib
import fcntl
import termios
import time
from typing import Any

from exercises.labs.lab import Lab, Record, ms
from stages.stage2_remote_worker import wire
from stages.stage2_remote_worker.channel import Channel
from stages.stage2_remote_worker.remote_worker import RemoteWorker
from stages.stage2_remote_worker.worker import Worker
from stages.stage2_remote_worker.worker_server import WorkerServer

SMALL, SMALL_COUNT = "x" * 64 * 1024, 20
LARGE = "x" * 8 * 1024 * 1024
DEADLINE_S = 0.5
T = 5.0


class Counting:
    """A socket that counts the bytes that the kernel has taken or given."""

    def __init__(self, channel: Channel) -> None:
        self._sock, self.taken, self.given = channel._sock, 0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def send(self, data: memoryview, flags: int = 0) -> int:
        sent = self._sock.send(data, flags)
        self.taken += sent
        return sent

    def recv_into(self, memory: memoryview) -> int:
        nbytes = self._sock.recv_into(memory)
        self.given += nbytes
        return nbytes


def serve(control: Channel) -> None:
    """Run a server whose work function reads nothing until it is told to, and then counts."""

    def read_late(channel: Channel) -> None:
        control.recv()
        sock, count, ending = Counting(channel), 0, "a goodbye"
        channel._sock = sock  # type: ignore[assignment]  # it does what a socket does
        try:
            for _ in channel:
                count += 1
        except ConnectionError as error:
            ending = str(error).partition(": ")[2]
        control.send([count, sock.given, ending])

    server = WorkerServer(read_late)
    control.send([server.host, server.port])
    server.serve_forever()


def run(record: Record) -> None:
    """Send until nothing more fits, and then have the reader read."""
    with contextlib.ExitStack() as stack:
        process = Worker(serve)
        stack.callback(process.close, 0.1)
        worker = stack.enter_context(RemoteWorker(*process.recv(T)))
        sock = Counting(worker)
        worker._sock = sock  # type: ignore[assignment]
        record.say(f"process {process.pid} is connected and does not read")
        late_s, again = 0.0, ""
        for _ in range(SMALL_COUNT):
            worker.send(SMALL, timeout=DEADLINE_S)
        whole = sock.taken
        record.say(f"{SMALL_COUNT} sends of 64 KiB have returned, {whole} bytes with their headers")
        began = time.monotonic()
        try:
            worker.send(LARGE, timeout=DEADLINE_S)
        except TimeoutError as error:
            late_s = time.monotonic() - began
            record.say(f"a send of 8 MiB raises TimeoutError: {error}")
        ours = array.array("i", [0])
        fcntl.ioctl(worker.fileno(), termios.TIOCOUTQ, ours)
        waiting, arrived = ours[0], sock.taken - ours[0]
        record.say(f"our kernel still holds {waiting} bytes, the reader's has {arrived}")
        try:
            worker.send("small")
        except TimeoutError as error:
            again = str(error)
        record.say(f"one more send, of five letters, raises at once: {again}")
        worker.close()
        process.send("read")
        read, given, ending = process.recv(T)
        record.say(f"we hang up, and the reader reads at last: {read} messages; then {ending}")

    claim = DEADLINE_S <= late_s < DEADLINE_S + 1
    found = f"send's deadline, after {ms(late_s)}"
    record.left("who noticed", found, claim=claim, expected=f"after {DEADLINE_S} s")
    found = f"{sock.taken}: {waiting} in our send buffer, {arrived} in the reader's kernel"
    claim = waiting > 0 and arrived > 0
    record.left("bytes in the kernels", found, claim=claim, expected="some in each")
    record.left(
        "bytes read",
        f"{given}, once we had hung up",
        claim=given == sock.taken,
        expected=str(sock.taken),
    )
    found = f"{SMALL_COUNT} sends returned, {read} messages were read"
    record.left("messages", found, claim=read == SMALL_COUNT, expected="as many read as sent")
    part, size = sock.taken - whole, len(wire.encode(wire.MESSAGE, LARGE))
    found = f"{part} of its {size} bytes were out"
    record.left("the late message", found, claim=0 < part < size, expected="a part of it")
    claim = "closed" in again
    record.left("the channel", again or "still open", claim=claim, expected="ended")


LAB = Lab(
    title="a reader that does not read",
    stage=2,
    question="""The other side of a TCP connection never calls recv. You send twenty messages of
    64 KiB and then one of 8 MiB, each with a deadline of half a second. What happens?""",
    answers=(
        "the first send waits and is late: nobody receives it",
        "every send returns: the kernel takes whatever it is given",
        "the small ones return; the large one fills the buffers, is late, and ends the channel",
        "the small ones return; of the large one, what does not fit is dropped",
    ),
    right=2,
    run=run,
    why="""That send returned says that this machine's kernel has the bytes, and nothing about the
    reader. Two buffers lie between them: what the reader's kernel has received, and what ours has
    not been allowed to send yet. Both grow to a limit of some megabytes, and then the socket is
    not writable until somebody reads: TCP drops nothing, it makes the sender wait. The late send
    had put out a part of its message, and a part cannot be taken back, so the channel is ended.
    Everything that was sent whole was still there for the reader, after the sender had hung up.""",
)
