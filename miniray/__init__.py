"""MiniRay: simple distributed workers, from a forked process to FSDP over many nodes."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from miniray.channel import Channel, wait
    from miniray.cluster import Cluster, NodeConfig
    from miniray.errors import (
        AuthenticationError,
        ClusterError,
        MiniRayError,
        ProtocolError,
        WorkerDied,
        WorkerError,
        WorkerExited,
        WorkerFailed,
    )
    from miniray.nccl import NCCLConfig, create_nccl_configs, process_group
    from miniray.remote_worker import RemoteWorker
    from miniray.shared_tensor import SharedTensor
    from miniray.worker import Worker
    from miniray.worker_server import WorkerServer

__version__ = "0.1.0"

_MODULE_OF = {
    "Channel": "channel",
    "wait": "channel",
    "Worker": "worker",
    "RemoteWorker": "remote_worker",
    "WorkerServer": "worker_server",
    "Cluster": "cluster",
    "NodeConfig": "cluster",
    "NCCLConfig": "nccl",
    "create_nccl_configs": "nccl",
    "process_group": "nccl",
    "SharedTensor": "shared_tensor",
    "MiniRayError": "errors",
    "ProtocolError": "errors",
    "AuthenticationError": "errors",
    "WorkerError": "errors",
    "WorkerExited": "errors",
    "WorkerFailed": "errors",
    "WorkerDied": "errors",
    "ClusterError": "errors",
}

__all__ = [
    "AuthenticationError",
    "Channel",
    "Cluster",
    "ClusterError",
    "MiniRayError",
    "NCCLConfig",
    "NodeConfig",
    "ProtocolError",
    "RemoteWorker",
    "SharedTensor",
    "Worker",
    "WorkerDied",
    "WorkerError",
    "WorkerExited",
    "WorkerFailed",
    "WorkerServer",
    "create_nccl_configs",
    "process_group",
    "wait",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used; `import miniray` alone costs nothing."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'miniray' has no attribute {name!r}")
    return getattr(import_module(f"miniray.{_MODULE_OF[name]}"), name)
