"""What the commands have in common."""

import argparse
import contextlib
import sys
import threading
from collections.abc import Callable, Iterator

INTERRUPTED = 130  # what a shell reports for a command that Ctrl-C ended
ERASE = "\r\x1b[2K"  # what is in this line of the terminal


def run_command(run: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """Run one command and turn Ctrl-C into one line and the exit status a shell expects."""
    try:
        return run(options)
    except KeyboardInterrupt:
        start = "\n" if sys.stderr.isatty() else ""  # after the terminal's own ^C
        print(f"{start}miniray: interrupted; nothing was left running", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output, such as `head`, has seen enough
        sys.stderr.close()
        return 1


@contextlib.contextmanager
def repeating(act: Callable[[], None], every_s: float) -> Iterator[None]:
    """Call a function every so many seconds, in a thread, as long as the `with` block runs."""
    is_over = threading.Event()

    def run() -> None:
        while not is_over.wait(every_s):
            act()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def port_number(text: str) -> int:
    """Read a TCP port from the command line."""
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"a port is a number from 0 to 65535, not {text!r}")
    return int(text)
