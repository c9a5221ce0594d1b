"""Show all ranks that run here, again and again: state, CPU, memory, GPU, and the last messages."""

import argparse
import contextlib
import os
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator
from typing import Any

from miniray.cli import afar
from miniray.cli.status import add_server, find_clusters
from miniray.errors import MiniRayError

EXAMPLES = """\
examples:
  miniray top                       all clusters that run on this machine
  miniray top localhost 10000       a server that was started by hand
  miniray top -H node1              all that node1 coordinates
  miniray top | cat                 one table, and no more

q or Ctrl-C ends it. It asks the nodes' servers and no rank, so it costs the
ranks nothing; where they are says `miniray stacks`.
"""
ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"  # another screen, without a cursor
HOME, CLEAR_LINE, CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
BOLD, REVERSE, PLAIN = "\x1b[1m", "\x1b[7m", "\x1b[m"
FIRST_LOOK_S = 0.5
PAUSE_S = 0.05


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    add_server(parser)
    parser.add_argument(
        "--every", type=float, default=1.0, metavar="SECONDS", help="look that often (%(default)s)"
    )


def run(options: argparse.Namespace) -> int:
    """Show them until q or Ctrl-C, or once if nobody sits in front of it."""
    if not options.every > 0:
        options.command.error("--every is a number of seconds above 0")
    options.once = not (sys.stdin.isatty() and sys.stdout.isatty())
    if options.once:
        return afar.show("top", options)
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
        news = afar.ask("top", options, stack)
        try:
            first = next(one for one in news if one)  # ssh may have something to say before
        except (OSError, MiniRayError) as error:
            afar.say("top", options, str(error))
            return 1
        with screen() as woken, Looking(news) as looking:
            look_on(first["lines"], looking, woken)
        if looking.problem:
            afar.say("top", options, looking.problem)
            return 1
    return 0


def answer(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the lines of one look after the other; or, once, how it is, and the exit status."""
    view = View(options)
    while True:
        view.look()
        if options.once and (problem := view.problem()):
            yield {"say": problem, "status": 1}
        if options.once and view.looks > 1:
            yield {"text": "\n".join(view.lines()), "status": 0}
        if not options.once:
            yield {"lines": view.lines()}
        until = time.monotonic() + (options.every if view.looks > 1 else FIRST_LOOK_S)
        while time.monotonic() < until:
            yield {}
            time.sleep(PAUSE_S)


class Looking:
    """Takes looks in as they come, in a thread: who presses q need not wait for one."""

    def __init__(self, news: Iterator[dict[str, Any]]) -> None:
        self.ear, self._hand = os.pipe()  # a byte for each
        self.problem = ""
        self._news, self._lines = news, list[str]()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._take_in, daemon=True)

    def __enter__(self) -> "Looking":
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()

    def _take_in(self) -> None:
        try:
            for one in self._news:
                if self._stop.is_set():
                    return
                if "lines" in one:
                    self._lines = one["lines"]
                    os.write(self._hand, b".")
        except (OSError, MiniRayError) as error:
            self.problem = str(error)
        os.write(self._hand, b".")

    def lines(self) -> list[str]:
        """Return the newest look."""
        os.read(self.ear, 1024)
        return self._lines


def look_on(lines: list[str], looking: Looking, woken: int) -> None:
    """Draw whatever is new, or the same anew in another size, until q or the end."""
    while not looking.problem:
        draw(lines)
        ready, _, _ = select.select([0, woken, looking.ear], [], [])
        if 0 in ready and os.read(0, 1024)[:1] in (b"q", b"Q", b""):
            return
        if woken in ready:
            os.read(woken, 1024)
        if looking.ear in ready:
            lines = looking.lines()


@contextlib.contextmanager
def screen() -> Iterator[int]:
    """Take the terminal, and give it back as it was; yield what is readable when it is resized."""
    before = termios.tcgetattr(0)
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    old_wakeup = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)

    def take() -> None:
        tty.setcbreak(0)
        print(end=ENTER, flush=True)

    def give_back() -> None:
        print(end=LEAVE, flush=True)
        termios.tcsetattr(0, termios.TCSADRAIN, before)

    def stop(*_: object) -> None:  # Ctrl-Z; what is drawn after `fg` is drawn anew
        give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        take()

    handlers = {signal.SIGWINCH: lambda *_: None, signal.SIGTERM: _end, signal.SIGTSTP: stop}
    old_handlers = {number: signal.signal(number, one) for number, one in handlers.items()}
    try:
        take()
        yield read_end
    finally:
        give_back()
        signal.set_wakeup_fd(old_wakeup)
        for number, old in old_handlers.items():
            signal.signal(number, old)
        os.close(read_end)
        os.close(write_end)


def _end(*_: object) -> None:
    raise KeyboardInterrupt


def draw(lines: list[str]) -> None:
    """Draw as much of the lines as the terminal has room for, over what is there."""
    columns, rows = os.get_terminal_size(1)
    columns, rows = columns or 80, rows or 24  # some terminals do not know
    shown = []
    for number, line in enumerate(lines[:rows]):
        text = line[:columns]
        if line.startswith("rank "):
            text = f"{REVERSE}{text.ljust(columns)}{PLAIN}"
        elif number == 0 or lines[number - 1] == "":
            text = f"{BOLD}{text}{PLAIN}"
        shown.append(f"{text}{CLEAR_LINE}")
    sys.stdout.write(HOME + "\r\n".join(shown) + CLEAR_BELOW)
    sys.stdout.flush()


class View:
    """What is shown: the clusters that run, as they were at the last look."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._glances: dict[str, Any] = {}
        self._seen: list[tuple[str, Any]] = []
        self.looks = 0  # since there is something to be seen: the second one knows of CPU use

    def look(self) -> None:
        """Look at all clusters that there are now."""
        from miniray.looking.clusters import describe
        from miniray.looking.glance import Glances

        before, self._glances, self._seen = self._glances, {}, []
        for one in find_clusters(self._options):
            glances = self._glances[one["notice"]] = before.get(one["notice"]) or Glances()
            self._seen.append((describe(one), glances.take(one)))
        self.looks = self.looks + 1 if self._seen else 0

    def problem(self) -> str:
        """Say why nothing is to be seen: there is no cluster, or the named server is not there."""
        if not self._seen:
            return afar.nobody("top", self._options)
        return (
            "" if self._options.host is None else "".join(one.problem for one in self._seen[0][1])
        )

    def lines(self) -> list[str]:
        """Return what was seen as a table for each cluster, as wide as it has to be."""
        from miniray.cli.status import format_table
        from miniray.looking.glance import COLUMNS, as_row

        if not self._seen:
            return self.problem().splitlines()
        lines: list[str] = []
        for name, ranks in self._seen:
            lines += [""] if lines else []
            lines += [name, *format_table([COLUMNS, *map(as_row, ranks)]).splitlines()]
            problems = {one.node: one.problem for one in ranks if one.problem}
            lines += [f"{node}: {problem}" for node, problem in problems.items()]
        return lines
