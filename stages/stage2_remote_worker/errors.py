"""Every error that MiniRay raises on purpose, beyond Python's own."""


class MiniRayError(Exception):
    """The base of all errors below."""


class ProtocolError(MiniRayError):
    """The other side sent bytes that are not a valid frame."""


class WorkerError(MiniRayError):
    """A worker is no longer there; the subclass says how it ended."""


class WorkerExited(WorkerError):
    """The worker's function returned, so there is nothing more to receive."""


class WorkerFailed(WorkerError):
    """The worker's function raised; its traceback came along."""


class WorkerDied(WorkerError):
    """The worker ended without a word: a signal or a hard exit."""
