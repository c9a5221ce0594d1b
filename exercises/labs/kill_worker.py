"""Lab: a worker is killed while its parent waits for an answer, and another while nobody asks."""

import os
import select
import signal
import threading
import time

from exercises.labs.lab import Lab, Record, ms, state_of
from stages.stage1_uds_worker.channel import Channel
from stages.stage1_uds_worker.errors import WorkerDied
from stages.stage1_uds_worker.worker import Worker

SOON_S, NOTICED_S = 0.5, 1.0


def echo(channel: Channel) -> None:
    """Send back whatever comes."""
    for message in channel:
        channel.send(message)


def run(record: Record) -> None:
    """Kill two of three workers."""
    with Worker(echo) as asked, Worker(echo) as unasked, Worker(echo) as sibling:
        record.say(f"workers {asked.pid}, {unasked.pid} and {sibling.pid} are forked")
        killed_at = time.monotonic() + SOON_S
        timer = threading.Timer(SOON_S, os.kill, (asked.pid, signal.SIGKILL))
        timer.start()
        record.say(f"recv from {asked.pid}, which sends nothing; SIGKILL in {SOON_S} s")
        said = "nothing"
        try:
            asked.recv()
        except WorkerDied as error:
            said = f"WorkerDied: {error}"
        finally:
            timer.cancel()
        late = time.monotonic() - killed_at
        record.say(f"recv raises {said}")
        status, state = asked.wait(), state_of(asked.pid)

        os.kill(unasked.pid, signal.SIGKILL)
        wait_for_end(unasked.pid)
        before = state_of(unasked.pid)
        record.say(f"SIGKILL to {unasked.pid}, of which nobody asks anything: it is {before}")
        unasked.close()
        after = state_of(unasked.pid)
        record.say(f"its worker.close(): it is {after}")
        sibling.send("here")
        answer = sibling.recv()
        record.say(f"the sibling, {sibling.pid}, answers {answer!r}")

    found = f"recv, {ms(late)} after the kill: {said}"
    claim = "was killed by SIGKILL" in said and late < NOTICED_S
    record.left("who noticed", found, claim=claim, expected="recv, at once, with SIGKILL")
    found = f"{status}; process {asked.pid} is {state}"
    record.left("exit status", found, claim=(status, state) == (-9, "gone"), expected="-9; gone")
    found = f"{before} before close(), {after} after it"
    claim = (before, after) == ("a zombie", "gone")
    record.left("the other one", found, claim=claim, expected="a zombie, then gone")
    claim = answer == "here"
    record.left("the sibling", f"answers {answer!r}", claim=claim, expected="an answer")


def wait_for_end(pid: int) -> None:
    """Wait for a child's end without reaping it."""
    descriptor = os.pidfd_open(pid)
    select.select([descriptor], [], [], 5.0)
    os.close(descriptor)


LAB = Lab(
    title="a worker is killed while its parent waits in recv",
    stage=1,
    question="""A worker gets SIGKILL while its parent waits in recv, without a deadline. No code
    of the worker runs any more, so it can send nothing. What does the parent see?""",
    answers=(
        "recv waits forever: nobody is left who could send",
        "recv raises at once and names the signal, and no zombie is left of this worker",
        "recv raises at once, but cannot know why the worker is gone",
        "recv raises at once, and a zombie is left until close()",
    ),
    right=1,
    run=run,
    why="""The kernel closes all descriptors of a process that ends, whatever ended it. The worker
    held the only other end of the socketpair, so recv reads the end of file. It cannot tell a
    crash from anything else, so recv goes on to waitpid: the status says which signal it was, and
    the zombie, which was only that status, goes. A worker of which nobody asks anything stays a
    zombie until close() calls waitpid. The sibling notices nothing, because it has a socketpair of
    its own and holds no copy of another one.""",
)
