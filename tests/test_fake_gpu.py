"""The memory of a fake GPU: its size, and what happens when it is full."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from miniray import fake_gpu

torch = pytest.importorskip("torch")


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


def train(make_optimizer: Callable[[Iterator[Any]], Any]) -> tuple[Any, Any]:
    """Return a model of 4 KiB, with 4 KiB of gradients, and its optimizer."""
    model = torch.nn.Linear(32, 32, bias=False)
    optimizer = make_optimizer(model.parameters())
    model(torch.ones(1, 32)).sum().backward()
    return model, optimizer


@pytest.mark.parametrize(
    ("make_optimizer", "parts"),
    [
        (torch.optim.AdamW, r"parameters 0\.0 MiB \+ gradients 0\.0 MiB \+ optimizer 0\.0 MiB"),
        (lambda parameters: torch.optim.SGD(parameters, lr=1.0, momentum=0.9), "optimizer"),
    ],
    ids=["AdamW", "SGD with momentum"],
)
def test_a_step_that_does_not_fit_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, make_optimizer: Any, parts: str
) -> None:
    monkeypatch.setenv("MINIRAY_FAKE_GPU_MEMORY", "10KiB")
    model, optimizer = train(make_optimizer)
    before = model.weight.detach().clone()
    with fake_gpu.limited_memory(3):
        for _ in range(2):
            with pytest.raises(torch.OutOfMemoryError, match=rf"of rank 3 is out .*{parts}"):
                optimizer.step()
    assert torch.equal(model.weight, before)
    assert not optimizer.state
    optimizer.step()  # outside there is no limit
    assert not torch.equal(model.weight, before)


def test_a_step_that_fits_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIRAY_FAKE_GPU_MEMORY", str(4 * 4096 + 4))  # to the last byte
    model, optimizer = train(torch.optim.AdamW)
    before = model.weight.detach().clone()
    with fake_gpu.limited_memory(0):
        optimizer.step()
        optimizer.step()
    assert not torch.equal(model.weight, before)
    assert fake_gpu.memory_bytes(optimizer) == {
        "parameters": 4096,
        "gradients": 4096,
        "optimizer": 2 * 4096 + 4,
    }
