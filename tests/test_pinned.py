"""Messages with tensors of a GPU's, where the CPU stands for one."""

from collections import OrderedDict
from typing import Any

import pytest

from miniray import Worker
from miniray.extras import pinned

torch = pytest.importorskip("torch")

DTYPES = (
    *(torch.bool, torch.uint8, torch.int16, torch.int64, torch.float16, torch.bfloat16),
    *(torch.float32, torch.float64, torch.complex64, torch.float8_e4m3fn),
)


class Gpu:
    """What the fake one was asked for: how much memory, and how often to be done."""

    def __init__(self) -> None:
        self.allocated: list[int] = []
        self.waited = 0

    def allocate(self, nbytes: int) -> Any:
        self.allocated.append(nbytes)
        return torch.zeros(nbytes, dtype=torch.uint8)

    def wait_for(self, _: Any) -> None:
        self.waited += 1


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """Take every tensor for one of a GPU's."""
    fake = Gpu()
    monkeypatch.setattr(pinned, "is_on_gpu", lambda value: isinstance(value, torch.Tensor))
    monkeypatch.setattr(pinned, "allocate", fake.allocate)
    monkeypatch.setattr(pinned, "wait_for", fake.wait_for)
    return fake


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (5, 3)], ids=str)
def test_a_copy_is_what_the_tensor_is(dtype: Any, shape: tuple[int, ...]) -> None:
    tensor = (torch.rand(shape) * 10).to(dtype)
    other = torch.arange(3)
    copy = pinned.PinnedMemory().copy([tensor, other])
    assert copy[0].dtype == dtype
    assert copy[0].shape == shape
    assert torch.equal(copy[0].to(torch.complex128), tensor.to(torch.complex128))
    assert torch.equal(copy[1], other)
    assert copy[0].data_ptr() != tensor.data_ptr() or not tensor.numel()


@pytest.mark.usefixtures("gpu")
def test_a_transposed_one_and_one_that_is_trained_arrive() -> None:
    model = torch.nn.Linear(3, 2)
    message = {"step": 3, "state": model.state_dict(), "deep": [(torch.rand(4, 5).T, "text")]}
    assert isinstance(message["state"], OrderedDict)
    with Worker(lambda channel: channel.send(channel.recv())) as worker:
        worker.send(pinned.PinnedMemory().copy(message))
        answer = worker.recv(timeout=30)
    assert answer["step"] == 3
    assert torch.equal(answer["state"]["weight"], model.weight)
    assert torch.equal(answer["deep"][0][0], message["deep"][0][0])
    assert answer["deep"][0][1] == "text"


def test_memory_is_used_again_and_grows(gpu: Gpu) -> None:
    memory = pinned.PinnedMemory()
    small, large = torch.ones(3), torch.ones(100)
    first = memory.copy(large)
    second = memory.copy({"a": small, "b": small + 1})
    assert gpu.allocated == [448]  # 400 bytes, and up to the next 64
    assert first.data_ptr() == second["a"].data_ptr()
    assert second["b"].data_ptr() - second["a"].data_ptr() == 64
    assert gpu.waited == 2
    memory.copy([large, large])
    assert gpu.allocated == [448, 896]


def test_what_is_on_the_cpu_stays_and_needs_no_gpu() -> None:
    message = {"a": torch.ones(3), "b": b"raw", "c": [None, 1.5]}
    copy = pinned.PinnedMemory().copy(message)
    assert copy["a"] is message["a"]
    assert copy == message
