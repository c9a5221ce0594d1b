"""A loop that waits for descriptors and due times, and calls who asked for them."""

import contextlib
import math
import select
import socket
from collections.abc import Callable

from miniray import inherited

# A signal that comes just before poll() wakes nobody: look that often whether one did.
TICK_S = 0.5


class PollLoop:
    """Call a handler for each ready descriptor; call each duty on every turn.

    A duty does what is due and returns the seconds until it wants to be called again, None if
    nothing is due at any time. A handler must not block, and may be called once in vain.
    """

    def __init__(self) -> None:
        self.duties: list[Callable[[], float | None]] = []
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        with inherited.lock:
            self._wake_read, self._wake_write = socket.socketpair()
            inherited.own(self)
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self.watch(self._wake_read.fileno(), select.POLLIN, self._on_wake)

    def watch(self, descriptor: int, events: int, handler: Callable[[int], None]) -> None:
        """Call `handler(events)` whenever one of the events is there; replaces an earlier watch."""
        self._handlers[descriptor] = handler
        self._poll.register(descriptor, events)

    def unwatch(self, descriptor: int) -> None:
        """Call no handler for a descriptor any more; to be called before it is closed."""
        if self._handlers.pop(descriptor, None):
            self._poll.unregister(descriptor)

    def turn(self) -> None:
        """Do what is due, wait for something to happen, and call the handlers of what did."""
        waits = [seconds for duty in self.duties if (seconds := duty()) is not None]
        timeout_ms = math.ceil(max(min([*waits, TICK_S]), 0) * 1000)
        ready = [
            (descriptor, events, self._handlers[descriptor])
            for descriptor, events in self._poll.poll(timeout_ms)
        ]
        for descriptor, events, handler in ready:
            # A handler before this one may have closed the descriptor, and used its number again.
            if self._handlers.get(descriptor) is handler:
                handler(events)

    def wake(self) -> None:
        """Have a turn begin now; any thread may call it, or a signal handler, at any time."""
        # Under the lock nobody closes the socket meanwhile; closed, it has no number to write to.
        with inherited.lock, contextlib.suppress(OSError):
            self._wake_write.send(b"w")

    def close(self) -> None:
        """Close the loop's own descriptors; `wake` does nothing from now on."""
        with inherited.lock:
            self._wake_read.close()
            self._wake_write.close()

    abandon = close  # in a forked child

    def _on_wake(self, events: int) -> None:
        self._wake_read.recv(4096)
