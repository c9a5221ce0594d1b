"""Workers' output on stderr, each line with its worker's name, which may block nobody."""

import math
import os
import re
import select
import sys
import time
from typing import Self

from miniray import inherited
from miniray.poll_loop import PollLoop
from miniray.title import set_title
from miniray.waiting import time_left
from miniray.window import Window
from miniray.work_fn import AnyFunction

STDERR = 2
QUEUE_BYTES_MAX = 1024 * 1024
STALL_S = 5.0
WRITES_MAX = 32  # in one turn of the loop
PIPE_BYTES = 64 * 1024  # what a pipe holds: one read takes all that is there
LINE_BYTES_MAX = 16 * 1024
TEXT_CHARS_MAX = 1000
NAME_CHARS_MAX = 64

# A control character, unless it begins a colour: a terminal could be told to go back and to show
# other words in place of the prefix. In UTF-8 some of them begin with \xc2.
_CONTROL = re.compile(
    rb"[\0-\x08\x0b\x0c\x0e-\x1f\x7f\xc2](?<!\x1b(?=\[[\d;]*m))(?<!\xc2(?![\x80-\x9f]))"
)


class WorkerLog:
    """Queue lines for stderr, and write what it takes without blocking.

    Nothing is lost while somebody reads: when the queue is full, workers' pipes are left alone,
    and they wait. Once stderr has taken nothing for STALL_S, their work matters more: what does
    not fit is dropped, counted, and said.
    """

    def __init__(self, loop: PollLoop, name: str) -> None:
        self.loop, self._name = loop, name
        self.outputs: set[WorkerOutput] = set()
        self.reads = True
        self._drops = False
        self._queue = bytearray()
        self._bytes_dropped = 0
        self._last_progress = 0.0
        self._stderr = select.poll()
        self._stderr.register(STDERR, select.POLLOUT)
        loop.duties.append(self._regulate)

    def say(self, text: str) -> None:
        """Print one line of the server's own."""
        self.put(f"[{self._name}] {printable(text[:TEXT_CHARS_MAX])}\n".encode())

    def put(self, lines: bytes) -> None:
        """Queue whole lines."""
        if self._drops:
            self._bytes_dropped += len(lines)
            return
        if not self._queue:
            self.loop.watch(STDERR, select.POLLOUT, self._write)
        self._queue += lines

    def flush(self, deadline: float) -> None:
        """Write what is queued as long as stderr takes it, and wait for that until `deadline`."""
        while self._queue and self._stderr.poll(math.ceil(time_left(deadline) * 1000)):
            self._write()

    def _regulate(self) -> float | None:
        """Choose for the next turn: read what workers write, leave it in the pipes, or drop it."""
        now = time.monotonic()
        is_full = len(self._queue) >= QUEUE_BYTES_MAX
        if not is_full:
            self._last_progress = now
        patience_s = self._last_progress + STALL_S - now
        self._drops = is_full and patience_s <= 0
        if self.reads != (self._drops or not is_full):
            self.reads = not self.reads
            for output in self.outputs:
                output.watch()
        return patience_s if is_full and not self._drops else None

    def _write(self, events: int = 0) -> None:
        try:
            for _ in range(WRITES_MAX):
                # So much a pipe takes without blocking if it takes anything.
                del self._queue[: os.write(STDERR, self._queue[: select.PIPE_BUF])]
                if not self._queue or not self._stderr.poll(0):
                    break
        except BlockingIOError:  # somebody else writes there, too
            return
        except OSError:  # the disk is full, or the reader is gone: work goes on
            self._bytes_dropped += len(self._queue)
            self._queue.clear()
        else:
            self._last_progress = time.monotonic()
            if self._bytes_dropped:
                dropped, self._bytes_dropped, self._drops = self._bytes_dropped, 0, False
                self.say(f"{dropped:,} bytes of output were dropped: nobody took them in time")
        if not self._queue:
            self.loop.unwatch(STDERR)


class WorkerOutput:
    """What one worker shows: the pipe that is its stdout and stderr, and a window.

    The worker is to be forked in its `with`.
    """

    def __init__(self, log: WorkerLog, name: str) -> None:
        self._log, self._prefix = log, f"[{name}] ".encode()
        self._line = b""  # the last one, which may go on
        self.window = Window()
        with inherited.lock:
            read_end, self._write_end = os.pipe()
            self._pipe = open(read_end, "rb", buffering=0)  # noqa: SIM115  # closed by `close`
            inherited.own(self)
        os.set_blocking(read_end, False)
        log.outputs.add(self)
        self.watch()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Leave the worker's end to the worker; close the other one, too, if there is none."""
        os.close(self._write_end)
        self.window.leave_to_child()
        if kind is not None:
            self.close()

    def take_over(self, who: str, work_fn: AnyFunction) -> None:
        """Give this process, the worker, an empty stdin, and the pipe as stdout and stderr.

        From now on it can be looked at, and ps shows who it is and what it runs.
        """
        nothing = os.open(os.devnull, os.O_RDONLY)
        for descriptor, number in ((nothing, 0), (self._write_end, 1), (self._write_end, 2)):
            os.dup2(descriptor, number)
        os.close(nothing)
        os.close(self._write_end)
        self.window.open()
        set_title(who, work_fn)
        # New streams: a notebook or a test runner may have put others in their place.
        sys.stdout, sys.stderr = (
            os.fdopen(number, "w", 1, errors="backslashreplace", closefd=False) for number in (1, 2)
        )

    def watch(self) -> None:
        """Read from now on what the worker writes, or leave it in the pipe, as the log chooses."""
        if self._log.reads:
            self._log.loop.watch(self._pipe.fileno(), select.POLLIN, self._read)
        else:
            self._log.loop.unwatch(self._pipe.fileno())

    def close(self) -> None:
        """Print what the worker has written up to now, and read no more."""
        self._read()
        self._put(self._line)
        self._log.loop.unwatch(self._pipe.fileno())
        self._log.outputs.remove(self)
        self._pipe.close()
        self.window.close()

    def abandon(self) -> None:
        """Close, in a forked child, the server's end."""
        self._pipe.close()

    def _read(self, events: int = 0) -> None:
        """Print the lines that are there; of a flood only a piece, for others want a turn."""
        data = self._pipe.read(PIPE_BYTES)
        if data == b"":  # nobody holds the other end
            self._log.loop.unwatch(self._pipe.fileno())
        text = self._line + (data or b"")
        end = text.rfind(b"\n") + 1
        if len(text) - end > LINE_BYTES_MAX:
            end = len(text)
        self._line = text[end:]
        self._put(text[:end])

    def _put(self, text: bytes) -> None:
        if text:
            text = _CONTROL.sub(b"?", text).replace(b"\r\n", b"\n").removesuffix(b"\n")
            # A progress bar goes back to the start of its line, and begins with the prefix, too.
            for begin in (b"\r", b"\n"):
                text = text.replace(begin, begin + self._prefix)
            self._log.put(self._prefix + text + b"\n")


def printable(text: str) -> str:
    """Return text as one line that a terminal shows and does not obey."""
    return "".join(char if char.isprintable() else "?" for char in text)


def clean_name(name: str) -> str:
    """Return a name that may stand in a line's prefix: short, printable, without brackets."""
    return printable(name[:NAME_CHARS_MAX]).translate({ord("["): "(", ord("]"): ")"}).strip()


def open_standard_streams() -> None:
    """Open the null device where this process was started without stdin, stdout or stderr.

    Else a connection could have such a number, and a worker's own streams would take its place.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        pass
    os.close(descriptor)
