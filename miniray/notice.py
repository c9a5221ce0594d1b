"""A note for other terminals of this machine: which cluster this process coordinates, and where.

~/.miniray/clusters has a file for each, which only its user can read, for it holds the cluster's
key. It is locked as long as the coordinator lives; so whoever finds one unlocked knows that it was
left behind by one that was killed.
"""

import contextlib
import fcntl
import json
import os
import secrets
import socket
import sys
import weakref
from pathlib import Path
from typing import Any

from miniray import inherited, window


def folder_of_notices() -> Path:
    """Return where the notices of this user are."""
    return Path("~/.miniray/clusters").expanduser()


class Notice:
    """The note of one cluster; a home that takes none in keeps no cluster from its work."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._descriptor = -1
        inherited.own(self)

    def post(self, facts: dict[str, Any]) -> None:
        """Say what there is, in place of what this notice has said before."""
        with contextlib.suppress(OSError, RuntimeError):  # no home, or it is full; no folder
            where = {"host": socket.gethostname(), "pid": os.getpid(), "folder": os.getcwd()}
            facts = where | facts | {"window": _open_window(self), "command": sys.argv}
            folder = folder_of_notices()
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = self._path or folder / f"{secrets.token_hex(8)}.json"
            draft = path.with_suffix(".new")
            with inherited.lock:
                new = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                before, self._descriptor = self._descriptor, new
            self._path = path
            fcntl.flock(new, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody else has it yet
            with open(new, "w", closefd=False) as file:
                json.dump(facts, file)
            draft.replace(path)  # all of it, and locked
            if before >= 0:
                os.close(before)

    def remove(self) -> None:
        """Take it away: nobody coordinates this cluster any more."""
        if self._path is not None:
            with contextlib.suppress(OSError):  # whoever looks finds it unlocked
                self._path.unlink()
        self.abandon()

    __del__ = remove  # a cluster that nobody has stopped, and nobody has any more

    def abandon(self) -> None:
        """Close, in a forked child, the copies of the descriptors."""
        descriptor, self._descriptor, self._path = self._descriptor, -1, None
        if descriptor >= 0:
            os.close(descriptor)
        _shut_window(self)


# All of this process's notices speak of one window, because a signal has one handler: that of a
# rank which is a coordinator, too, is open already.
_window: window.Window | None = None
_users = weakref.WeakSet[Notice]()


def _open_window(notice: Notice) -> int:
    """Return the descriptor of the window, through which others see where this process is."""
    global _window
    if window.opened < 0:
        _window = window.Window()
        _window.open()
    _users.add(notice)
    return window.opened


def _shut_window(notice: Notice) -> None:
    global _window
    _users.discard(notice)
    if _window is not None and not _users:
        _window.shut()
        _window.close()
        _window = None
