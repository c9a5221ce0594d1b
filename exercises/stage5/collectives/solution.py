"""Average the losses of all ranks, of which some have more batches than others."""

from collections.abc import Callable

AllReduce = Callable[[list[float], str], list[float]]


def mean_losses(rank: int, batches: list[list[float]], all_reduce: AllReduce) -> list[float]:
    """Return, on rank 0, the mean loss of each step over the samples of all ranks; elsewhere [].

    `batches` has this rank's losses, a list for each step; the ranks have unlike numbers of steps,
    and of samples in one. `all_reduce(values, "sum" or "max")` returns the values combined, one by
    one, with those of all ranks. It waits until every rank has called it, with as many values.
    """
    # begin yours
    (steps,) = all_reduce([len(batches)], "max")
    means = []
    for step in range(int(steps)):
        losses = batches[step] if step < len(batches) else []
        total, count = all_reduce([sum(losses), len(losses)], "sum")
        means.append(total / count)
    return means if rank == 0 else []
    # end yours
