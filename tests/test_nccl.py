"""Ranks, rendezvous, backends, and GPUs that are fake or missing."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniray import Cluster, NCCLConfig, NodeConfig, WorkerFailed, create_nccl_configs, nccl

torch = pytest.importorskip("torch")
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
    assert nccl._choose_device(config_of(local_rank=1), fake=False) == torch.device("cuda:1")
    with pytest.raises(RuntimeError, match=r"local rank 2 .*CUDA_VISIBLE_DEVICES=2,3.* lower"):
        nccl._choose_device(config_of(local_rank=2), fake=False)


def test_nccl_on_fake_gpus_is_refused() -> None:
    with pytest.raises(RuntimeError, match="needs real GPUs"):
        nccl._choose_device(config_of(backend="nccl"), fake=True)


@pytest.mark.parametrize(
    ("text", "nbytes"), [("64MiB", 64 << 20), ("1 GiB", 1 << 30), ("8KiB", 8192), ("100", 100)]
)
def test_size_of_a_fake_gpu(monkeypatch: pytest.MonkeyPatch, text: str, nbytes: int) -> None:
    monkeypatch.setenv("MINIRAY_FAKE_GPU_MEMORY", text)
    assert nccl.fake_gpu_memory_bytes() == nbytes


def test_a_size_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIRAY_FAKE_GPU_MEMORY", "plenty")
    with pytest.raises(ValueError, match="must be like 64MiB"):
        nccl.fake_gpu_memory_bytes()


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
        inside, after = workers[2].recv(T)
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
    assert after == {}


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "fits"), [(1, False), (8, True)])
def test_a_model_too_big_for_one_fake_gpu_trains_on_eight(ranks: int, fits: bool) -> None:
    nodes = [NodeConfig.local(ranks, env={"MINIRAY_FAKE_GPU_MEMORY": "2MiB"})]
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
