"""Every error that MiniRay raises on purpose, beyond Python's own."""


class MiniRayError(Exception):
    """The base of all errors below."""


class ProtocolError(MiniRayError):
    """The other side sent bytes that are not a valid MiniRay frame."""


class AuthenticationError(ProtocolError):
    """The other side could not prove that it holds the same key."""


class WorkerError(MiniRayError):
    """A worker is no longer there; the subclass says how it ended."""


class WorkerExited(WorkerError):
    """The worker's function returned, so there is nothing more to receive."""


class WorkerFailed(WorkerError):
    """The worker's function raised, or called sys.exit with a failure; its traceback came along.

    `exit_code` is the status that its process ends with, and `failed_at` when it failed, in
    seconds since the epoch by the worker's clock. `in_collective` says that it failed within
    torch.distributed, as a rank does whose peer has gone.
    """

    def __init__(
        self,
        message: str,
        *,
        remote_type: str = "",
        remote_traceback: str = "",
        failed_at: float = 0.0,
        exit_code: int = 1,
        in_collective: bool = False,
    ) -> None:
        super().__init__(message)
        self.remote_type = remote_type
        self.remote_traceback = remote_traceback
        self.failed_at = failed_at
        self.exit_code = exit_code
        self.in_collective = in_collective


class WorkerDied(WorkerError):
    """The worker ended without a word: a signal, a hard exit or a lost machine.

    `signal` is the number of the signal that killed it, `exit_code` its exit status; each is
    None when it does not apply or nobody can tell.
    """

    def __init__(
        self, message: str, *, signal: int | None = None, exit_code: int | None = None
    ) -> None:
        super().__init__(message)
        self.signal = signal
        self.exit_code = exit_code


class ClusterError(MiniRayError):
    """One or more nodes could not do their part; the message lists every one."""
