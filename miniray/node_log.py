"""What a node says on stderr, copied to the log with the node's name."""

import collections
import contextlib
import os
import subprocess
import threading
import time
from typing import IO, TextIO

from miniray.waiting import time_left
from miniray.worker_log import clean_name

LINE_BYTES_MAX = 64 * 1024
SHOWN_LINES = 5  # the first and the last, in case a long banner comes between
HURRY_S = 0.5  # what something gets that has nothing to do any more but end
LAST_WORDS_S = 5.0  # what it gets in all, if it goes on talking


class NodeLog:
    """Copy what a node says on stderr to the log, with its name, and remember some of it."""

    def __init__(self, label: str, sink: TextIO) -> None:
        self._sink = sink
        name = clean_name(label)  # as the server there says it
        self._prefixes = (f"[{name}] ".encode(), f"[{name}:".encode())
        self._first: list[bytes] = []
        self._last: collections.deque[bytes] = collections.deque(maxlen=SHOWN_LINES)
        self._heard_at = 0.0
        self.heard = threading.Event()
        self._thread = threading.Thread()

    def follow(self, stream: IO[bytes], process: subprocess.Popen[bytes]) -> None:
        """Copy a process's stream to its end, in a thread, close it, and wait for the process."""
        self._thread = threading.Thread(target=self._copy, args=(stream, process), daemon=True)
        self._thread.start()

    def said(self) -> list[str]:
        """Return the first and the last lines that are no worker's."""
        return [line.decode(errors="replace") for line in (*self._first, *self._last)]

    def wait_until_quiet(self, since: float) -> None:
        """Wait for the stream's end, from the moment `since` on, as long as it brings anything."""

        def patience_s() -> float:
            return time_left(min(max(since, self._heard_at) + HURRY_S, since + LAST_WORDS_S))

        while self._thread.is_alive() and (seconds := patience_s()):
            self._thread.join(seconds)

    def write(self, lines: list[bytes]) -> None:
        """Write lines to the log, each with the node's name."""
        for index, line in enumerate(lines):
            if not line.startswith(self._prefixes):
                shown = self._first if len(self._first) < SHOWN_LINES else self._last
                shown.append(line)
                lines[index] = self._prefixes[0] + line.rstrip(b"\r")
                self.heard.set()
        with contextlib.suppress(OSError, ValueError):  # a full disk or a closed log
            encoding = getattr(self._sink, "encoding", None) or "utf-8"
            text = b"\n".join([*lines, b""]).decode(errors="replace")
            self._sink.write(text.encode(encoding, "backslashreplace").decode(encoding))
            self._sink.flush()

    def _copy(self, stream: IO[bytes], process: subprocess.Popen[bytes]) -> None:
        rest = b""
        with stream:
            while data := os.read(stream.fileno(), 1 << 18):
                self._heard_at = time.monotonic()
                *lines, rest = (rest + data).split(b"\n")
                if len(rest) > LINE_BYTES_MAX:
                    lines, rest = [*lines, rest], b""
                self.write(lines)
            self.write([rest] if rest else [])
        process.wait()
