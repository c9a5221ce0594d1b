"""Work functions of the contract tests; they know nothing of whose channel they are given."""

import os
import signal
import sys
from typing import Any


def echo(channel: Any) -> None:
    """Send back whatever comes."""
    for message in channel:
        channel.send(message)


def obey(channel: Any) -> None:
    """Do what each message says; send back any other."""
    for order in channel:
        match order:
            case "return":
                return
            case "raise":
                raise LookupError("no rank 12 here: ü")
            case "exit":
                sys.exit(3)
            case "hard exit":
                os._exit(7)
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
            case "pid":
                channel.send(os.getpid())
            case "descriptors":
                channel.send(sorted(int(name) for name in os.listdir("/proc/self/fd")))
            case "sockets":
                links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
                targets = [os.readlink(link) for link in links if os.path.islink(link)]
                channel.send(sum(target.startswith("socket:") for target in targets))
            case "print":
                print("out of rank")
                print("err of rank", file=sys.stderr)
                channel.send("printed")
            case "double fork":
                if os.fork() == 0:
                    signal.signal(signal.SIGTERM, signal.SIG_IGN)
                    while True:
                        signal.pause()
                channel.send("forked")
            case _:
                channel.send(order)
