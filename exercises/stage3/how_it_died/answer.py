"""Say how a process ended."""

import signal


def describe(status: int) -> str:
    """Return how a process ended, from the 16 bits that waitpid gives.

    The upper 8 bits are the exit status. The lower 7 are the number of the signal that killed it,
    or 0, and the bit above them says whether there is a core dump. The answer is "exited with
    status 3" or "was killed by SIGTERM"; SIGKILL adds " (probably out of memory)", and a signal
    without a name is "signal 40".
    """
    # begin yours
    # end yours
