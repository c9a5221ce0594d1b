"""What only a real GPU can show, and the same work on fake ones, which any machine can run.

python -m pytest -m gpu tests/test_gpu.py
"""

import itertools
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from miniray import Channel, Cluster, NodeConfig, Worker, WorkerDied, create_nccl_configs
from tests.support import poll

torch = pytest.importorskip("torch")
from tests import torch_work  # noqa: E402  # after torch

T = 120.0
REAL_AND_FAKE = [
    pytest.param(False, marks=pytest.mark.gpu, id="real"),
    pytest.param(True, id="fake"),
]
MEMORY = {"MINIRAY_FAKE_GPU_MEMORY": "1GiB"}


def ask_ranks(work_fn: str, *, fake: bool, ranks: int = 1, **env: str) -> list[Any]:
    """Return what each rank of a group on one node answers."""
    with Cluster([NodeConfig.local(ranks, env={**MEMORY, **env})], fake_gpus=fake) as cluster:
        workers = cluster.start(f"tests.torch_work.{work_fn}")
        for worker, config in zip(workers, cluster.nccl_configs(), strict=True):
            worker.send(config.__dict__)
        return [worker.recv(T) for worker in workers]


def ask_child(question: Callable[[], Any]) -> Any:
    """Return what a function returns in a worker, so that CUDA stays out of this process."""
    with Worker(lambda channel: channel.send(question())) as worker:
        return worker.recv(T)


def uuids() -> list[str]:
    """Return the GPUs that are there, in CUDA's order."""

    def list_them() -> list[str]:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        count = torch.cuda.device_count()
        return [str(torch.cuda.get_device_properties(index).uuid) for index in range(count)]

    found: list[str] = ask_child(list_them)
    return found


@pytest.fixture(autouse=True)
def needs_a_gpu(request: pytest.FixtureRequest) -> None:
    """Say in one line what is missing, where somebody asks for a GPU's tests and there is none."""
    if request.node.get_closest_marker("gpu") and not ask_child(torch.cuda.device_count):
        pytest.fail(f"torch {torch.__version__} sees no GPU here", pytrace=False)


@pytest.mark.thorough
@pytest.mark.parametrize("fake", REAL_AND_FAKE)
def test_every_rank_has_a_device_of_its_own_and_they_can_talk(fake: bool) -> None:
    ranks = 2 if fake else len(uuids())
    answers = ask_ranks("tell_device", fake=fake, ranks=ranks)
    assert {number for number, _, _ in answers} == {ranks * (ranks - 1) / 2}
    if not fake:
        assert [gpu for _, _, gpu in answers] == uuids()
        assert [device for _, device, _ in answers] == [f"cuda:{rank}" for rank in range(ranks)]


@pytest.mark.gpu
def test_ranks_take_the_gpus_that_a_scheduler_shows_in_its_order() -> None:
    there = uuids()
    orders = list(itertools.permutations(range(len(there)), min(2, len(there))))[:4]
    for order in orders:
        shown = ",".join(map(str, order))
        ranks = len(order)
        answers = ask_ranks("tell_device", fake=False, ranks=ranks, CUDA_VISIBLE_DEVICES=shown)
        assert [gpu for _, _, gpu in answers] == [there[index] for index in order]


@pytest.mark.thorough
@pytest.mark.parametrize("fake", REAL_AND_FAKE)
def test_fsdp_computes_in_bfloat16_and_keeps_float32(fake: bool) -> None:
    ((losses, computed, kept), *_) = ask_ranks("train_in_bf16", fake=fake)
    assert (computed, kept) == ("torch.bfloat16", "torch.float32")
    assert losses[-1] < losses[0] / 2


@pytest.mark.gpu
def test_real_and_fake_learn_the_same() -> None:
    for work_fn, tolerance in (("train_sharded", 1e-4), ("train_in_bf16", 5e-2)):
        real, fake = (ask_ranks(work_fn, fake=fake)[0][0] for fake in (False, True))
        assert fake == pytest.approx(real, rel=tolerance)


@pytest.mark.thorough
@pytest.mark.parametrize("fake", REAL_AND_FAKE)
def test_what_a_fake_gpu_counts_is_what_cuda_allocates(fake: bool) -> None:
    """Between a model's passes and steps, that is; within them CUDA needs more."""
    ((held, most),) = ask_ranks("hold_on_device", fake=fake)
    layer, one = 512 * 512 * 4, 256 * 512 * 4
    parameters, state = 4 * layer, 8 * layer
    # Four outputs: the last one because it is there, the others and the batch for backward.
    expected = [parameters + 5 * one, 2 * parameters + one]
    expected += [parameters + one + state, parameters + 5 * one + state]
    expected += [2 * parameters + one + state, parameters + one + state]
    # Four numbers of steps are on the CPU; cuBLAS takes a workspace with the first product.
    slack = 4 * 4 if fake else 40 * 2**20
    for is_held, is_expected in zip(held, expected, strict=True):
        assert 0 <= is_held - is_expected <= slack
    assert most >= 2 * parameters + state


@pytest.mark.gpu
def test_memory_is_free_again_after_a_kill() -> None:
    def free() -> int:
        observer.send("how much?")
        answer: int = observer.recv(T)
        return answer

    with Worker(torch_work.free_memory) as observer:
        before = free()
        with Worker(torch_work.hold_memory) as holder:
            holder.send(2**30)
            assert holder.recv(T) == 2**30
            assert free() <= before - 2**30
            os.kill(holder.pid, signal.SIGKILL)
            with pytest.raises(WorkerDied):
                holder.recv(T)
        poll.until(lambda: free() >= before - 2**26, what="the GPU's memory to be free again")


@pytest.mark.gpu
def test_a_worker_is_not_forked_after_cuda() -> None:
    with Worker(torch_work.fork_after_cuda) as worker:
        assert "cannot fork: CUDA is initialised" in worker.recv(T)


@pytest.mark.gpu
def test_asking_whether_there_are_gpus_does_not_spoil_a_fork() -> None:
    """In a child, as it would be too late for the other tests if it did."""

    def ask_and_fork(channel: Channel) -> None:
        count = torch.cuda.device_count()
        with Worker(torch_work.free_memory) as worker:
            worker.send("how much?")
            channel.send((count, worker.recv(T)))

    with Worker(ask_and_fork) as worker:
        count, free = worker.recv(T)
    assert count >= 1
    assert free > 0


@pytest.mark.gpu
def test_what_is_on_a_gpu_is_sent_through_pinned_memory() -> None:
    message = {
        "weights": torch.randn(1000, 1000),
        "mask": torch.rand(7) > 0.5,
        "half": torch.randn(3, 5).to(torch.bfloat16).T,
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
    }
    with Worker(torch_work.send_from_gpu) as worker:
        for _ in range(2):
            worker.send(message)
            refused, are_pinned, answer = worker.recv(T)
            assert 'message["weights"]' in refused
            assert "cuda:0" in refused
            assert are_pinned
            for name, tensor in message.items():
                assert torch.equal(answer[name], tensor)


@pytest.mark.gpu
def test_more_ranks_than_gpus_are_refused() -> None:
    ranks = len(uuids()) + 1
    configs = create_nccl_configs("127.0.0.1", nodes=[("node1", ranks)])

    def choose() -> str:
        from miniray.nccl import choose_device

        try:
            return str(choose_device(configs[-1]))
        except RuntimeError as error:
            return str(error)

    assert "lower num_workers" in ask_child(choose)
