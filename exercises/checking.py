"""What the checks of an exercise are written with."""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

Check = Callable[[ModuleType], None]


class Wrong(Exception):
    """What was expected and what happened instead, each in a few words."""

    def __init__(self, expected: str, happened: str) -> None:
        super().__init__(f"expected {expected}, got {happened}")
        self.expected, self.happened = expected, happened


def expect(truth: object, *, expected: str, happened: str) -> None:
    """Raise Wrong unless something is true."""
    if not truth:
        raise Wrong(expected, happened)


@contextlib.contextmanager
def expect_raises(*kinds: type[BaseException], when: str) -> Iterator[None]:
    """Raise Wrong unless the block raises one of these."""
    names = " or ".join(kind.__name__ for kind in kinds)
    try:
        yield
    except kinds:
        return
    except Wrong:
        raise
    except Exception as error:
        raise Wrong(f"{names} {when}", f"{type(error).__name__}: {error}") from error
    raise Wrong(f"{names} {when}", "nothing was raised")


_notes: list[str] = []


def note(text: str) -> None:
    """Say how things stand, for whoever asks when the next step hangs."""
    _notes[:] = [text]
    if (descriptor := os.environ.get("MINIRAY_NOTE_FD")) is not None:
        os.write(int(descriptor), text.encode() + b"\n")


@dataclass
class Pieces:
    """A socket on which every read returns at most so many bytes."""

    sock: socket.socket
    nbytes: int

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)

    def recv(self, nbytes: int, flags: int = 0) -> bytes:
        if flags & socket.MSG_WAITALL:  # the kernel would put the pieces together
            return self.sock.recv(nbytes, flags)
        return self.sock.recv(min(nbytes, self.nbytes), flags)

    def recv_into(self, memory: Any, *arguments: int) -> int:
        room = memoryview(memory)[: self.nbytes]
        # Of an explicit length no more is asked for than there is room.
        sizes = tuple(min(one, len(room)) for one in arguments[:1])
        return self.sock.recv_into(room, *sizes, *arguments[1:])


def children() -> list[int]:
    """Return the pids of this process's children, zombies included."""
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return [int(pid) for pid in file.read().split()]


def descendants() -> set[int]:
    """Return the pids of this process's children, of theirs, and so on, zombies included."""
    found: set[int] = set()
    todo = [os.getpid()]
    while todo:
        parent = todo.pop()
        with contextlib.suppress(OSError):  # it has ended meanwhile
            for task in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{task}/children") as file:
                    born = {int(pid) for pid in file.read().split()} - found
                found |= born
                todo += born
    return found


def is_running(pid: int) -> bool:
    """Return whether a process exists and is no zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
