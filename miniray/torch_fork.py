"""What torch needs around a fork."""

import sys


def check_before_fork() -> bool:
    """Raise RuntimeError if CUDA is initialised."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise RuntimeError(
            "cannot fork: CUDA is initialised in this process and would be broken in the child; "
            "use the GPU in workers only, or start them before the first CUDA call"
        )
    return False


def calm_child(state: bool) -> None:
    """Prepare the child."""
