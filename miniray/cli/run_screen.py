"""What a run shows and keeps: the ranks' lines, each with node and rank, and its own few."""

import collections
import contextlib
import io
import os
import re
import sys
import threading
from collections.abc import Collection
from pathlib import Path
from typing import IO, TextIO

TAIL_LINES = 10
_LINE = re.compile(r"\[(?P<node>.*?)(?::rank(?P<rank>\d+))?\] ?(?P<text>.*)", re.DOTALL)
# Not red: that is for what went wrong.
_COLOURS = (36, 33, 35, 32, 34, 96, 93, 95, 92, 94)
_RED, _DIM = 31, 2


class Screen(io.TextIOBase):
    """A Cluster's log: the ranks' lines go to stdout, the run's and the nodes' own to stderr.

    With `log_dir` each rank's lines go to a file of its own as well, and with `merged` all of
    them, with their names, to merged.log. `only_ranks` are shown; the files have all.
    """

    def __init__(
        self,
        log_dir: Path | None = None,
        *,
        merged: bool = False,
        only_ranks: Collection[int] | None = None,
    ) -> None:
        self.log_dir, self._only_ranks = log_dir, only_ranks
        self._tails: dict[int, collections.deque[str]] = {}
        self._files: dict[str, IO[str]] = {}
        self._merged = merged
        self._lock = threading.Lock()  # each node's lines come in a thread of their own
        if log_dir is not None:
            log_dir.mkdir(parents=True, exist_ok=True)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Return what the terminal's encoding is: what it cannot show, arrives escaped."""
        return getattr(sys.stdout, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Take in whole lines, each of which begins with [node:rank] or [node]."""
        with self._lock:
            for line in text.splitlines(keepends=False) if "\r" not in text else text.split("\n"):
                if line:
                    self._take(line)
        return len(text)

    def _take(self, line: str) -> None:
        match = _LINE.fullmatch(line)
        if match is None or match["rank"] is None:
            self._keep("merged", line)
            _print(sys.stderr, paint(line, _DIM, sys.stderr))
            return
        rank = int(match["rank"])
        prefix = line[: match.start("text")]
        bare = line.replace(f"\r{prefix}", "\r")[len(prefix) :]
        self._tails.setdefault(rank, collections.deque(maxlen=TAIL_LINES)).append(bare)
        self._keep(f"rank{rank}", bare)
        self._keep("merged", line)
        if self._only_ranks is None or rank in self._only_ranks:
            colour = _COLOURS[rank % len(_COLOURS)]
            painted = paint(prefix.rstrip(), colour, sys.stdout)
            _print(sys.stdout, line.replace(prefix.rstrip(), painted))

    def _keep(self, name: str, line: str) -> None:
        if self.log_dir is None or (name == "merged" and not self._merged):
            return
        if name not in self._files:
            path = self.log_dir / f"{name}.log"
            # Line by line: somebody may read it meanwhile.
            self._files[name] = path.open("w", 1, errors="backslashreplace")
        self._files[name].write(f"{line}\n")

    def say(self, text: str, *, is_bad: bool = False) -> None:
        """Print a line of the run's own."""
        line = f"miniray run: {text}"
        with self._lock:
            _print(sys.stderr, paint(line, _RED if is_bad else _DIM, sys.stderr))

    def show(self, text: str) -> None:
        """Print text as it is, beside the run's own lines."""
        with self._lock:
            _print(sys.stderr, text)

    def tail(self, rank: int) -> list[str]:
        """Return the last lines of a rank."""
        with self._lock:
            return list(self._tails.get(rank, ()))

    def close(self) -> None:
        """Close the files."""
        with self._lock:
            for file in self._files.values():
                file.close()
            self._files.clear()
        super().close()


def paint(text: str, colour: int, stream: TextIO) -> str:
    """Return text in a colour, if it is for a terminal that wants any."""
    is_wanted = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    if not (is_wanted and stream.isatty()):
        return text
    return f"\x1b[{colour}m{text}\x1b[0m"


def _print(stream: TextIO, line: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # whoever read it has gone; the run goes on
        print(line, file=stream, flush=True)
