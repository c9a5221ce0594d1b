"""What a process lets others see, whatever it does: where it is, and what its fake GPU holds.

When LOOK_SIGNAL comes, the stack of its main thread goes to a file without a name. Python's
faulthandler writes it in the signal's own handler, and asks nobody: so it comes out of a loop in C
that holds the GIL, of a collective and of a `recv` alike. HOLD_SIGNAL's handler writes to a pipe:
if somebody has filled that, it waits, and a stopped process that is woken to answer stays there.
"""

import faulthandler
import fcntl
import mmap
import os
import signal
import struct

from miniray import inherited

# Real-time signals: SIGUSR1 and SIGUSR2 are users', Slurm's and torch's. macOS has none. If both
# wait for a process, the handler of the higher one runs first.
LOOK_SIGNAL = signal.SIGRTMAX - 7 if hasattr(signal, "SIGRTMAX") else 0
HOLD_SIGNAL = LOOK_SIGNAL - 1
CAN_LOOK = bool(LOOK_SIGNAL) and hasattr(os, "memfd_create")
STACKS_BYTES_MAX = 64 * 1024
_PAGE_BYTES = mmap.PAGESIZE  # the facts are before it, and the stacks behind
# Whether it is open; the bytes that its fake GPU holds, and how many that has.
_FACTS = struct.Struct("=3Q")


class Window:
    """A file without a name, and a pipe: one process opens them, and another looks through.

    It is made before the fork. Both may be the same process, if a third one looks.
    """

    def __init__(self) -> None:
        self.descriptor = self.inner = self.brake = self._inner_brake = -1
        if CAN_LOOK:
            with inherited.lock:
                self.descriptor = os.memfd_create("miniray-window", os.MFD_CLOEXEC)
                self.brake, self._inner_brake = os.pipe()
                inherited.own(self)
            os.truncate(self.descriptor, _PAGE_BYTES)
            fcntl.fcntl(self.descriptor, fcntl.F_SETFL, os.O_APPEND)
            self.inner = os.dup(self.descriptor)  # which a forked child keeps

    def open(self) -> None:
        """From now on, write where this process is whenever somebody looks.

        But not if the user's code has a use for the signals.
        """
        global _facts, opened
        signals = (LOOK_SIGNAL, HOLD_SIGNAL)
        if CAN_LOOK and all(signal.getsignal(one) == signal.SIG_DFL for one in signals):
            opened, _facts = self.inner, mmap.mmap(self.inner, _PAGE_BYTES)
            _FACTS.pack_into(_facts, 0, True, 0, 0)
            faulthandler.register(HOLD_SIGNAL, file=self._inner_brake, all_threads=False)
            # Not all threads: another one may run meanwhile, and reading its calls has crashed.
            faulthandler.register(LOOK_SIGNAL, file=self.inner, all_threads=False)

    def shut(self) -> None:
        """Be seen no more, in the process that has opened it."""
        global _facts, opened
        if opened == self.inner >= 0:
            opened, _facts = -1, None  # which has a descriptor of its own
            faulthandler.unregister(LOOK_SIGNAL)
            faulthandler.unregister(HOLD_SIGNAL)
        self.leave_to_child()

    def leave_to_child(self) -> None:
        """Close the ends that the other process has."""
        descriptors, self.inner, self._inner_brake = (self.inner, self._inner_brake), -1, -1
        _close(*descriptors)

    def close(self) -> None:
        """Look no more."""
        descriptors, self.descriptor, self.brake = (self.descriptor, self.brake), -1, -1
        _close(*descriptors)

    abandon = close  # in a forked child

    def __del__(self) -> None:
        self.leave_to_child()
        self.close()


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        if descriptor >= 0:
            os.close(descriptor)


opened = -1  # the inner descriptor of this process's own
_facts: mmap.mmap | None = None


def show_memory(used_bytes: int, limit_bytes: int) -> None:
    """Let whoever looks see what this process's fake GPU holds."""
    if _facts is not None:
        _FACTS.pack_into(_facts, 0, True, used_bytes, limit_bytes)


def clear(descriptor: int) -> None:
    """Forget the stacks that have been written through a window."""
    os.truncate(descriptor, _PAGE_BYTES)


def read_stacks(descriptor: int) -> str:
    """Return the stacks that have been written through a window, in faulthandler's words."""
    return os.pread(descriptor, STACKS_BYTES_MAX, _PAGE_BYTES).decode(errors="replace")


def read_facts(descriptor: int) -> tuple[bool, int, int]:
    """Return whether a window is open, the bytes that a fake GPU there holds, and how many it has.

    The last two are 0 if there is none.
    """
    is_open, used, limit = _FACTS.unpack(os.pread(descriptor, _FACTS.size, 0))
    return bool(is_open), used, limit
