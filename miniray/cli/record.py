"""Record what a script's channels do, in the Chrome trace format, to open in Perfetto."""

import argparse
import contextlib
import functools
import json
import os
import runpy
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TEXT_CHARS_MAX = 200

EXAMPLES = """\
examples:
  miniray record train.py --steps 10            into miniray-trace.json
  miniray record -o run.json train.py --steps 10

A row is a channel as one process sees it; a bar is one send, recv or close, and how long it took.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("-o", "--output", default="miniray-trace.json", metavar="FILE")
    parser.add_argument("script", metavar="SCRIPT", help="a Python script that uses miniray")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="what the script is given")


def run(options: argparse.Namespace) -> int:
    """Run the script as if by itself, and write what was recorded, however it ended."""
    if not Path(options.script).is_file():
        print(f"miniray record: there is no script {options.script}", file=sys.stderr)
        return 2
    sys.argv = [options.script, *options.arguments]
    sys.path.insert(0, str(Path(options.script).resolve().parent))
    coordinator = os.getpid()
    try:
        with recording(options.output):
            runpy.run_path(options.script, run_name="__main__")
    finally:
        if os.getpid() == coordinator:
            print(f"recorded in {options.output}; open it at ui.perfetto.dev", file=sys.stderr)
    return 0


@contextlib.contextmanager
def recording(output: str) -> Iterator[None]:
    """Record every send, recv and close of this process and of the workers that it forks.

    A row of the result is one channel, as one process sees it, with the time that it waited in
    each call. Of a remote worker that is the coordinator's side. Times are microseconds.

    >>> with recording("run.json"):
    ...     train()
    """
    from miniray.channel import Channel

    with tempfile.NamedTemporaryFile(prefix="miniray-record-") as file:
        recorder = _Recorder(file.name)
        originals = {name: getattr(Channel, name) for name in ("send", "recv", "close")}
        for name, original in originals.items():
            setattr(Channel, name, recorder.wrap(name, original))
        try:
            yield
        finally:
            for name, original in originals.items():
                setattr(Channel, name, original)
            os.close(recorder.descriptor)
            if os.getpid() == recorder.pid:
                Path(output).write_text(as_chrome_trace(file.read().splitlines()))


def as_chrome_trace(lines: list[bytes]) -> str:
    """Return recorded events, one JSON object a line, as a file that Perfetto opens.

    The format: "Trace Event Format", by the Chromium project, as its JSON object with traceEvents.
    """
    events = [json.loads(line) for line in lines]
    rows: dict[tuple[int, str], int] = {}
    made: list[dict[str, Any]] = []
    for event in sorted(events, key=lambda one: float(one["ts"])):
        pid, channel = event["pid"], event.pop("channel")
        if (pid, channel) not in rows:
            row = rows[pid, channel] = len(rows) + 1
            names = {"process_name": event.pop("process"), "thread_name": channel}
            for kind, name in names.items():
                fields = {"ph": "M", "pid": pid, "tid": row, "args": {"name": name}}
                made.append({"name": kind, **fields})
        event.pop("process", None)
        made.append({"ph": "X", "cat": "channel", "tid": rows[pid, channel], **event})
    return json.dumps({"traceEvents": made, "displayTimeUnit": "ms"}) + "\n"


class _Recorder:
    def __init__(self, path: str) -> None:
        self.pid = os.getpid()
        # Opened for appending, so that forked workers can write as well: a line is one write.
        self.descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)

    def wrap(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return a method that does the same and notes how long it took."""

        @functools.wraps(original)
        def recorded(channel: Any, *arguments: Any, **options: Any) -> Any:
            started, details = time.monotonic(), {}
            if name == "send":
                details["message"] = _shorten(arguments[0])
            try:
                result = original(channel, *arguments, **options)
                if name == "recv":
                    details["message"] = _shorten(result)
                return result
            except BaseException as error:
                details["raised"] = f"{type(error).__name__}: {error}"[:TEXT_CHARS_MAX]
                raise
            finally:
                self._write(name, channel.name, started, details)

        return recorded

    def _write(self, name: str, channel: str, started: float, details: dict[str, str]) -> None:
        pid = os.getpid()
        event = {
            "name": name,
            "ts": started * 1e6,
            "dur": (time.monotonic() - started) * 1e6,
            "pid": pid,
            "process": "coordinator" if pid == self.pid else f"worker {pid}",
            "channel": channel,
            "args": details,
        }
        with contextlib.suppress(OSError):  # a recording is not worth a worker's life
            os.write(self.descriptor, json.dumps(event).encode() + b"\n")


def _shorten(value: Any) -> str:
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{type(value).__name__} {value.dtype} {tuple(value.shape)}"
    if isinstance(value, dict):
        text = "{" + ", ".join(f"{key}: {_shorten(one)}" for key, one in value.items()) + "}"
    else:
        text = repr(value)
    return text if len(text) <= TEXT_CHARS_MAX else text[: TEXT_CHARS_MAX - 3] + "..."
