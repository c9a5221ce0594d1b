"""Find out, through the noise of a login, on which port a server listens."""

import os
import select
import time

READ_BYTES = 4096


def wait_until_ready(output: int, marker: bytes, timeout_s: float) -> tuple[int, bytes]:
    """Read a server's output up to the line `MARKER PORT`; return the port and what came after it.

    `output` is a descriptor, `marker` random bytes that only this server knows. Lines before that
    one, from shells and their rc files, do not matter. Raises EOFError if the output ends first,
    and TimeoutError after `timeout_s` seconds in all; both show what came instead.
    """
    # begin yours
    deadline = time.monotonic() + timeout_s
    said, line = b"", b""
    while True:
        if not select.select([output], [], [], max(deadline - time.monotonic(), 0))[0]:
            raise TimeoutError(f"not ready after {timeout_s} s; it said: {said + line!r}")
        piece = os.read(output, READ_BYTES)
        if not piece:
            raise EOFError(f"it ended before it was ready; it said: {said + line!r}")
        line += piece
        while b"\n" in line:
            first, _, rest = line.partition(b"\n")
            if first.startswith(marker + b" "):
                return int(first.removeprefix(marker)), rest
            said, line = said + first + b"\n", rest
    # end yours
