"""Stage 3: a server that forks a worker for every client that holds the key."""

from .channel import Channel, wait
from .errors import (
    AuthenticationError,
    MiniRayError,
    ProtocolError,
    WorkerDied,
    WorkerError,
    WorkerExited,
    WorkerFailed,
)
from .remote_worker import RemoteWorker
from .worker import Worker
from .worker_server import WorkerServer
