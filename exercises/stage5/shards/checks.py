"""How memory is shared out."""

from types import ModuleType

from exercises.checking import expect


def _expect_rows(answer: ModuleType, rows: int, *expected: tuple[int, int]) -> None:
    world_size = len(expected)
    got = [answer.rows_of(rows, world_size, rank) for rank in range(world_size)]
    shown = [(one.start, one.stop) for one in got]
    wanted = ", ".join(f"{start} to {stop}" for start, stop in expected)
    happened = ", ".join(f"{start} to {stop}" for start, stop in shown)
    # All empty ranges are equal, and none may begin where there are no rows.
    same = got == [range(*one) for one in expected] and all(one.start <= rows for one in got)
    expect(same, expected=wanted, happened=happened)


def check_even(answer: ModuleType) -> None:
    """share 12 rows out to 4 ranks"""
    _expect_rows(answer, 12, (0, 3), (3, 6), (6, 9), (9, 12))


def check_uneven(answer: ModuleType) -> None:
    """share 10 rows out to 4 ranks"""
    _expect_rows(answer, 10, (0, 3), (3, 6), (6, 9), (9, 10))


def check_too_few(answer: ModuleType) -> None:
    """share 5 rows out to 4 ranks, and 2 rows to 4"""
    _expect_rows(answer, 5, (0, 2), (2, 4), (4, 5), (5, 5))
    _expect_rows(answer, 2, (0, 1), (1, 2), (2, 2), (2, 2))


def _expect_bytes(
    answer: ModuleType, shapes: list[tuple[int, ...]], size: int, rank: int, expected: int
) -> None:
    got = answer.bytes_held(shapes, size, rank)
    expect(got == expected, expected=f"{expected} bytes", happened=f"{got} bytes")


def check_bytes(answer: ModuleType) -> None:
    """count the bytes of rank 1 of 4, for parameters of the shapes (8, 3) and (4,)"""
    _expect_bytes(answer, [(8, 3), (4,)], 4, 1, (2 * 3 + 1) * 16)


def check_bytes_of_the_last(answer: ModuleType) -> None:
    """count the bytes of rank 3 of 4, for parameters of the shapes (10, 100) and (2, 7)"""
    _expect_bytes(answer, [(10, 100), (2, 7)], 4, 3, 100 * 16)
