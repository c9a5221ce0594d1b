"""Lab: half a frame arrives; then the rest does, or the sender dies."""

import contextlib
import os
import signal
import time

from exercises.labs.lab import Lab, Record, ms
from stages.stage2_remote_worker import wire
from stages.stage2_remote_worker.channel import Channel
from stages.stage2_remote_worker.errors import WorkerDied
from stages.stage2_remote_worker.remote_worker import RemoteWorker
from stages.stage2_remote_worker.worker import Worker
from stages.stage2_remote_worker.worker_server import WorkerServer

MESSAGE = "slow, but whole"
FRAME = wire.encode(wire.MESSAGE, MESSAGE)
HALF_BYTES = 15
DEADLINE_S = 0.3
T = 5.0


def send_parts(channel: Channel) -> None:
    """Send the first or the last part of a frame, or die, as each message says."""
    for order in channel:
        match order:
            case "first":
                channel._sock.sendall(FRAME[:HALF_BYTES])
            case "last":
                channel._sock.sendall(FRAME[HALF_BYTES:])
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)


def serve(control: Channel) -> None:
    """Run a server, and say where it listens."""
    server = WorkerServer(send_parts)
    control.send([server.host, server.port])
    server.serve_forever()


def run(record: Record) -> None:
    """Receive one frame in two parts, and one of which there is no second part."""
    with contextlib.ExitStack() as stack:
        process = Worker(serve)
        stack.callback(process.close, 0.1)
        host, port = process.recv(T)
        worker = stack.enter_context(RemoteWorker(host, port))
        record.say(f"a server, process {process.pid}; a frame of {len(FRAME)} bytes is due")
        worker.send("first")
        began, late = time.monotonic(), 0.0
        try:
            worker.recv(DEADLINE_S)
        except TimeoutError as error:
            late = time.monotonic() - began
            record.say(f"{HALF_BYTES} bytes are sent; recv raises TimeoutError: {error}")
        # The decoder wants the rest of the body; the prelude is complete and is read no more.
        missing = len(worker._decoder.want)
        record.say(f"the decoder keeps what came, and wants {missing} bytes more")
        worker.send("last")
        answer = worker.recv(T)
        record.say(f"the rest is sent; the next recv returns {answer!r}")
        worker.send("first")
        worker.send("die")
        said = "nothing"
        try:
            worker.recv(T)
        except WorkerDied as error:
            said = f"WorkerDied: {error}"
        record.say(f"again {HALF_BYTES} bytes, and SIGKILL; recv raises {said}")
        status = process.wait(T)

    claim = DEADLINE_S <= late < DEADLINE_S + 1
    record.left("who noticed", f"recv's deadline, after {ms(late)}", claim=claim, expected="0.3 s")
    found = f"{HALF_BYTES} were kept, {missing} were missing"
    claim = HALF_BYTES + missing == len(FRAME)
    record.left("bytes", found, claim=claim, expected=f"{len(FRAME)} together")
    claim = answer == MESSAGE
    record.left("the message", repr(answer), claim=claim, expected=repr(MESSAGE))
    claim = "gone" in said
    record.left("the second half frame", said, claim=claim, expected="WorkerDied")
    claim = status == -signal.SIGKILL
    record.left("the server's status", str(status), claim=claim, expected="-9")


LAB = Lab(
    title="half a frame arrives, and the rest is late",
    stage=2,
    question=f"""A frame of {len(FRAME)} bytes is on its way. {HALF_BYTES} bytes of it arrive, and
    then nothing for longer than recv's deadline. Later the rest arrives. What do the first and
    the next recv do?""",
    answers=(
        "the first returns what has arrived, the next the rest",
        "the first raises TimeoutError; the next begins in mid-frame, and raises ProtocolError",
        "the first raises TimeoutError; the next returns the whole message",
        "the first raises TimeoutError and closes the channel, so the next raises, too",
    ),
    right=2,
    run=run,
    why="""TCP carries bytes and knows no messages, so a read may end anywhere. The decoder belongs
    to the channel and not to the call: what has come stays there when recv is late, and the next
    recv asks only for what is missing. A half frame that stays half is no message, so when the
    sender dies nothing of it is returned, and the end of file becomes WorkerDied. A send that was
    late is another matter: half a message may be out, and the channel is ended. In this stage the
    work function runs in the server's own process, so the server died with it; stage 3 forks.""",
)
