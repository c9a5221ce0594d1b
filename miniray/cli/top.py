"""Show all ranks that run here, again and again: state, CPU, memory, GPU, and the last messages."""

import argparse
import contextlib
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from typing import Any

from miniray.cli.status import add_server, find_clusters

EXAMPLES = """\
examples:
  miniray top                       all clusters that run on this machine
  miniray top localhost 10000       a server that was started by hand
  miniray top | cat                 one table, and no more

q or Ctrl-C ends it. It asks the nodes' servers and no rank, so it costs the
ranks nothing; where they are says `miniray stacks`.
"""
ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"  # another screen, without a cursor
HOME, CLEAR_LINE, CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
BOLD, REVERSE, PLAIN = "\x1b[1m", "\x1b[7m", "\x1b[m"
FIRST_LOOK_S = 0.5


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
        options.parser.error("--every is a number of seconds above 0")
    view = View(options)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        view.look()
        time.sleep(FIRST_LOOK_S)
        view.look()
        print("\n".join(view.lines()))
        return 0 if view.is_of_something() else 1
    with contextlib.suppress(KeyboardInterrupt), screen() as woken:
        while True:
            view.look()
            until = time.monotonic() + (options.every if view.has_looked_twice else FIRST_LOOK_S)
            while (left := until - time.monotonic()) > 0:
                draw(view.lines())
                ready, _, _ = select.select([0, woken], [], [], left)
                if 0 in ready and os.read(0, 1024)[:1] in (b"q", b"Q", b""):
                    return 0
                if woken in ready:
                    os.read(woken, 1024)  # the terminal has another size: draw again
    return 0


@contextlib.contextmanager
def screen() -> Iterator[int]:
    """Take the terminal, and give it back as it was; yield what is readable when it is resized."""
    before = termios.tcgetattr(0)
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    old_wakeup = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    old_handlers = {
        number: signal.signal(number, handler)
        for number, handler in ((signal.SIGWINCH, lambda *_: None), (signal.SIGTERM, _end))
    }
    try:
        tty.setcbreak(0)
        sys.stdout.write(ENTER)
        yield read_end
    finally:
        sys.stdout.write(LEAVE)
        sys.stdout.flush()
        termios.tcsetattr(0, termios.TCSADRAIN, before)
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
        self.has_looked_twice = False

    def look(self) -> None:
        """Look at all clusters that there are now."""
        from miniray.looking.clusters import describe
        from miniray.looking.glance import Glances

        clusters = {describe(one): one for one in find_clusters(self._options)}
        self.has_looked_twice = bool(self._seen)
        before, self._glances = self._glances, {}
        for name, cluster in clusters.items():
            self._glances[name] = before.get(name) or Glances(cluster)
        self._seen = [(name, glances.take()) for name, glances in self._glances.items()]

    def is_of_something(self) -> bool:
        """Return whether there is any cluster."""
        return bool(self._seen)

    def lines(self) -> list[str]:
        """Return what was seen as a table for each cluster, as wide as it has to be."""
        from miniray.cli.status import format_table
        from miniray.looking.glance import COLUMNS, as_row

        if not self._seen:
            return ["miniray top: no cluster runs on this machine"]
        lines: list[str] = []
        for name, ranks in self._seen:
            lines += [""] if lines else []
            lines += [name, *format_table([COLUMNS, *map(as_row, ranks)]).splitlines()]
            problems = {one.node: one.problem for one in ranks if one.problem}
            lines += [f"{node}: {problem}" for node, problem in problems.items()]
        return lines
