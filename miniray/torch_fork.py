"""What torch needs around a fork: no CUDA, and no pool of threads that the child would wait for.

Each thread that runs large operations on the CPU has a pool of helpers, which OpenMP keeps for the
next one. A fork copies its list of helpers, but none of them.
"""

import ctypes
import sys
import warnings

OMP_PAUSE_HARD = 2


def check_before_fork() -> bool:
    """Let go of this thread's pool; return whether that failed, and the child must be calmed.

    The next large operation makes a new pool, on both sides. Raises RuntimeError after CUDA was
    initialised.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    if torch.cuda.is_initialized():
        raise RuntimeError(
            "cannot fork: CUDA is initialised in this process and would be broken in the child; "
            "start workers before the first CUDA call (in a notebook: restart the kernel), or use "
            "Cluster([NodeConfig.local()]), whose workers are not forked from this process"
        )
    try:
        ctypes.CDLL(None).omp_pause_resource_all(OMP_PAUSE_HARD)
    except AttributeError:  # an OpenMP older than 5.0
        warnings.warn(
            "torch's OpenMP cannot let go of its threads before a fork, so workers compute in one; "
            "torch.set_num_threads() in them is safe if nothing was computed here before",
            stacklevel=2,
        )
        return True
    return False


def calm_child(pool_is_left: bool) -> None:
    """Have a forked child compute without the pool that its parent could not let go."""
    if pool_is_left:
        sys.modules["torch"].set_num_threads(1)
