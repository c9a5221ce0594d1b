"""The memory of a fake GPU: its size, what counts, and what happens when it is full."""

import contextlib
import itertools
import socket
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from miniray import Worker, create_nccl_configs, fake_gpu

torch = pytest.importorskip("torch")
from torch.utils.checkpoint import checkpoint  # noqa: E402  # after torch

from tests import torch_work  # noqa: E402  # after torch

FLOAT = 4  # bytes


@pytest.mark.parametrize(
    ("text", "nbytes"), [("64MiB", 64 << 20), ("1 GiB", 1 << 30), ("8KiB", 8192), ("100", 100)]
)
def test_size_of_a_fake_gpu(monkeypatch: pytest.MonkeyPatch, text: str, nbytes: int) -> None:
    monkeypatch.setenv("MINIRAY_FAKE_GPU_MEMORY", text)
    assert fake_gpu.fake_gpu_memory_bytes() == nbytes


def test_a_size_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIRAY_FAKE_GPU_MEMORY", "plenty")
    with pytest.raises(ValueError, match="must be like 64MiB"):
        fake_gpu.fake_gpu_memory_bytes()


@pytest.fixture
def gpu() -> Iterator[None]:
    """A fake GPU with more memory than these tests need."""
    with fake_gpu.limited_memory(0):
        yield


def held(**expected: int) -> None:
    """Assert that these parts are held, in bytes, and no others."""
    parts = {name: nbytes for name, nbytes in fake_gpu.memory_parts().items() if nbytes}
    assert parts == expected
    assert fake_gpu.memory_allocated() == sum(expected.values())


def a_layer(*sizes: int) -> Any:
    return torch.nn.Linear(*sizes or (32, 32), bias=False)


@pytest.mark.usefixtures("gpu")
class TestWhatCounts:
    """One test for each row of the table in docs/MINIRAY.md."""

    def test_parameters_and_buffers_of_modules_that_ran_frozen_ones_too(self) -> None:
        model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8))
        model.requires_grad_(False)
        held()
        output = model(torch.ones(2, 8))
        in_buffers = (8 + 8) * FLOAT + 8  # and the number of batches
        parameters = (8 * 8 + 8 + 8 + 8) * FLOAT + in_buffers
        held(parameters=parameters, activations=output.nbytes)
        del model, output
        held()

    def test_what_is_shared_counts_once(self) -> None:
        model = torch.nn.Sequential(a_layer(), a_layer())
        model[1].weight = model[0].weight
        model(torch.ones(1, 32)).sum().backward()
        held(parameters=4096, gradients=4096)

    def test_parameters_that_only_an_optimizer_knows(self) -> None:
        parameter = torch.nn.Parameter(torch.ones(16))
        parameter.grad = torch.ones(16)
        torch.optim.SGD([parameter]).step()
        held(parameters=64, gradients=64)

    def test_gradients_from_backward_until_they_are_let_go(self) -> None:
        model = a_layer()
        model(torch.ones(1, 32)).sum().backward()
        held(parameters=4096, gradients=4096)
        model.zero_grad()
        held(parameters=4096)

    def test_the_state_of_every_optimizer(self) -> None:
        model = torch.nn.Sequential(a_layer(), a_layer())
        adam = torch.optim.AdamW(model[0].parameters())
        sgd = torch.optim.SGD(model[1].parameters(), momentum=0.9)
        model(torch.ones(1, 32)).sum().backward()
        adam.step()
        sgd.step()
        model.zero_grad()
        held(parameters=2 * 4096, optimizer=(2 * 4096 + FLOAT) + 4096)
        del sgd
        held(parameters=2 * 4096, optimizer=2 * 4096 + FLOAT)

    def test_what_autograd_keeps_until_backward(self) -> None:
        model, batch = torch.nn.Sequential(a_layer(), torch.nn.Sigmoid()), torch.ones(64, 32)
        output = model(batch)
        # The batch, for the weight's gradient, and the sigmoid's output; not its input.
        held(parameters=4096, activations=batch.nbytes + output.nbytes)
        output.sum().backward()
        del output, batch
        held(parameters=4096, gradients=4096)

    def test_without_gradients_only_outputs_that_are_still_there(self) -> None:
        model = torch.nn.Sequential(a_layer(), torch.nn.Sigmoid())
        with torch.no_grad():
            output = model(torch.ones(64, 32))
        held(parameters=4096, activations=output.nbytes)
        del output
        held(parameters=4096)

    def test_checkpointing_keeps_the_input_alone(self) -> None:
        kept = {}
        for name, call in (("all", lambda part, x: part(x)), ("checkpoint", recomputing)):
            parts = [torch.nn.Sequential(a_layer(), torch.nn.Sigmoid()) for _ in range(4)]
            output = torch.ones(64, 32, requires_grad=True)
            for part in parts:
                output = call(part, output)
            kept[name] = fake_gpu.memory_parts()["activations"]
            output.sum().backward()
        one = 64 * 32 * FLOAT
        assert kept == {"all": 5 * one, "checkpoint": 4 * one}

    def test_not_what_a_loss_keeps_that_is_no_module(self) -> None:
        output, labels = a_layer()(torch.ones(64, 32)), torch.zeros(64, dtype=torch.int64)
        before = fake_gpu.memory_allocated()
        loss = torch.nn.functional.cross_entropy(output, labels)
        assert fake_gpu.memory_allocated() == before
        other = torch.nn.CrossEntropyLoss()(output, labels)
        kept = output.nbytes + labels.nbytes + 2 * FLOAT  # log_softmax; the loss, and a weight
        assert fake_gpu.memory_allocated() == before + kept
        del loss, other

    def test_not_what_an_operation_needs_in_between(self) -> None:
        class Square(torch.nn.Module):
            def forward(self, x: Any) -> Any:
                return (x @ x.T).sum()  # a large matrix, for a moment

        Square()(torch.ones(256, 1))
        assert fake_gpu.max_memory_allocated() == FLOAT

    def test_not_a_batch_that_nobody_needs_for_backward(self) -> None:
        torch.ones(1000)
        held()

    def test_not_sparse_gradients(self) -> None:
        model = torch.nn.Embedding(8, 8, sparse=True)
        model(torch.tensor([1])).sum().backward()
        held(parameters=8 * 8 * FLOAT)


def test_what_fsdp_gathers_counts_while_it_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIRAY_FAKE_GPUS", "1")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    configs = create_nccl_configs("127.0.0.1", nodes=[("node1", 2)], master_port=port)
    with Worker(torch_work.hold_sharded) as first, Worker(torch_work.hold_sharded) as second:
        for worker, config in zip((first, second), configs, strict=True):
            worker.send(config.__dict__)
        answers = [worker.recv(timeout=60) for worker in (first, second)]
    layer = 32 * 32 * FLOAT  # of four, and half of each is here
    assert answers[0] == answers[1]
    in_forward, after_forward, after_backward, most = answers[0]
    assert in_forward == [{"parameters": 2 * layer, "gathered": layer, "gradients": 0}] * 4
    assert after_forward == {"parameters": 2 * layer, "gathered": 0, "gradients": 0}
    assert after_backward == {"parameters": 2 * layer, "gathered": 0, "gradients": 2 * layer}
    # The most is at the end of backward: the first layer is whole, and so is its gradient; those of
    # the other three are halves by now. A few activations are left.
    assert 0 <= most - (2 + 1 + 1 + 3 * 0.5) * layer < 1024


def recomputing(part: Any, value: Any) -> Any:
    return checkpoint(part, value, use_reentrant=False)


def train(make_optimizer: Callable[[Iterator[Any]], Any]) -> tuple[Any, Any]:
    """Return a model of 4 KiB, with 4 KiB of gradients, and its optimizer."""
    model = a_layer()
    optimizer = make_optimizer(model.parameters())
    model(torch.ones(1, 32)).sum().backward()
    return model, optimizer


class TestFull:
    @pytest.mark.parametrize(
        ("make_optimizer", "parts"),
        [
            (
                torch.optim.AdamW,
                r"parameters 4\.0 KiB \+ gradients 4\.0 KiB \+ optimizer 8\.0 KiB = 16\.0 KiB of "
                r"10\.0 KiB; shard over more ranks, or raise MINIRAY_FAKE_GPU_MEMORY",
            ),
            (lambda parameters: torch.optim.SGD(parameters, lr=1.0, momentum=0.9), "optimizer"),
        ],
        ids=["AdamW", "SGD with momentum"],
    )
    def test_a_step_that_does_not_fit_changes_nothing(
        self, monkeypatch: pytest.MonkeyPatch, make_optimizer: Any, parts: str
    ) -> None:
        monkeypatch.setenv("MINIRAY_FAKE_GPU_MEMORY", "10KiB")
        model, optimizer = train(make_optimizer)
        before = model.weight.detach().clone()
        steps = itertools.count()
        optimizer.register_step_post_hook(lambda *_: next(steps))
        with fake_gpu.limited_memory(3):
            for _ in range(2):
                with pytest.raises(
                    torch.OutOfMemoryError, match=rf"of rank 3 is out of memory before .*{parts}"
                ):
                    optimizer.step()
        assert next(steps) == 0  # it was not taken, let alone undone
        assert torch.equal(model.weight, before)
        assert not optimizer.state
        optimizer.step()  # outside there is no limit
        assert not torch.equal(model.weight, before)

    def test_a_step_that_fits_is_taken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MINIRAY_FAKE_GPU_MEMORY", str(4 * 4096 + FLOAT))  # to the last byte
        model, optimizer = train(torch.optim.AdamW)
        before = model.weight.detach().clone()
        with fake_gpu.limited_memory(0):
            optimizer.step()
            optimizer.step()
            assert fake_gpu.max_memory_allocated() == 4 * 4096 + FLOAT
            optimizer.zero_grad()
            fake_gpu.reset_peak_memory_stats()
            assert fake_gpu.max_memory_allocated() == 3 * 4096 + FLOAT
        assert not torch.equal(model.weight, before)
        assert fake_gpu.memory_bytes(optimizer) == {
            "parameters": 4096,
            "gradients": 0,
            "optimizer": 2 * 4096 + FLOAT,
        }

    def test_what_another_optimizer_holds_counts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MINIRAY_FAKE_GPU_MEMORY", "30KiB")
        pairs = [train(torch.optim.AdamW) for _ in range(2)]  # of 16 KiB each
        with fake_gpu.limited_memory(0):
            pairs[0][1].step()
            with pytest.raises(torch.OutOfMemoryError, match=r"optimizer 16\.0 KiB = 32\.0 KiB"):
                pairs[1][1].step()

    def test_frozen_parameters_count(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MINIRAY_FAKE_GPU_MEMORY", "18KiB")
        frozen = a_layer().requires_grad_(False)
        with fake_gpu.limited_memory(0):
            frozen(torch.ones(1, 32))
            _, optimizer = train(torch.optim.AdamW)
            with pytest.raises(torch.OutOfMemoryError, match=r"parameters 8\.0 KiB .* = 20\.0 KiB"):
                optimizer.step()

    def test_a_batch_that_is_too_large_fails_in_forward(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MINIRAY_FAKE_GPU_MEMORY", "64KiB")
        model = torch.nn.Sequential(a_layer(), torch.nn.Sigmoid(), a_layer(), torch.nn.Sigmoid())
        with fake_gpu.limited_memory(0), warnings.catch_warnings(action="error"):
            model(torch.ones(64, 32))
            with pytest.raises(
                torch.OutOfMemoryError, match=r"in the forward pass of .*; take a smaller batch"
            ):
                model(torch.ones(512, 32))
            assert fake_gpu.memory_parts()["activations"] == 0
            assert fake_gpu.max_memory_allocated() < 64 * 1024
            model(torch.ones(64, 32)).sum().backward()

    def test_gradients_that_do_not_fit_fail_in_backward(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MINIRAY_FAKE_GPU_MEMORY", "6KiB")
        with fake_gpu.limited_memory(0):
            loss = a_layer()(torch.ones(1, 32)).sum()
            with pytest.raises(torch.OutOfMemoryError, match="in the backward pass"):
                loss.backward()

    def test_an_optimizer_that_needs_values_is_checked_after_its_step(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MINIRAY_FAKE_GPU_MEMORY", "10KiB")
        model = a_layer()
        optimizer = torch.optim.LBFGS(model.parameters(), lr=1e-3)

        def loss() -> Any:
            optimizer.zero_grad()
            value = model(torch.ones(1, 32)).square().sum()
            value.backward()
            return value

        with fake_gpu.limited_memory(0):
            loss()
            with pytest.raises(torch.OutOfMemoryError, match="after a step of LBFGS"):
                optimizer.step(loss)

    @pytest.mark.parametrize(
        "name",
        ["AdamW", "SGD", "RMSprop", "NAdam", "RAdam", "Rprop", "Adadelta", "Adamax", "Muon"],
    )
    @pytest.mark.usefixtures("gpu")
    def test_what_a_step_will_add_is_known_before(self, name: str) -> None:
        options = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
        _, optimizer = train(lambda parameters: getattr(torch.optim, name)(parameters, **options))
        seen: list[int] = []
        held_before = fake_gpu.memory_allocated()
        optimizer.register_step_pre_hook(lambda *_: seen.append(fake_gpu.max_memory_allocated()))
        optimizer.step()
        assert seen == [fake_gpu.memory_allocated()]
        assert held_before < seen[0]
        optimizer.step()
        assert fake_gpu.max_memory_allocated() == seen[0]


@pytest.mark.usefixtures("gpu")
class TestNothingElseChanges:
    def test_values_changed_in_place_are_still_noticed(self) -> None:
        value = torch.ones(3, requires_grad=True) * 2
        product = value * value
        value.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product.sum().backward()

    def test_function_transforms_work(self) -> None:
        model = a_layer(3, 3)

        def loss(parameters: Any, x: Any) -> Any:
            return torch.func.functional_call(model, parameters, (x,)).sum()

        gradients = torch.func.vmap(torch.func.grad(loss), (None, 0))(
            dict(model.named_parameters()), torch.ones(4, 3)
        )
        assert gradients["weight"].shape == (4, 3, 3)

    def test_compiled_modules_stay_in_one_graph(self) -> None:
        model = torch.nn.Sequential(a_layer(), torch.nn.Sigmoid(), a_layer())
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        with warnings.catch_warnings(action="ignore"):  # torch tells of hooks: they are ours
            compiled(torch.ones(4, 32)).sum().backward()
        held(parameters=2 * 4096, gradients=2 * 4096)

    def test_lazy_modules_work(self) -> None:
        model = torch.nn.LazyLinear(8, bias=False)
        optimizer = torch.optim.SGD(model.parameters())
        model(torch.ones(1, 8)).sum().backward()
        optimizer.step()
        held(parameters=256, gradients=256)

    def test_an_exception_in_forward_leaves_the_count_right(self) -> None:
        class Failing(torch.nn.Module):
            def forward(self, _: Any) -> Any:
                raise ValueError("as told")

        with pytest.raises(ValueError, match="as told"):
            torch.nn.Sequential(a_layer(), Failing())(torch.ones(1, 32))
        batch = torch.ones(64, 32)
        output = torch.nn.Sequential(a_layer(), torch.nn.Sigmoid())(batch)
        assert fake_gpu.memory_parts()["activations"] == batch.nbytes + output.nbytes


def test_figures_outside_say_that_there_is_no_fake_gpu() -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(fake_gpu.limited_memory(0))
        assert fake_gpu.memory_allocated() == 0
    for figure in (fake_gpu.memory_allocated, fake_gpu.max_memory_allocated):
        with pytest.raises(RuntimeError, match=r"no fake GPU; ask within process_group"):
            figure()


def test_the_hooks_go_with_the_fake_gpu() -> None:
    from torch.nn.modules import module

    model = a_layer()
    with fake_gpu.limited_memory(0):
        model(torch.ones(1, 32)).sum().backward()
        assert module._global_forward_hooks
    assert not module._global_forward_hooks
    assert not module._global_forward_pre_hooks
    assert not model.weight._post_accumulate_grad_hooks
