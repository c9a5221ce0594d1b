"""Stage 1: a worker is a forked process at the other end of a socketpair."""

from .channel import Channel
from .errors import MiniRayError, ProtocolError, WorkerDied, WorkerError, WorkerExited, WorkerFailed
from .worker import Worker
