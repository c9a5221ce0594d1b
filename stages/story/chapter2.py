"""Chapter 2: the job moves to a second machine, and the way there has a bad cable.

The second machine is a process on this one; the cable is a process that passes bytes on, and that
stumbles once, for a second, in the middle of a message.
"""

import json
import select
import socket
import time
from collections.abc import Callable
from typing import Any

from stages.stage1_uds_worker import wire as wire1
from stages.stage1_uds_worker.channel import Channel as Channel1
from stages.stage1_uds_worker.errors import ProtocolError
from stages.stage2_remote_worker.channel import Channel
from stages.stage2_remote_worker.remote_worker import RemoteWorker
from stages.stage2_remote_worker.worker import Worker
from stages.stage2_remote_worker.worker_server import WorkerServer

from . import job

WORKERS, STEPS, PATIENCE_S, STUMBLE_S = 4, 8, 1.0, 1.6
STUMBLE_BYTES = 40_000


class Patient(Channel1):
    """Stage 1's channel, over TCP, with a deadline: who is late is simply asked again."""

    def recv(self) -> Any:
        self._sock.settimeout(PATIENCE_S)
        while True:
            try:
                _, length = wire1.decode_prelude(self._recv_exactly(wire1.PRELUDE.size))
                return json.loads(self._recv_exactly(length))
            except TimeoutError:
                print(f"   {self.name} was late; asking again")


def dies() -> None:
    """Run stage 1's channel over TCP."""
    shares = job.read_shares(WORKERS)
    machines = [start(serve_as_before, share) for share in shares]
    with Worker(stumble) as cable:
        cable.send(machines[2].recv())
        ports = [
            machine.recv() if machine is not machines[2] else cable.recv() for machine in machines
        ]
        workers = [
            Patient(socket.create_connection(("127.0.0.1", port)), name=f"worker {number}")
            for number, port in enumerate(ports)
        ]
        try:
            job.train(workers, STEPS, lambda worker: worker.recv())
        except ProtocolError as error:
            print(f"   ProtocolError: {error}")
        for worker in workers:
            worker.close()
    for machine in machines:
        machine.close()


def start(serve: Callable[[Channel, str], None], share: str) -> Worker:
    """Start what stands for another machine."""
    return Worker(lambda channel: serve(channel, share))


def serve_as_before(channel: Channel, share: str) -> None:
    """Be the other machine: say which port, take one connection, and compute."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        channel.send(listener.getsockname()[1])
        with Channel1(listener.accept()[0]) as coordinator:
            for weights in coordinator:
                coordinator.send(job.compute(weights, share))


def stumble(channel: Channel) -> None:
    """Be a cable to a port: pass bytes on in both directions, and once stop for a while."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(("127.0.0.1", channel.recv()))
        channel.send(listener.getsockname()[1])
        near = listener.accept()[0]
    passed = 0
    while True:
        for sock in select.select([near, far], [], [])[0]:
            data = sock.recv(4096)
            if not data:
                return
            if sock is far and passed < STUMBLE_BYTES <= (passed := passed + len(data)):
                time.sleep(STUMBLE_S)
            (near if sock is far else far).sendall(data)


def survives() -> None:
    """Run the same job, over the same cable, on stage 2's servers."""
    machines = [start(serve, share) for share in job.read_shares(WORKERS)]
    with Worker(stumble) as cable:
        cable.send(machines[2].recv())
        ports = [
            machine.recv() if machine is not machines[2] else cable.recv() for machine in machines
        ]
        workers = [
            RemoteWorker("127.0.0.1", port, name=f"worker {number}")
            for number, port in enumerate(ports)
        ]
        losses = job.train(workers, STEPS, receive)
        for worker in workers:
            worker.close()
    for machine in machines:
        machine.close(timeout=0.2)  # a server serves until a signal ends it
    same = losses == job.train_alone(WORKERS)[:STEPS]
    print(f"   the losses of a job to which nothing happened: {'the same' if same else 'others'}")


def receive(worker: RemoteWorker) -> Any:
    """Receive with the same deadline, and ask again in the same way."""
    while True:
        try:
            return worker.recv(timeout=PATIENCE_S)
        except TimeoutError as error:
            print(f"   TimeoutError: {error}; asking again")


def serve(channel: Channel, share: str) -> None:
    """Be the other machine: run stage 2's server, and say where it listens."""

    def work(coordinator: Channel) -> None:
        for weights in coordinator:
            coordinator.send(job.compute(weights, share))

    server = WorkerServer(work)
    channel.send(server.port)
    server.serve_forever()
