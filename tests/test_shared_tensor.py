"""Memory that goes to a local worker without a copy."""

import gc
import os
import socket
from typing import Any

import pytest

from miniray import Channel, ProtocolError, SharedTensor, Worker, wire

torch = pytest.importorskip("torch")
T = 20.0


def change_in_place(channel: Channel) -> None:
    for shared in channel:
        shared.tensor += 1
        channel.send(shared)


def test_both_sides_see_each_others_writes() -> None:
    shared = SharedTensor((2, 3), torch.float64)
    shared.tensor[:] = 41
    with Worker(change_in_place) as worker:
        worker.send(shared, timeout=T)
        again = worker.recv(T)
        assert (shared.tensor == 42).all()
        again.tensor[0, 0] = 7
        assert shared.tensor[0, 0] == 7


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (5,)])
def test_every_shape_arrives(shape: tuple[int, ...]) -> None:
    with Worker(change_in_place) as worker:
        worker.send(SharedTensor(shape, torch.int32), timeout=T)
        arrived = worker.recv(T)
        assert arrived.tensor.shape == shape
        assert arrived.tensor.dtype == torch.int32


def test_large_tensors_go_through_shared_memory_and_are_the_receivers_own() -> None:
    tensor = torch.arange(1 << 20)
    head, (buffer,) = wire.encode(wire.MESSAGE, {"x": tensor}, memfd=True)
    assert b'"memfd":true' in head
    assert buffer.descriptor is not None
    left, right = socket.socketpair()
    with Channel(left, memfd=True) as ours, Channel(right, memfd=True) as theirs:
        ours.send({"x": tensor, "small": torch.ones(3)})
        arrived = theirs.recv(T)
        assert torch.equal(arrived["x"], tensor)
        arrived["x"].zero_()
        assert tensor[5] == 5


def test_no_descriptor_is_left_when_tensors_are_gone() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with Worker(change_in_place) as worker:
        for _ in range(5):
            worker.send(SharedTensor((4,)), timeout=T)
            worker.recv(T)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_shared_tensor_does_not_leave_the_machine() -> None:
    with pytest.raises(TypeError, match=r"cannot leave this machine; send its \.tensor"):
        wire.encode(wire.MESSAGE, SharedTensor((2,)))


def receive(frame: bytes, descriptors: list[int]) -> Any:
    """Receive a frame whose last byte carries descriptors."""
    left, right = socket.socketpair()
    with Channel(right, memfd=True) as channel, left:
        left.sendall(frame)
        socket.send_fds(left, [b"\0"], descriptors)
        return channel.recv(T)


def test_memory_that_is_shorter_than_promised_is_a_protocol_error() -> None:
    frame, (buffer,) = wire.encode(wire.MESSAGE, torch.zeros(1 << 20), memfd=True)
    assert buffer.descriptor is not None
    os.truncate(buffer.descriptor, 4096)
    with pytest.raises(ProtocolError, match="4096 bytes where 4194304 were promised"):
        receive(frame, [buffer.descriptor])


def test_a_promised_descriptor_that_does_not_come_is_a_protocol_error() -> None:
    frame, _ = wire.encode(wire.MESSAGE, torch.zeros(1 << 20), memfd=True)
    with pytest.raises(ProtocolError, match="no descriptor came"):
        receive(frame, [])
