"""Every error that MiniRay raises on purpose, beyond Python's own."""


class MiniRayError(Exception):
    """The base of all errors below."""


class ProtocolError(MiniRayError):
    """The other side sent bytes that are not a valid frame."""


class AuthenticationError(ProtocolError):
    """The other side could not prove that it holds the same key."""


class WorkerError(MiniRayError):
    """A worker is no longer there; the subclass says how it ended."""


class WorkerExited(WorkerError):
    """The worker's function returned, so there is nothing more to receive."""


class WorkerFailed(WorkerError):
    """The worker's function raised; its traceback came along."""


class WorkerDied(WorkerError):
    """The worker ended without a word: a signal, a hard exit or a lost machine.

    `signal` is the number of the signal that killed it, `exit_code` its exit status; each is None
    when it does not apply or nobody can tell.
    """

    def __init__(self, message: str, *, exit_code: int | None = None) -> None:
        super().__init__(message)
        killed = exit_code is not None and exit_code < 0
        self.signal = abs(exit_code or 0) if killed else None
        self.exit_code = None if killed else exit_code


class ClusterError(MiniRayError):
    """One or more nodes could not do their part; the message lists every one."""
