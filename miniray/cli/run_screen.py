"""What a run shows and keeps: the ranks' lines, each with node and rank, and its own few."""

import collections
import contextlib
import io
import itertools
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import IO, TextIO

from miniray.cli.common import ERASE, repeating
from miniray.cli.run_rank import first_line

SHOWN_LINES = 10
KEPT_LINES = 100  # of each rank
TICK_S = 1.0
_LEFT_BY_RUNS = re.compile(r"rank\d+\.log|merged\.log|restart\d+")
_ABOUT_RANK = re.compile(r"rank\d+ ")  # how a server's own line on one begins
_LINE = re.compile(r"\[(?P<node>.*?)(?::rank(?P<rank>\d+))?\] ?(?P<text>.*)", re.DOTALL)
# As Python's faulthandler prints it, down to the server that forked the rank.
_CRASH = "Fatal Python error: "
_OUR_FRAME = re.compile(r'  File "(.*/miniray-\w+/miniray/.*|<string>)", line \d+ in ')
# Not red: that is for what went wrong.
_COLOURS = (36, 33, 35, 32, 34, 96, 93, 95, 92, 94)
_RED, _DIM = 31, 2


class Screen(io.TextIOBase):
    """A Cluster's log: the ranks' lines go to stdout, the run's and the nodes' own to stderr.

    With `log_dir` each rank's lines go to a file of its own as well, and with `merged` all of
    them, with their names, to merged.log. `only_ranks` are shown; the files have all. What an
    earlier run has left there moves to a folder earlier1, earlier2 ... After a restart the ranks'
    files are others, in a folder restart1, restart2 ... What the old ranks said may come when the
    new ones are already being started: it says so, up to the `first_line` of a new one.
    """

    def __init__(
        self,
        log_dir: Path | None = None,
        *,
        merged: bool = False,
        only_ranks: Collection[int] | None = None,
    ) -> None:
        self.log_dir, self._only_ranks = log_dir, only_ranks
        self._restarted, self._begins = 0, re.compile("(?!)")
        self._restarts_of_node: dict[str, int] = {}  # as far as its lines tell
        self._tails: dict[int, collections.deque[str]] = {}
        self._files: dict[Path, IO[str]] = {}
        self._merged = merged
        self._status = ""  # what stands in the terminal's last line, and below what is printed
        self.is_read = True
        self.when_unread: Callable[[], None] | None = None  # called once, from any thread
        self._lock = threading.Lock()  # each node's lines come in a thread of their own
        if log_dir is not None:
            log_dir.mkdir(parents=True, exist_ok=True)
            self._move_away(log_dir)

    def _move_away(self, log_dir: Path) -> None:
        """Move what an earlier run has left to a folder of its own: two in one are no log."""
        left = [one for one in log_dir.iterdir() if _LEFT_BY_RUNS.fullmatch(one.name)]
        if not left:
            return
        names = (f"earlier{number}" for number in itertools.count(1))
        earlier = next(log_dir / name for name in names if not (log_dir / name).exists())
        earlier.mkdir()
        for one in left:
            one.rename(earlier / one.name)
        self.say(f"what an earlier run left in {log_dir} is in {earlier} now")

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Return what the terminal's encoding is: what it cannot show, arrives escaped."""
        return getattr(sys.stdout, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Take in whole lines, each of which begins with [node:rank] or [node]."""
        with self._lock:
            for line in text.removesuffix("\n").split("\n") if text else ():
                self._take(line)
        return len(text)

    def _take(self, line: str) -> None:
        match = _LINE.fullmatch(line)
        if match is None:
            self._show_line_of_node(line)
            return
        if match["rank"] and (begins := self._begins.fullmatch(match["text"])):
            self._restarts_of_node[match["node"]] = int(begins[1])
            return
        prefix = line[: match.start("text")]
        restarted = self._restarts_of_node.get(match["node"], 0)
        if restarted < self._restarted and (match["rank"] or _ABOUT_RANK.match(match["text"])):
            named = prefix.replace("]", f", before restart {self._restarted}]")
            line, prefix = line.replace(prefix, named), named
        if not match["rank"]:
            self._show_line_of_node(line)
            return
        rank = int(match["rank"])
        bare = line.replace(f"\r{prefix}", "\r")[len(prefix) :]
        if restarted == self._restarted:
            self._tails.setdefault(rank, collections.deque(maxlen=KEPT_LINES)).append(bare)
        self._keep(f"rank{rank}", bare, restarted)
        self._keep("merged", line)
        if self._only_ranks is None or rank in self._only_ranks:
            colour = _COLOURS[rank % len(_COLOURS)]
            painted = paint(prefix.rstrip(), colour, sys.stdout)
            self._print(sys.stdout, line.replace(prefix.rstrip(), painted))

    def _show_line_of_node(self, line: str) -> None:
        self._keep("merged", line)
        self._print(sys.stderr, paint(line, _DIM, sys.stderr))

    def _keep(self, name: str, line: str, restarted: int = 0) -> None:
        if self.log_dir is None or (name == "merged" and not self._merged):
            return
        path = self._path_of(name, restarted)
        try:
            if path not in self._files:
                path.parent.mkdir(exist_ok=True)
                # Line by line: somebody may read it meanwhile.
                self._files[path] = path.open("a", 1, errors="backslashreplace")
            self._files[path].write(f"{line}\n")
        except OSError as error:  # the disk is full; the run goes on
            self._print(sys.stderr, f"miniray run: {path} ends here: {error.strerror}")
            self._files[path] = io.StringIO()  # nobody reads the rest

    def path_of(self, rank: int) -> Path:
        """Return the file of a rank's lines."""
        return self._path_of(f"rank{rank}", self._restarted)

    def _path_of(self, name: str, restarted: int) -> Path:
        assert self.log_dir is not None
        return self.log_dir / (f"restart{restarted}" if restarted else "") / f"{name}.log"

    def begin_again(self, restarted: int, run_id: str) -> None:
        """Take what comes from a node, from a `first_line` on, for the lines of new ranks."""
        with self._lock:
            for path in list(self._files):  # of what may still come, none is closed
                is_last = path.parent == self._path_of("", self._restarted).parent
                if not is_last and path.stem != "merged":
                    self._close(path)
            self._restarted, self._begins = restarted, re.compile(first_line(run_id, r"(\d+)"))
            self._tails.clear()
            self._keep("merged", f"--- restart {restarted} ---")

    def say(self, text: str, *, is_bad: bool = False) -> None:
        """Print a line of the run's own."""
        self.show(paint(f"miniray run: {text}", _RED if is_bad else _DIM, sys.stderr))

    def show(self, text: str) -> None:
        """Print text as it is, beside the run's own lines."""
        with self._lock:
            self._print(sys.stderr, text)

    @contextlib.contextmanager
    def progress(self, text: str, details: str = "") -> Iterator[None]:
        """Say what is going on; in a terminal, with the seconds so far and, after one, details."""
        if not sys.stderr.isatty():
            self.say(text)
            yield
            return
        began = time.monotonic()

        def tick(more: str = "") -> None:
            line = f"miniray run: {text} ... {time.monotonic() - began:.0f} s{more}"
            with self._lock:
                self._status = paint(line, _DIM, sys.stderr)
                self._print(sys.stderr, f"{ERASE}{self._status}", end="")

        try:
            tick()
            with repeating(lambda: tick(f" ({details})" if details else ""), TICK_S):
                yield
        finally:
            with self._lock:
                self._status = ""
                self._print(sys.stderr, ERASE, end="")

    def _print(self, stream: TextIO, text: str, end: str = "\n") -> None:
        try:
            if self._status and end:
                print(ERASE, end="", file=sys.stderr, flush=True)
            print(text, end=end, file=stream, flush=True)
            if self._status and end:
                print(self._status, end="", file=sys.stderr, flush=True)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())  # what waits in its buffer has to go somewhere
            os.close(nowhere)
            if self.is_read and self.when_unread is not None:
                self.is_read = False
                self.when_unread()
        except (OSError, ValueError):  # the disk is full, or the terminal is gone: the run goes on
            pass

    def last_words(self, rank: int) -> list[str]:
        """Return the last lines of a rank; of a crash in C, where in the script that was."""
        with self._lock:
            lines = list(self._tails.get(rank, ()))
        for index in reversed(range(len(lines))):
            if _CRASH in lines[index]:
                crash = (line for line in lines[index:] if not _OUR_FRAME.match(line))
                return [line for line in crash if not line.startswith("Extension modules:")]
        return lines[-SHOWN_LINES:]

    def close(self) -> None:
        """Close the files."""
        with self._lock:
            for path in list(self._files):
                self._close(path)
        super().close()

    def _close(self, path: Path) -> None:
        with contextlib.suppress(OSError):
            self._files.pop(path).close()


def paint(text: str, colour: int, stream: TextIO) -> str:
    """Return text in a colour, if it is for a terminal that wants any."""
    is_wanted = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    if not (is_wanted and stream.isatty()):
        return text
    return f"\x1b[{colour}m{text}\x1b[0m"
