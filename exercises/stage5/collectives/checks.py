"""What ranks that work together have to do together."""

import threading
from types import ModuleType

from exercises.checking import expect, note


class Group:
    """A process group of threads; a collective waits for all of them, for ever if need be."""

    def __init__(self, size: int) -> None:
        self.changed = threading.Condition()
        self.calls: list[dict[int, tuple[str, list[float]]]] = [{}]
        self.results: dict[int, list[float]] = {}
        self.size, self.returned = size, 0
        self.error = ""

    def all_reduce(self, rank: int, values: list[float], how: str) -> list[float]:
        if how not in ("sum", "max"):
            raise ValueError(f'all_reduce knows "sum" and "max", and not {how!r}')
        with self.changed:
            number = len(self.calls) - 1
            self.calls[-1][rank] = (how, [*values])
            self._say()
            if len(self.calls[-1]) == self.size:
                self._combine(number)
            while number not in self.results:
                self.changed.wait()
            if self.error:
                raise RuntimeError(self.error)
            return self.results[number]

    def _combine(self, number: int) -> None:
        calls = self.calls[-1]
        kinds = {(how, len(values)) for how, values in calls.values()}
        if len(kinds) > 1:
            said = (
                f"rank {rank}: {how} of {len(values)}"
                for rank, (how, values) in sorted(calls.items())
            )
            self.error = "collectives that do not match: " + ", ".join(said)
        combine = max if kinds.pop()[0] == "max" else sum
        columns = zip(*(values for _, values in calls.values()), strict=False)
        self.results[number] = [float(combine(column)) for column in columns]
        self.calls.append({})
        self.changed.notify_all()

    def done(self) -> None:
        with self.changed:
            self.returned += 1
            self._say()

    def _say(self) -> None:
        waiting = ", ".join(str(rank) for rank in sorted(self.calls[-1]))
        note(
            f"in all_reduce number {len(self.calls)} was rank {waiting or 'none'}; "
            f"{self.returned} of {self.size} ranks had returned"
        )


def _run(answer: ModuleType, *batches: list[list[float]]) -> list[list[float]]:
    """Run every rank in a thread; return what each returned."""
    group = Group(len(batches))
    returned: dict[int, list[float]] = {}
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            returned[rank] = answer.mean_losses(
                rank, batches[rank], lambda values, how: group.all_reduce(rank, values, how)
            )
        except BaseException as error:
            errors.append(error)
        group.done()

    threads = [
        threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(len(batches))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive() and not errors:
            thread.join(0.01)
    if errors:
        raise errors[0]
    return [returned[rank] for rank in range(len(batches))]


def _expect(got: list[float], *expected: float) -> None:
    same = len(got) == len(expected) and all(
        abs(one - other) < 1e-9 for one, other in zip(got, expected, strict=False)
    )
    shown = [round(value, 3) for value in got] if isinstance(got, list) else got
    expect(same, expected=f"on rank 0: {[*expected]}", happened=f"there: {shown}")


def check_even(answer: ModuleType) -> None:
    """run 3 ranks with 2 steps each, of 2 samples"""
    got = _run(
        answer,
        [[1.0, 2.0], [5.0, 5.0]],
        [[3.0, 4.0], [7.0, 5.0]],
        [[0.0, 8.0], [6.0, 2.0]],
    )
    _expect(got[0], 3.0, 5.0)
    expect(got[1:] == [[], []], expected="[] on ranks 1 and 2", happened=f"{got[1]} and {got[2]}")


def check_samples(answer: ModuleType) -> None:
    """run 2 ranks with 1 step each: of 1 sample, with loss 9, and of 3 samples, each with loss 1"""
    _expect(_run(answer, [[9.0]], [[1.0, 1.0, 1.0]])[0], 3.0)


def check_steps(answer: ModuleType) -> None:
    """run 3 ranks with 1, 3 and 2 steps"""
    got = _run(answer, [[4.0]], [[2.0], [6.0], [8.0]], [[3.0], [2.0, 1.0]])
    _expect(got[0], 3.0, 3.0, 8.0)


def check_rank_0_with_less(answer: ModuleType) -> None:
    """run 2 ranks, of which rank 0 has no steps, and rank 1 has one"""
    _expect(_run(answer, [], [[2.0, 3.0]])[0], 2.5)
