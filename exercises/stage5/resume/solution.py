"""Load a checkpoint that was saved by another number of ranks."""

import math
from collections.abc import Callable

Read = Callable[[int, int, int], list[float]]


def load_rows(read: Read, saved_rows: list[int], world_size: int, rank: int) -> list[float]:
    """Return the rows that a rank holds now, out of the shards that other ranks saved.

    Saved rank r has written `saved_rows[r]` rows, which follow those of rank r - 1. `read(r, start,
    stop)` reads rows of its file, in which they count from 0. Of all rows, rank 0 now holds the
    first ones, equally many on each rank, rounded up, as long as there are any. No row is read
    that is not needed here: all of them together would not fit.
    """
    # begin yours
    rows = sum(saved_rows)
    each = math.ceil(rows / world_size)
    begin, end = min(rank * each, rows), min((rank + 1) * each, rows)
    loaded: list[float] = []
    first = 0
    for saved_rank, count in enumerate(saved_rows):
        start, stop = max(begin - first, 0), min(end - first, count)
        if start < stop:
            loaded += read(saved_rank, start, stop)
        first += count
    return loaded
    # end yours
