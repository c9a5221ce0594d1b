"""Chapter 3: a stranger comes to the port, and a worker crashes without a word."""

import ctypes
import os
import resource
import signal
import socket
from collections.abc import Callable
from typing import Any

from stages.stage2_remote_worker import remote_worker as stage2
from stages.stage2_remote_worker import worker_server as server2
from stages.stage2_remote_worker.channel import Channel as Channel2
from stages.stage2_remote_worker.errors import WorkerDied as WorkerDied2
from stages.stage3_worker_server import auth
from stages.stage3_worker_server.channel import Channel
from stages.stage3_worker_server.errors import WorkerDied
from stages.stage3_worker_server.remote_worker import RemoteWorker
from stages.stage3_worker_server.worker import Worker
from stages.stage3_worker_server.worker_server import WorkerServer

from . import job

WORKERS, STEPS, PATIENCE_S = 4, 8, 2.0


def compute(coordinator: Any) -> None:
    """Receive a share, then answer weights with its gradient; and crash once, as C code does."""
    share, crashes_at = coordinator.recv()
    for step, weights in enumerate(coordinator):
        if step == crashes_at:
            crash()
        coordinator.send(job.compute(weights, share))


def crash() -> None:
    """Read from address 0, which is nobody's: the kernel sends SIGSEGV."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # without a file of all that was in memory
    ctypes.string_at(0)


def dies() -> None:
    """Run the job on stage 2's servers, in two nights."""
    print("The first night. Somebody else finds the port of worker 1 first, and says nothing:")
    servers = [Worker(serve_stage2) for _ in range(WORKERS)]
    ports = [server.recv() for server in servers]
    with socket.create_connection(("127.0.0.1", ports[1])):
        try:
            train(connect_stage2(ports), crashes_at=None)
        except TimeoutError as error:
            print(f"   TimeoutError: {error}; it is connected, though")
    print("The second night. Nobody comes, and worker 2 crashes in its fourth step:")
    workers = connect_stage2(ports)
    try:
        train(workers, crashes_at=3)
    except WorkerDied2 as error:
        print(f"   WorkerDied: {error}")
    servers[2].wait(timeout=10.0)  # the kernel closes its listener last
    try:
        stage2.RemoteWorker("127.0.0.1", ports[2])
    except ConnectionError as error:
        print(f"   ConnectionError: {str(error).partition(': ')[2]}")
    for one in workers:
        one.close()
    for server in servers:
        server.close(timeout=0.2)


def serve_stage2(channel: Channel) -> None:
    """Be a machine with stage 2's server."""
    server = server2.WorkerServer(compute)
    channel.send(server.port)
    server.serve_forever()


def connect_stage2(ports: list[int]) -> list[Channel2]:
    return [
        stage2.RemoteWorker("127.0.0.1", port, name=f"worker {number}")
        for number, port in enumerate(ports)
    ]


def train(workers: list[Any], crashes_at: int | None) -> None:
    for number, (worker, share) in enumerate(zip(workers, job.read_shares(WORKERS), strict=True)):
        worker.send([share, crashes_at if number == 2 else None])
    job.train(workers, STEPS, lambda worker: worker.recv(timeout=PATIENCE_S))


def survives() -> None:
    """Run it on one server of stage 3, with the stranger and the crash in the same night."""
    key = auth.make_key()
    with Worker(lambda channel: serve(channel, key)) as machine:
        port = machine.recv()
        with socket.create_connection(("127.0.0.1", port)):
            crashes_at = [None, None, 3, None]
            workers = [start(port, key, number, at) for number, at in enumerate(crashes_at)]
            losses = train_on(workers, lambda number: start(port, key, number, None))
        os.kill(machine.pid, signal.SIGTERM)
        print(f"   the server ended with status {machine.wait()}")
    same = losses == job.train_alone(WORKERS)[:STEPS]
    print(f"   the losses of a job to which nothing happened: {'the same' if same else 'others'}")


def serve(channel: Channel, key: bytes) -> None:
    """Be a machine with stage 3's server, whose remarks go to the page, too."""
    os.dup2(1, 2)
    server = WorkerServer(compute, key=key)
    channel.send(server.port)
    server.serve_forever()


def start(port: int, key: bytes, number: int, crashes_at: int | None) -> RemoteWorker:
    worker = RemoteWorker("127.0.0.1", port, key=key, name=f"worker {number}")
    worker.send([job.read_shares(WORKERS)[number], crashes_at])
    return worker


def train_on(
    workers: list[RemoteWorker], start_another: Callable[[int], RemoteWorker]
) -> list[float]:
    weights, losses = job.make_weights(), []
    for step in range(STEPS):
        answers = []
        for number in range(WORKERS):
            try:
                workers[number].send(weights)
                answers.append(workers[number].recv(timeout=PATIENCE_S))
            except WorkerDied as error:
                print(f"   step {step:2}  {error}; another takes its place")
                workers[number] = start_another(number)
                workers[number].send(weights)
                answers.append(workers[number].recv(timeout=PATIENCE_S))
        weights, loss = job.make_step(weights, answers)
        losses.append(loss)
        print(f"   step {step:2}  loss {loss:.4f}")
    for worker in workers:
        worker.close()
    return losses
