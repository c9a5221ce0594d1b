"""Lab: the coordinator of a cluster is killed. Who is left, and for how long?"""

import contextlib
import io
import os
import select
import signal
import time

from exercises.labs.lab import Lab, Record, ms, state_of
from stages.stage4_ssh_cluster.channel import Channel
from stages.stage4_ssh_cluster.cluster import Cluster, NodeConfig
from stages.stage4_ssh_cluster.process import STOP_S
from stages.stage4_ssh_cluster.worker import Worker

WORK = f"{__name__}.work"
ROLES = ("waits in recv", "never looks", "ignores SIGTERM")
# When each of them ends: at once, at SIGTERM, at SIGKILL.
DUE_S = (0.0, STOP_S / 2, STOP_S)
LATE_S = 1.4
T = 5.0


def work(channel: Channel) -> None:
    """Say who this process, its own child and its server are, and end by a way of its own."""
    role = channel.recv()
    if role == ROLES[2]:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = os.fork() if role == ROLES[0] else None
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            signal.pause()
    channel.send([os.getpid(), os.getppid(), child])
    while role != ROLES[0]:
        signal.pause()
    channel.recv()


def coordinate(channel: Channel) -> None:
    """Start a cluster, say which processes there are, and wait to be killed."""
    nodes = [NodeConfig.local(2, host="node1"), NodeConfig.local(1, host="node2")]
    workers = Cluster(nodes, log=io.StringIO()).start(WORK)
    for worker, role in zip(workers, ROLES, strict=True):
        worker.send(role)
    channel.send([worker.recv(T) for worker in workers])
    signal.pause()


def watch(record: Record, ends: dict[int, int], names: dict[int, str]) -> dict[int, float]:
    """Say when the process of each pidfd ends, and return the time; leave out who stays."""
    times = dict[int, float]()
    deadline = time.monotonic() + DUE_S[-1] + LATE_S
    while len(times) < len(ends) and time.monotonic() < deadline:
        waiting = [descriptor for descriptor, pid in ends.items() if pid not in times]
        for descriptor in select.select(waiting, [], [], 0.1)[0]:
            pid = ends[descriptor]
            times[pid] = time.monotonic()
            record.say(f"{pid} ends: {names[pid]}")
    return times


def end(descriptor: int) -> None:
    """Kill a process by its pidfd, if it still runs, and close that."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    os.close(descriptor)


def run(record: Record) -> None:
    """Kill the coordinator, and watch the others end."""
    with Worker(coordinate) as coordinator, contextlib.ExitStack() as stack:
        (one, server1, child), (two, _, _), (three, server2, _) = coordinator.recv(T)
        workers = dict(zip((one, two, three), ROLES, strict=True))
        names = {pid: f"the worker that {role}" for pid, role in workers.items()}
        names |= {child: "a child of the first worker"}
        names |= {server1: "the server of both", server2: "the server of the third"}
        order = (one, child, two, server1, three, server2)
        record.say(f"the coordinator is {coordinator.pid}; below it are {len(names)} processes")
        ends = dict[int, int]()
        for pid in order:
            record.say(f"{pid} is {names[pid]}")
            descriptor = os.pidfd_open(pid)
            stack.callback(end, descriptor)
            ends[descriptor] = pid
        killed = time.monotonic()
        os.kill(coordinator.pid, signal.SIGKILL)
        record.say(f"SIGKILL to {coordinator.pid}: no code of it runs any more")
        times = watch(record, ends, names)
        status = coordinator.wait(T)
        left = [f"{pid} ({state_of(pid)})" for pid in order if pid not in times]

    claim = status == -signal.SIGKILL
    record.left("the coordinator", f"exit status {status}", claim=claim, expected="-9")
    for pid, due_s in zip(order, sorted(DUE_S * 2), strict=True):
        after = times.get(pid, float("inf")) - killed
        claim = due_s <= after < due_s + LATE_S
        record.left(names[pid], f"ended after {ms(after)}", claim=claim, expected=f"{due_s} s")
    record.left("processes left", ", ".join(left) or "none", claim=not left, expected="none")


LAB = Lab(
    title="the coordinator of a cluster is killed",
    stage=4,
    question=f"""A coordinator has started servers on two nodes, and they have forked three workers:
    one waits in recv, one never looks at its channel, one ignores SIGTERM as well. The coordinator
    gets SIGKILL, so it can tell nobody. Who is left after {DUE_S[-1] + LATE_S:g} seconds?""",
    answers=(
        "all: who loses a parent is adopted by init, and goes on",
        "the servers, which wait for the next coordinator",
        "the worker that ignores SIGTERM, with its server",
        "nobody",
    ),
    right=3,
    run=run,
    why="""The kernel closes what a process held open, however it ends: here the connections to the
    workers, and the other end of each node's stdin. A worker that waits in recv reads the end of
    file at once. For the others there is the server. Its parent, the keeper, reads the end of
    stdin: that is the end of the lease. So the server hangs up, sends SIGTERM after half of the
    time that it gives, and SIGKILL at the end of it. A signal goes to the worker's process group,
    so what a worker has started goes along. A server ends last, because it is the parent and has
    to reap.""",
)
