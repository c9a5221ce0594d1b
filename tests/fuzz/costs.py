"""What an input costs: its time, and of one in so many the memory, both held to a law.

A value of JSON may take three bytes on the wire and eighty in memory, `[]` does: so the law allows
memory by the bytes that came and by the values in them, of which a frame may have so many at most.
A size that is only claimed costs POOLED_BYTES_MIN at most, once a connection, and here nothing.
"""

import json
import re
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

from miniray import pool
from miniray.wire import AHEAD_BYTES

# Instrumented code is timed, and each limit leaves it some room.
MEASURED_EVERY = 50
MEMORY_TIMES_MAX = 4
VALUE_BYTES_MAX = 112
MEMORY_BYTES_FREE = 48 * 1024  # a decoder, an error with its traceback, what a cache keeps
SECONDS_FREE, SECONDS_A_BYTE_MAX = 0.05, 5e-6
ATTEMPTS = 3
RATIO_BYTES_MIN = 1024  # in less, what is free is most

_VALUES = re.compile(rb"[,\[{]")


@dataclass
class Costs:
    """How many inputs there were, and what the dearest took."""

    inputs: int = 0
    frames: int = 0
    measured: int = 0
    seconds: float = 0.0
    seconds_max: float = 0.0
    memory_bytes_max: int = 0
    memory_times_max: float = 0.0

    def take(self, target: Callable[[bytes], int], data: bytes) -> None:
        """Run one input; raise AssertionError if it costs more than the law allows."""
        allowed, attempts = SECONDS_FREE + len(data) * SECONDS_A_BYTE_MAX, 0
        while True:  # the first attempt may import something, or meet a collection of garbage
            began = time.thread_time()
            frames = target(data)
            seconds, attempts = time.thread_time() - began, attempts + 1
            if seconds <= allowed or attempts == ATTEMPTS:
                break
        self.inputs += 1
        self.frames += frames
        self.seconds += seconds
        self.seconds_max = max(self.seconds_max, seconds)
        assert seconds <= allowed, f"{seconds:.3f} s for {len(data)} bytes"
        if self.inputs % MEASURED_EVERY == 0:
            self._measure(target, data)

    def _measure(self, target: Callable[[bytes], int], data: bytes) -> None:
        values = len(_VALUES.findall(data))
        allowed = MEMORY_TIMES_MAX * len(data) + VALUE_BYTES_MAX * values + MEMORY_BYTES_FREE
        for _ in range(ATTEMPTS):
            if (peak := memory_of(target, data)) <= allowed:
                break
        self.measured += 1
        self.memory_bytes_max = max(self.memory_bytes_max, peak)
        if len(data) >= RATIO_BYTES_MIN:
            self.memory_times_max = max(self.memory_times_max, peak / len(data))
        assert peak <= allowed, f"{peak} bytes for {len(data)} with {values} values"

    def write(self, path: Path, name: str) -> None:
        """Put these costs under a name into a file of results."""
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**known, name: asdict(self)}, indent=2) + "\n")


def memory_of(target: Callable[[bytes], int], data: bytes) -> int:
    """Return how many bytes a run of the target had at once, beyond what was there before."""
    # What is mapped is not traced; of that no more is touched than what has come.
    with mock.patch.object(pool, "POOLED_BYTES_MIN", AHEAD_BYTES):
        tracemalloc.start()
        try:
            target(data)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
