"""Ranks, backends, and GPUs that are fake or missing."""

import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniray import Cluster, NCCLConfig, NodeConfig, Worker, WorkerFailed, create_nccl_configs, nccl

torch = pytest.importorskip("torch")
from tests import torch_work  # noqa: E402  # after torch

T = 100.0


@given(st.lists(st.integers(1, 8), min_size=1, max_size=10))
def test_ranks_are_counted_over_the_nodes(sizes: list[int]) -> None:
    nodes = [(f"node{number}", size) for number, size in enumerate(sizes)]
    configs = create_nccl_configs("10.0.0.1", nodes=nodes, master_port=1234)
    assert [config.rank for config in configs] == list(range(sum(sizes)))
    assert {config.world_size for config in configs} == {sum(sizes)}
    for config in configs:
        assert config.rank == sum(sizes[: config.node_rank]) + config.local_rank
        assert 0 <= config.local_rank < config.local_world_size == sizes[config.node_rank]
        assert (config.master_addr, config.master_port) == ("10.0.0.1", 1234)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"nodes": []}, "nodes is empty"),
        ({"nodes": [("node1", 0)]}, "num_workers of node1 must be at least 1, got 0"),
        ({"nodes": [("node1", 1)], "backend": "mpi"}, 'must be "nccl", "gloo" or None'),
    ],
)
def test_groups_that_make_no_sense_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        create_nccl_configs("127.0.0.1", **options)


def config_of(**changes: Any) -> NCCLConfig:
    (config,) = create_nccl_configs("127.0.0.1", nodes=[("node1", 1)])
    return NCCLConfig(**{**config.__dict__, **changes})


def test_without_cuda_the_error_names_both_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINIRAY_FAKE_GPUS", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with (
        pytest.raises(RuntimeError, match=r"CUDA's torch .* Cluster\(fake_gpus=True\)"),
        nccl.process_group(config_of()),
    ):
        pass


def test_more_ranks_than_gpus_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINIRAY_FAKE_GPUS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert nccl.choose_device(config_of(local_rank=1)) == torch.device("cuda:1")
    with pytest.raises(RuntimeError, match=r"local rank 2 .*CUDA_VISIBLE_DEVICES=2,3.* lower"):
        nccl.choose_device(config_of(local_rank=2))


def test_a_scheduler_that_shows_one_gpu_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINIRAY_FAKE_GPUS", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert nccl.choose_device(config_of(local_rank=3)) == torch.device("cuda:0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with pytest.raises(RuntimeError, match="local rank 3 has no GPU: 1 visible"):
        nccl.choose_device(config_of(local_rank=3))


def test_nccl_on_fake_gpus_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIRAY_FAKE_GPUS", "1")
    with pytest.raises(RuntimeError, match="needs real GPUs"):
        nccl.choose_device(config_of(backend="nccl"))


@pytest.mark.parametrize(
    ("order", "name", "in_collective"),
    [
        ("value", "TypeError", False),
        ("memory", "OutOfMemoryError", False),
        ("all_reduce", "RuntimeError", True),
        ("backward", "RuntimeError", True),
    ],
)
def test_an_exception_says_whether_a_collective_raised_it(
    monkeypatch: pytest.MonkeyPatch, order: str, name: str, in_collective: bool
) -> None:
    before = time.time()
    kind, failed_at, noted = first_answer(monkeypatch, order, ranks=2)
    assert (kind, noted) == (name, in_collective)
    assert before < failed_at < time.time()


def test_an_exception_that_takes_no_notes_stays_what_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert first_answer(monkeypatch, "odd", ranks=1) == ["OddError", "step 7", False]


def first_answer(monkeypatch: pytest.MonkeyPatch, order: str, ranks: int) -> list[Any]:
    """Have every rank fail as told; return what rank 0 says of its exception."""
    monkeypatch.setenv("MINIRAY_FAKE_GPUS", "1")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    workers = [Worker(torch_work.tell_failure) for _ in range(ranks)]
    configs = create_nccl_configs("127.0.0.1", nodes=[("node1", ranks)], master_port=port)
    for worker, config in zip(workers, configs, strict=True):
        worker.send([order, config.__dict__])
    try:
        answer: list[Any] = workers[0].recv(T)
        return answer
    finally:
        for worker in workers:
            worker.close()


@pytest.mark.slow
def test_the_first_culprit_is_named_though_others_fail_with_it() -> None:
    with Cluster([NodeConfig.local(2), NodeConfig.local(2)], fake_gpus=True) as cluster:
        workers = cluster.start("tests.torch_work.fail_in_a_group")
        for worker, config in zip(workers, cluster.nccl_configs(), strict=True):
            worker.send(config.__dict__)
        assert [worker.recv(T) for worker in workers] == ["joined"] * 4
        for worker in workers:
            worker.send("go")
        for worker in workers:
            with pytest.raises(WorkerFailed, match=r"rank 2 at .*ValueError: only rank 2 fails"):
                worker.recv(T)


@pytest.mark.slow
def test_a_rank_has_torchruns_environment_and_gives_it_back() -> None:
    with Cluster([NodeConfig.local(1), NodeConfig.local(2)], fake_gpus=True) as cluster:
        workers = cluster.start("tests.torch_work.tell_environment")
        for worker, config in zip(workers, cluster.nccl_configs(), strict=True):
            worker.send(config.__dict__)
        inside, after, set_inside = workers[2].recv(T)
        others = [worker.recv(T) for worker in workers[:2]]
    port = others[0][0].pop("MASTER_PORT")
    assert inside == {
        "RANK": "2",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "3",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    assert (after, set_inside) == ({}, "mine")


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "fits"), [(1, False), (8, True)])
def test_a_model_too_big_for_one_fake_gpu_trains_on_eight(ranks: int, fits: bool) -> None:
    # One needs 4 MiB and more. Of eight each needs 0.5, and in backward 2 for the whole layer.
    nodes = [NodeConfig.local(ranks, env={"MINIRAY_FAKE_GPU_MEMORY": "3MiB"})]
    with Cluster(nodes, fake_gpus=True) as cluster:
        workers = cluster.start("tests.torch_work.train_sharded")
        for worker, config in zip(workers, cluster.nccl_configs(), strict=True):
            worker.send(config.__dict__)
        if not fits:
            with pytest.raises(
                WorkerFailed, match=r"fake GPU of rank 0 is out of memory"
            ) as caught:
                workers[0].recv(T)
            assert caught.value.remote_type == "OutOfMemoryError"
            assert "shard over more ranks, or raise MINIRAY_FAKE_GPU_MEMORY" in str(caught.value)
            return
        answers = [worker.recv(T) for worker in workers]
        assert len({loss for loss, _ in answers}) == 1
        for _, held in answers:
            assert held == {
                "parameters": 512 * 512 * 4 // 8 + 512 * 4 // 8,
                "gradients": 512 * 512 * 4 // 8 + 512 * 4 // 8,
                "optimizer": 2 * (512 * 512 * 4 // 8 + 512 * 4 // 8) + 2 * 4,
            }


@pytest.mark.gpu
def test_nccl_and_fsdp_on_a_gpu_learn_what_the_fake_path_learns(tmp_path: Path) -> None:
    """Needs one real GPU: NCCL at world size 1."""
    losses = {}
    for fake in (False, True):
        with Cluster(
            [NodeConfig.local(1, env={"MINIRAY_FAKE_GPU_MEMORY": "1GiB"})], fake_gpus=fake
        ) as cluster:
            (worker,) = cluster.start("tests.torch_work.train_sharded")
            worker.send(cluster.nccl_configs()[0].__dict__)
            losses[fake], _ = worker.recv(T)
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)


@pytest.mark.gpu
def test_a_fork_after_cuda_is_refused() -> None:
    """Needs one real GPU."""
    from miniray import process

    pid = os.fork()  # so that CUDA is not initialised in the tests' own process
    if pid == 0:
        torch.ones(1, device="cuda")
        try:
            process.fork(lambda: 0)
        except RuntimeError:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
