"""Work functions that the tests run in workers."""

import ctypes
import faulthandler
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from miniray import Channel


def echo(channel: Channel) -> None:
    for message in channel:
        channel.send(message)


def obey(channel: Channel) -> None:
    """Do what the first message says; then echo."""
    for order in channel:
        match order:
            case "return":
                return
            case "raise":
                raise ValueError("no such batch: 7")
            case "raise odd":
                raise FileNotFoundError("no such file: caf\udce9")  # as os.fsdecode names one
            case "exit":
                sys.exit(3)
            case ("exit", status):
                sys.exit(status)
            case "hard exit":
                os._exit(7)
            case ("hard exit", status):
                os._exit(status)
            case "segfault":
                faulthandler.disable()  # pytest's, which would print every thread's stack
                os.kill(os.getpid(), signal.SIGSEGV)
            case "null pointer":
                faulthandler.disable()
                ctypes.string_at(0)
            case "real-time signal":
                os.kill(os.getpid(), 40)
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                channel.send("hanging")
                while True:
                    signal.pause()
            case "do not read":
                channel.send("not reading")
                signal.pause()
            case "send and die":
                channel.send("last words")
                os.kill(os.getpid(), signal.SIGKILL)
            case "send and raise":
                channel.send("last words")
                raise ValueError("after the last words")
            case "send 64 MiB":
                channel.send(bytes(64 << 20))
            case ("send arrays", sizes):
                channel.send([bytes(size) for size in sizes])
            case "object":
                try:
                    channel.send({"batch": object()})
                except TypeError as error:
                    channel.send(str(error))
            case "pid":
                channel.send(os.getpid())
            case ("print", number):
                for _ in range(number):
                    print("x" * 1000)
                channel.send("printed")
            case "print odd":
                print("caf\udce9 \N{SNOWMAN}")
                print("caf\udce9 \N{SNOWMAN}", file=sys.stderr)
                channel.send("printed")
            case ("send many", number):
                for index in range(number):
                    channel.send([index, bytes(1000)])
                return
            case "leave a holder":
                # As C code may: inheritable, and then it runs another program.
                copy = os.dup(channel.descriptor())
                sleep = ["sleep", "600"]
                holder = subprocess.Popen(sleep, pass_fds=[copy], start_new_session=True)
                channel.send(holder.pid)
            case "hang up and stay":
                with socket.socket(fileno=os.dup(channel.descriptor())) as copy:
                    copy.shutdown(socket.SHUT_RDWR)
                signal.pause()
            case "repr":
                channel.send(repr(channel))
            case "grandchildren":
                quiet: Any = {"stdin": subprocess.DEVNULL, "start_new_session": False}
                ours = subprocess.Popen(["sleep", "600"], **quiet)
                quiet["start_new_session"] = True
                gone = subprocess.Popen(["sleep", "600"], **quiet)
                shell = ["sh", "-c", "sleep 600 >&- & echo $!"]
                orphan = subprocess.run(
                    shell, stdout=subprocess.PIPE, start_new_session=True
                ).stdout
                channel.send([os.getpid(), ours.pid, gone.pid, int(orphan)])
            case "orphans":
                shell = ["sh", "-c", "for _ in 1 2 3; do sleep 1 2>/dev/null & echo $! >&2; done"]
                said = subprocess.run(shell, stderr=subprocess.PIPE, text=True, check=True).stderr
                channel.send(list(map(int, said.split())))
            case _:
                channel.send(order)


not_a_function = 7


def fail_until(folder: str, times: int) -> int:
    """Fail `times` times, of which files in a folder tell; then return how many that were.

    All ranks of one attempt see the same number, for the file is made by the last thing that
    rank 0 does; the others fail with it.
    """
    rank = int(os.environ["RANK"])
    failed = len(list(Path(folder).glob("failed-*")))
    if failed < times:
        if rank == 0:
            (Path(folder) / f"failed-{failed}").touch()
            raise RuntimeError(f"not yet: {failed} of {times}")
        signal.pause()
    return failed


def lose_node(lost: str) -> int:
    """On node 1, note that the node is lost and kill its server; on node 0, return the size."""
    if os.environ["GROUP_RANK"] == "1":
        Path(lost).touch()
        os.kill(os.getppid(), signal.SIGKILL)
        signal.pause()
    if os.environ["WORLD_SIZE"] == "4":
        signal.pause()
    return int(os.environ["WORLD_SIZE"])
