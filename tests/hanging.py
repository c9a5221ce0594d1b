"""Ranks that hang, each in its own way, and a coordinator that waits for one of them.

python -m tests.hanging OPTIONS starts four ranks on two nodes for each line that it reads, which
says how they are to hang, and prints the ranks' pids once they are about to. SIGINT ends them.
OPTIONS are those of every NodeConfig, in JSON; with "local" both nodes are this machine.
"""

import contextlib
import itertools
import json
import mmap
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from miniray import Channel, Cluster, NCCLConfig, NodeConfig, RemoteWorker, window

CULPRIT = 2
CALLS_S = 2.0
START_S = 300.0  # a busy machine takes its time to import torch; nothing is measured by it
NODES = ("node1", "node2")


def loop() -> None:
    for _ in itertools.count():  # here: loop
        pass  # here: body of loop


def loop_in_c() -> None:
    re.match("(a*)*b", "a" * 60)  # here: loop_in_c


def sleep() -> None:
    threading.Event().wait()  # here: sleep


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)  # here: stop


def block() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {window.LOOK_SIGNAL})
    threading.Event().wait()


WAYS = {one.__name__: one for one in (loop, loop_in_c, sleep, stop, block)}


def hang(channel: Channel) -> None:
    """Wait for a second message, for which the coordinator does not think; the culprit hangs."""
    how, place = channel.recv()
    channel.send(os.getpid())
    if place["rank"] == CULPRIT and how in WAYS:
        WAYS[how]()
        channel.send("went on")
    channel.recv()  # here: recv of a rank


def stop_and_count(channel: Channel) -> None:
    """Stop, and then count up in a file, from the first instruction on."""
    path = channel.recv()
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 8) as counter:
        channel.send(os.getpid())
        os.kill(os.getpid(), signal.SIGSTOP)
        for number in itertools.count(1):
            counter[:] = number.to_bytes(8, "little")


def become_sleep(channel: Channel) -> None:
    """Become another program, which has no handler for any signal."""
    channel.send(os.getpid())
    os.execvp("sleep", ["sleep", "600"])


def be_busy_in_threads(channel: Channel) -> None:
    """Have calls come and go in many threads; in the first one in answer to each message."""

    def call(depth: int) -> int:
        return depth if depth == 0 else call(depth - 1)

    def calls(until: threading.Event) -> None:
        while not until.is_set():
            eval(compile("call(20)", "made.py", "eval"), {"call": call})

    for _ in range(4):
        threading.Thread(target=calls, args=[threading.Event()], daemon=True).start()
    channel.send(os.getpid())
    for _ in channel:
        enough = threading.Event()
        threading.Timer(CALLS_S, enough.set).start()
        calls(enough)
        channel.send("still here")


def coordinate(channel: Channel) -> None:
    """Coordinate a cluster of its own for a while."""
    with Cluster([NodeConfig.local(1)]) as cluster:
        cluster.start("tests.work.echo")
        channel.send("coordinating")
        channel.recv()  # here: recv of a coordinating rank
    channel.send("done")
    channel.recv()


def hold_memory(channel: Channel) -> None:
    """Hold 3 MiB, as a fake GPU's account would say."""
    window.show_memory(3 << 20, 64 << 20)
    channel.send("holding")
    channel.recv()


def own_title() -> str:
    """Return what ps shows."""
    return Path("/proc/self/cmdline").read_bytes().rstrip(b"\0").decode()


def tell_environment(channel: Channel) -> None:
    """Send this process's pid and its environment, as a new program would have it."""
    read = subprocess.run(["env"], capture_output=True, text=True, check=True).stdout
    channel.send(
        [os.getpid(), dict(line.split("=", 1) for line in read.splitlines() if "=" in line)]
    )
    channel.recv()


def main(work_fn: str, options: dict[str, Any]) -> None:
    """Start the ranks, and wait for the culprit, again and again."""
    if options.pop("local", False):
        nodes = [NodeConfig.local(2, host=name, **options) for name in NODES]
    else:
        nodes = [NodeConfig(name, 2, python=sys.executable, **options) for name in NODES]
    with Cluster(nodes, fake_gpus=True, start_timeout=START_S) as cluster:
        for number, line in enumerate(iter(sys.stdin.readline, "")):
            workers = cluster.restart() if number else cluster.start(work_fn)
            with contextlib.suppress(KeyboardInterrupt):
                wait_for_them(workers, line.strip(), cluster.nccl_configs())


def wait_for_them(workers: list[RemoteWorker], how: str, places: list[NCCLConfig]) -> None:
    """Have ranks hang, and wait for the culprit's next message."""
    for worker, place in zip(workers, places, strict=True):
        worker.send([how, place.__dict__])
    print(json.dumps([worker.recv(START_S) for worker in workers]), flush=True)
    print(workers[CULPRIT].recv(), flush=True)  # here: recv of the coordinator
    threading.Event().wait()


if __name__ == "__main__":
    main("tests.hanging.hang", json.loads(sys.argv[1]))
