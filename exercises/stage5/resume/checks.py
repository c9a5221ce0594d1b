"""What loading at another world size has to do."""

from types import ModuleType

from exercises.checking import expect


class Checkpoint:
    """Files of rows, one of each rank that saved, and what was read of them."""

    def __init__(self, *saved_rows: int) -> None:
        self.files: list[list[float]] = []
        number = 0
        for count in saved_rows:
            self.files.append([100.0 + number + n for n in range(count)])
            number += count
        self.saved_rows = [*saved_rows]
        self.rows_read = 0

    def read(self, saved_rank: int, start: int, stop: int) -> list[float]:
        if not 0 <= start <= stop <= len(self.files[saved_rank]):
            rows = len(self.files[saved_rank])
            raise IndexError(f"rows {start} to {stop} of file {saved_rank}, which has {rows}")
        self.rows_read += stop - start
        return self.files[saved_rank][start:stop]


def _expect(
    answer: ModuleType, saved: list[int], world_size: int, rank: int, *expected: int
) -> None:
    checkpoint = Checkpoint(*saved)
    got = answer.load_rows(checkpoint.read, checkpoint.saved_rows, world_size, rank)
    wanted = [100.0 + number for number in range(*expected)]
    expect(got == wanted, expected=f"{_shown(wanted)}", happened=_shown(got))
    read = checkpoint.rows_read
    happened = f"{read} rows were read, for {len(wanted)}"
    expect(read == len(wanted), expected=f"{len(wanted)} rows read", happened=happened)


def _shown(rows: list[float]) -> str:
    numbers = [int(row) - 100 for row in rows]
    if not numbers:
        return "no rows"
    if numbers == [*range(numbers[0], numbers[-1] + 1)]:
        return f"rows {numbers[0]} to {numbers[-1]}"
    return f"rows {' '.join(map(str, numbers))}"


def check_the_same_number(answer: ModuleType) -> None:
    """save 12 rows from 4 ranks, and load rank 1 of 4"""
    _expect(answer, [3, 3, 3, 3], 4, 1, 3, 6)


def check_fewer_ranks(answer: ModuleType) -> None:
    """save 12 rows from 4 ranks, and load rank 1 of 2"""
    _expect(answer, [3, 3, 3, 3], 2, 1, 6, 12)


def check_more_ranks(answer: ModuleType) -> None:
    """save 12 rows from 2 ranks, and load rank 3 of 4"""
    _expect(answer, [6, 6], 4, 3, 9, 12)


def check_across_files(answer: ModuleType) -> None:
    """save 12 rows from 4 ranks, and load rank 1 of 3"""
    _expect(answer, [3, 3, 3, 3], 3, 1, 4, 8)


def check_uneven(answer: ModuleType) -> None:
    """save 10 rows from 4 ranks, 3, 3, 3 and 1, and load ranks 0 and 2 of 3"""
    _expect(answer, [3, 3, 3, 1], 3, 0, 0, 4)
    _expect(answer, [3, 3, 3, 1], 3, 2, 8, 10)


def check_unlike_files(answer: ModuleType) -> None:
    """save 10 rows from 3 ranks, 1, 5 and 4, and load rank 1 of 2"""
    _expect(answer, [1, 5, 4], 2, 1, 5, 10)


def check_a_rank_that_saved_nothing(answer: ModuleType) -> None:
    """save 6 rows from 3 ranks, 3, 0 and 3, and load rank 0 of 1"""
    _expect(answer, [3, 0, 3], 1, 0, 0, 6)
