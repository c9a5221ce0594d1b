"""Contracts of tensors on the wire and of process groups."""

import io
import socket
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contracts import Implementation, contract
from tests.contracts.test_clusters import local_nodes
from tests.contracts.work import echo

T = 60.0
DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn),
    *(torch.complex64, torch.uint8, torch.int8, torch.int64, torch.bool),
)


def make_tensor(dtype: torch.dtype, shape: list[int], layout: str) -> torch.Tensor:
    tensor = torch.arange(1, torch.Size(shape).numel() + 1).reshape(shape).to(dtype)
    if layout == "transposed" and len(shape) > 1:
        return tensor.transpose(0, 1)
    return tensor[::2] if layout == "strided" and shape else tensor


@contract("tensors")
def test_tensors_of_every_dtype_shape_and_layout_come_back(its: Implementation) -> None:
    ours, theirs = socket.socketpair()
    with its.channel.Channel(ours) as one, its.channel.Channel(theirs) as other:

        @settings(max_examples=80)
        @given(
            st.sampled_from(DTYPES),
            st.lists(st.integers(0, 4), max_size=3),
            st.sampled_from(["plain", "transposed", "strided"]),
        )
        def check(dtype: torch.dtype, shape: list[int], layout: str) -> None:
            tensor = make_tensor(dtype, shape, layout)
            one.send({"it": (tensor, "words")})
            arrived, words = other.recv(T)["it"]
            assert words == "words"
            assert (arrived.dtype, arrived.shape) == (tensor.dtype, tensor.shape)
            assert arrived.flatten().tolist() == tensor.flatten().tolist()
            arrived.zero_()

        check()


@contract("tensors")
def test_a_large_tensor_arrives_in_another_process_and_back(its: Implementation) -> None:
    with its.worker.Worker(echo) as worker:
        tensor = torch.arange(3 << 20, dtype=torch.int32)
        worker.send([tensor, tensor[:7].clone()])
        large, small = worker.recv(T)
        assert torch.equal(large, tensor)
        assert torch.equal(small, tensor[:7])


@contract("tensors")
def test_a_culprit_is_named_with_its_path(its: Implementation) -> None:
    ours, theirs = socket.socketpair()
    with its.channel.Channel(ours) as one, its.channel.Channel(theirs) as other:
        bad: Any = {"batch": [torch.ones(1), {"mask": torch.empty(1, device="meta")}]}
        with pytest.raises(TypeError, match=r'message\["batch"\]\[1\]\["mask"\]: .*\.cpu\(\)'):
            one.send(bad)
        one.send("usable")
        assert other.recv(T) == "usable"


@pytest.mark.thorough
@contract("fsdp")
def test_a_group_over_two_nodes_adds_up(its: Implementation) -> None:
    nodes = local_nodes(its, each=2)
    with its.cluster.Cluster(nodes, fake_gpus=True, log=io.StringIO()) as cluster:
        workers = cluster.start(f"tests.contracts.groups.reduce_{its!r}")
        for worker, config in zip(workers, cluster.nccl_configs(), strict=True):
            worker.send(config.__dict__)
        assert [worker.recv(T) for worker in workers] == [6.0, 6.0, 6.0, 6.0]
