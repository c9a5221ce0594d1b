"""Where ranks live."""

from types import ModuleType

from exercises.checking import expect, expect_raises


def _expect(answer: ModuleType, rank: int, gpus: list[int], *numbers: int) -> None:
    expected, got = answer.Place(*numbers), answer.place_of(rank, gpus)
    expect(got == expected, expected=repr(expected), happened=repr(got))


def check_the_first_node(answer: ModuleType) -> None:
    """ask for rank 2, on nodes with 4, 2 and 3 GPUs"""
    _expect(answer, 2, [4, 2, 3], 0, 2, 4)


def check_the_second_node(answer: ModuleType) -> None:
    """ask for rank 5, on two nodes with 4 GPUs each"""
    _expect(answer, 5, [4, 4], 1, 1, 4)


def check_the_first_rank_of_a_node(answer: ModuleType) -> None:
    """ask for rank 4, on nodes with 4, 2 and 3 GPUs"""
    _expect(answer, 4, [4, 2, 3], 1, 0, 2)


def check_uneven_nodes(answer: ModuleType) -> None:
    """ask for rank 7, on nodes with 4, 2 and 3 GPUs"""
    _expect(answer, 7, [4, 2, 3], 2, 1, 3)


def check_no_such_rank(answer: ModuleType) -> None:
    """ask for rank 9, on nodes with 4, 2 and 3 GPUs, which have ranks 0 to 8"""
    with expect_raises(ValueError, when="for rank 9 of 9"):
        answer.place_of(9, [4, 2, 3])


def check_below_zero(answer: ModuleType) -> None:
    """ask for rank -1, on nodes with 4 and 2 GPUs"""
    with expect_raises(ValueError, when="for rank -1"):
        answer.place_of(-1, [4, 2])
