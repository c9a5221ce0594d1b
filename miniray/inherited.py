"""What a forked child must not keep of its parent's, said in one place.

A copy of a socket keeps its connection alive after the owner has closed it, and a copy of a
process handle may kill what is not its own. So whatever holds descriptors registers here, and
every forked child, be it ours, os.fork's or multiprocessing's, lets go of all of it before it
runs anything else. What a child is to keep is handed over unregistered.
"""

import contextlib
import os
import socket
import threading
import weakref
from collections.abc import Callable
from typing import Protocol


class Owner(Protocol):
    """Something that holds descriptors or a lock which belong to this process alone."""

    def abandon(self) -> None:
        """Let go, in a forked child, of what is the parent's: close the copies and say nothing.

        A child of that child does it once more.
        """


# Held by every fork, and by whoever makes a descriptor until it has an owner.
lock = threading.RLock()
_owners: "weakref.WeakSet[Owner]" = weakref.WeakSet()
_preparations: list[Callable[[], None]] = []


def own(owner: Owner) -> None:
    """Have every child that is forked from now on abandon `owner`, as long as it lives."""
    _owners.add(owner)


def before_fork(prepare: Callable[[], None]) -> None:
    """Have every fork from now on call `prepare` first, while it holds the lock."""
    _preparations.append(prepare)


class OwnedSocket(socket.socket):
    """A socket that no forked child keeps, from the moment that it is made."""

    def __init__(self, family: int, kind: int = socket.SOCK_STREAM) -> None:
        with lock:
            super().__init__(family, kind)
            own(self)

    def abandon(self) -> None:
        self.close()


def _prepare() -> None:
    lock.acquire()
    for prepare in _preparations:
        prepare()


def _abandon_all() -> None:
    global lock
    lock = threading.RLock()  # whoever held it in the parent is not here to release it
    for owner in list(_owners):
        with contextlib.suppress(Exception):  # the parent was in the midst of it; others wait
            owner.abandon()


os.register_at_fork(
    before=_prepare,
    after_in_parent=lambda: lock.release(),  # by name: a child has another
    after_in_child=_abandon_all,
)
