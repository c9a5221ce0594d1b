"""MiniRay: simple distributed workers, from a forked process to FSDP over many nodes."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from miniray.calls import answer_calls, as_completed
    from miniray.channel import Channel
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
    from miniray.fan_out import broadcast, gather
    from miniray.nccl import NCCLConfig, create_nccl_configs, process_group
    from miniray.remote_worker import RemoteWorker
    from miniray.shared_tensor import SharedTensor
    from miniray.waiting import wait
    from miniray.worker import Worker
    from miniray.worker_server import WorkerServer

__version__ = "0.1.0"

# A thread that is forked away in the middle of something is more than any test here has tried.
if not getattr(sys, "_is_gil_enabled", lambda: True)():
    raise ImportError(
        "miniray needs Python's global lock (GIL), and this is a free-threaded Python without it; "
        "set PYTHON_GIL=1, or take the ordinary build of Python"
    )

_NAMES_IN = {
    "calls": ("answer_calls", "as_completed"),
    "channel": ("Channel",),
    "cluster": ("Cluster", "NodeConfig"),
    "fan_out": ("broadcast", "gather"),
    "nccl": ("NCCLConfig", "create_nccl_configs", "process_group"),
    "remote_worker": ("RemoteWorker",),
    "shared_tensor": ("SharedTensor",),
    "waiting": ("wait",),
    "worker": ("Worker",),
    "worker_server": ("WorkerServer",),
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
    "answer_calls",
    "as_completed",
    "broadcast",
    "create_nccl_configs",
    "gather",
    "process_group",
    "wait",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used; `import miniray` alone costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module 'miniray' has no attribute {name!r}")
    module = next((one for one, names in _NAMES_IN.items() if name in names), "errors")
    return getattr(import_module(f"miniray.{module}"), name)
