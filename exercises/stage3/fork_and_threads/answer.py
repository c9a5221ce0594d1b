"""A cache that threads fill and forked children use."""

import os
import threading


class Cache:
    """Values by name, and how many bytes they are: the two agree whenever the lock is free.

    A child forked at any moment has what the parent had at that moment, whole, and both of them
    can go on putting.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.values: dict[str, bytes] = {}
        self.nbytes = 0
        # begin yours
        # end yours

    def put(self, name: str, value: bytes) -> None:
        """Add a value under a new name."""
        with self.lock:
            self.nbytes += len(value)
            self.values[name] = value
