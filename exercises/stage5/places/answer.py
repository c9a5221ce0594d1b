"""Say where each rank of a process group lives."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A rank's node, and its number there, which is also the number of its GPU."""

    node_rank: int
    local_rank: int
    local_world_size: int


def place_of(rank: int, gpus: list[int]) -> Place:
    """Return the place of a rank, where `gpus` are the numbers of GPUs of the nodes, in order.

    Ranks count from 0, node by node. Raises ValueError for a rank that does not exist.
    """
    # begin yours
    # end yours
