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
    # end yours
