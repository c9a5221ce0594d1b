"""Chapter 1: the job is written in an afternoon, and dies of half a message."""

import json
import os
import select
import signal
import socket
from typing import Any

from stages.stage1_uds_worker.channel import Channel
from stages.stage1_uds_worker.errors import WorkerDied
from stages.stage1_uds_worker.worker import Worker

from . import job

WORKERS, PATIENCE_S = 4, 2.0

Pair = tuple[socket.socket, socket.socket]


def work(sock: socket.socket, share: str) -> None:
    while True:
        weights = json.loads(sock.recv(4096))
        sock.sendall(json.dumps(job.compute(weights, share)).encode())


def start(shares: list[str]) -> tuple[list[int], list[Pair]]:
    pairs = [socket.socketpair() for _ in shares]
    pids = []
    for share, (_, theirs) in zip(shares, pairs, strict=True):
        pid = os.fork()
        if pid == 0:
            work(theirs, share)
        pids.append(pid)
    return pids, pairs


def train(pairs: list[Pair], letters: int, steps: int) -> None:
    weights = job.make_weights(letters)
    for step in range(steps):
        for ours, _ in pairs:
            ours.sendall(json.dumps(weights).encode())
        answers = [json.loads(receive(ours)) for ours, _ in pairs]
        weights, loss = job.make_step(weights, answers)
        print(f"   step {step:2}  loss {loss:.4f}")


def run(letters: int) -> None:
    try:
        pids, pairs = start(job.read_shares(WORKERS, letters))
        train(pairs, letters, steps=3)
    except json.JSONDecodeError as error:
        os.write(1, f"   a worker: JSONDecodeError: {error}\n".encode())
        os._exit(1)
    except Stuck as error:
        look_at(pids, error)
    end(pids)


def dies() -> None:
    """Run it as it was written."""
    for letters in (6, 27):
        print(f"{WORKERS} workers, and an alphabet of {letters} letters:")
        run(letters)


def look_at(pids: list[int], error: "Stuck") -> None:
    print(f"   {error}")
    for pid in pids:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # on a busy machine not all at once
    states = [state_of(pid) for pid in pids]
    print(f"   its workers are {states.count('Z')} zombies; what it has said of that: nothing")


def end(pids: list[int]) -> None:
    """Leave no process behind, which the job as it was written would do."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


class Stuck(Exception):
    """We have watched a recv without a deadline for long enough."""


def receive(sock: socket.socket) -> bytes:
    """Return sock.recv(65536), except that a page of a book cannot wait forever."""
    while not select.select([sock], [], [], PATIENCE_S)[0]:
        if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):  # else it is only late
            raise Stuck(f"{PATIENCE_S:.0f} s later: the coordinator is still in recv")
    return sock.recv(65536)


def state_of(pid: int) -> str:
    """Return a process's state, as ps shows it: R runs, S sleeps, Z is a zombie."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


def compute(channel: Channel, share: str) -> None:
    """Answer weights with the gradient of a share, until the coordinator hangs up."""
    for weights in channel:
        channel.send(job.compute(weights, share))


def survives() -> None:
    """Run the same job on stage 1's workers, one of which is killed."""
    shares = job.read_shares(WORKERS)
    workers = [start_worker(share, number) for number, share in enumerate(shares)]
    weights, losses = job.make_weights(), []
    for step in range(job.STEPS):
        if step == 20:
            os.kill(workers[2].pid, signal.SIGKILL)
        answers = [ask(workers, n, shares[n], weights, step) for n in range(WORKERS)]
        weights, loss = job.make_step(weights, answers)
        losses.append(loss)
        if step % 10 == 0 or step == job.STEPS - 1:
            print(f"   step {step:2}  loss {loss:.4f}")
    for worker in workers:
        worker.close()
    same = losses == job.train_alone(WORKERS)
    print(f"   the losses of a job to which nothing happened: {'the same' if same else 'others'}")
    print(f"   what it has learned to write: {''.join(job.write(weights))!r}")


def ask(workers: list[Worker], number: int, share: str, weights: job.Table, step: int) -> Any:
    while True:
        try:
            workers[number].send(weights)
            return workers[number].recv()
        except WorkerDied as error:
            print(f"   step {step:2}  {error}; another takes its place")
            workers[number].close()
            workers[number] = start_worker(share, number)


def start_worker(share: str, number: int) -> Worker:
    return Worker(lambda channel: compute(channel, share), name=f"worker {number}")
