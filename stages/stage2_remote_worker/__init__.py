"""Stage 2: the same worker, at the other end of a TCP connection."""

from .channel import Channel, wait
from .errors import MiniRayError, ProtocolError, WorkerDied, WorkerError, WorkerExited, WorkerFailed
from .remote_worker import RemoteWorker
from .worker import Worker
from .worker_server import WorkerServer
