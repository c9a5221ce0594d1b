"""Where ranks live."""

from typing import Any

from exercises.checking import expect

UNEVEN = [("a", 4), ("b", 2), ("c", 3)]


def _place(answer: Any, nodes: list[tuple[str, int]], rank: int) -> str:
    configs = answer.nccl.create_nccl_configs("10.0.0.1", nodes)
    if rank >= len(configs):
        return f"{len(configs)} configs"
    one = configs[rank]
    return (
        f"rank {one.rank}: node_rank {one.node_rank}, local_rank {one.local_rank}, "
        f"of {one.local_world_size} there"
    )


def _expect(answer: Any, nodes: list[tuple[str, int]], rank: int, *numbers: int) -> None:
    node_rank, local_rank, there = numbers
    got = _place(answer, nodes, rank)
    expected = f"rank {rank}: node_rank {node_rank}, local_rank {local_rank}, of {there} there"
    expect(got == expected, expected=expected, happened=got)


def check_the_world(answer: Any) -> None:
    """count the configs, and look at their world_size, on two nodes with 4 GPUs each"""
    configs = answer.nccl.create_nccl_configs("10.0.0.1", [("a", 4), ("b", 4)])
    got = f"{len(configs)} configs, with world_size {sorted({one.world_size for one in configs})}"
    expect(got == "8 configs, with world_size [8]", expected="8, and 8 in each", happened=got)


def check_the_first_node(answer: Any) -> None:
    """ask for rank 0, on two nodes with 4 GPUs each"""
    _expect(answer, [("a", 4), ("b", 4)], 0, 0, 0, 4)


def check_the_second_node(answer: Any) -> None:
    """ask for ranks 1 and 5, on two nodes with 4 GPUs each"""
    _expect(answer, [("a", 4), ("b", 4)], 1, 0, 1, 4)
    _expect(answer, [("a", 4), ("b", 4)], 5, 1, 1, 4)


def check_two_of_one_name(answer: Any) -> None:
    """ask for rank 5, on two nodes that are called "local", with 4 GPUs each"""
    _expect(answer, [("local", 4), ("local", 4)], 5, 1, 1, 4)


def check_uneven_nodes(answer: Any) -> None:
    """ask for all ranks, on nodes with 4, 2 and 3 GPUs"""
    rank = 0
    for node_rank, (_, count) in enumerate(UNEVEN):
        for local_rank in range(count):
            _expect(answer, UNEVEN, rank, node_rank, local_rank, count)
            rank += 1
    got = len(answer.nccl.create_nccl_configs("10.0.0.1", UNEVEN))
    expect(got == rank, expected=f"{rank} configs", happened=f"{got} configs")


def check_what_all_have(answer: Any) -> None:
    """ask for the address 10.0.0.1, the port 4711 and the backend gloo"""
    configs = answer.nccl.create_nccl_configs("10.0.0.1", UNEVEN, 4711, "gloo")
    got = {(one.master_addr, one.master_port, one.backend) for one in configs}
    expected = {("10.0.0.1", 4711, "gloo")}
    expect(got == expected, expected=f"{expected} for every rank", happened=f"{got}")
