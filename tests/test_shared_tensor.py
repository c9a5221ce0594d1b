"""Memory that goes to a local worker without a copy."""

import contextlib
import gc
import itertools
import json
import os
import resource
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from miniray import Channel, ProtocolError, RemoteWorker, SharedTensor, Worker, loans, wire
from tests import work
from tests.support.servers import serving

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
    left, right = socket.socketpair()
    with Channel(left, memfd=True) as ours, Channel(right, memfd=True) as theirs:
        ours.send({"x": tensor, "small": torch.ones(3)})
        arrived = theirs.recv(T)
        assert torch.equal(arrived["x"], tensor)
        arrived["x"].zero_()
        assert tensor[5] == 5


@contextlib.contextmanager
def descriptors_to_spare(count: int) -> Iterator[None]:
    """Let this process open so many descriptors more, as `ulimit -n` does."""
    gc.collect()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = set(map(int, os.listdir("/proc/self/fd")))
    free = (number for number in itertools.count() if number not in taken)
    limit = next(itertools.islice(free, count, None))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_message_of_many_arrays_needs_few_descriptors() -> None:
    """Each array had one, so that 150 of them did not go through under `ulimit -n 128`."""
    message = {f"layer{number}": torch.full((1 << 18,), number) for number in range(150)}
    left, right = socket.socketpair()
    with Channel(left, memfd=True) as ours, Channel(right, memfd=True) as theirs:
        with descriptors_to_spare(8):
            ours.send(message, timeout=T)
            arrived = theirs.recv(T)
        assert all(torch.equal(arrived[name], message[name]) for name in message)


def test_as_many_shared_tensors_as_go_at_once_arrive_in_order() -> None:
    before = len(os.listdir("/proc/self/fd"))
    left, right = socket.socketpair()
    with Channel(left, memfd=True) as ours, Channel(right, memfd=True) as theirs:
        shared = [SharedTensor((1,), torch.int64) for _ in range(253)]
        for number, one in enumerate(shared):
            one.tensor.fill_(number)
        ours.send([shared, b"small", shared[7].tensor], timeout=T)
        arrived, small, seventh = theirs.recv(T)
        assert [int(one.tensor) for one in arrived] == list(range(253))
        assert (small, int(seventh)) == (b"small", 7)
        arrived[250].tensor[0] = -1
        assert int(shared[250].tensor) == -1
        with pytest.raises(ValueError, match="254 SharedTensors: the limit is 253"):
            ours.send([*shared, shared[0]])
        ours.send("still usable", timeout=T)
        assert theirs.recv(T) == "still usable"
    del shared, arrived, one
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_many_shared_tensors_one_message_after_another() -> None:
    """The end of one may be received together with the next one's head, and its descriptors."""
    left, right = socket.socketpair()
    shared = [SharedTensor((1,)) for _ in range(200)]
    with Channel(left, memfd=True) as ours, Channel(right, memfd=True) as theirs:
        for _ in range(2):
            ours.send([shared, "x" * 50_000], timeout=T)
        for _ in range(2):
            assert len(theirs.recv(T)[0]) == 200


def test_descriptors_that_this_process_may_not_open_are_a_protocol_error() -> None:
    left, right = socket.socketpair()
    with Channel(left, memfd=True) as ours, Channel(right, memfd=True) as theirs:
        ours.send([SharedTensor((1,)) for _ in range(20)], timeout=T)
        gc.collect()
        before = sorted(os.listdir("/proc/self/fd"))
        with (
            descriptors_to_spare(5),
            pytest.raises(ProtocolError, match=r"\d descriptors came where 20 should"),
        ):
            theirs.recv(T)
        gc.collect()
        assert sorted(os.listdir("/proc/self/fd")) == before


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


def receive(frame: bytes, descriptors: Sequence[int]) -> Any:
    """Receive a frame whose first byte carries descriptors."""
    left, right = socket.socketpair()
    with Channel(right, memfd=True) as channel, left:
        socket.send_fds(left, [frame], list(descriptors))
        return channel.recv(T)


def on_loan() -> tuple[bytes, loans.Loan]:
    frame = wire.encode(wire.MESSAGE, torch.zeros(1 << 20), memfd=True)
    assert frame.loan is not None
    return frame.head + wire.describe_loan(3, 1, is_new=True), frame.loan


def test_memory_that_is_shorter_than_promised_is_a_protocol_error() -> None:
    frame, _ = on_loan()
    memory = os.memfd_create("short")
    os.truncate(memory, 4096)
    with pytest.raises(ProtocolError, match="of 4096 bytes where 4198400 were promised"):
        receive(frame, [memory])
    os.close(memory)


def test_a_promised_descriptor_that_does_not_come_is_a_protocol_error() -> None:
    frame, _ = on_loan()
    with pytest.raises(ProtocolError, match="0 descriptors came where 1 should"):
        receive(frame, [])


def test_memory_that_was_never_lent_is_a_protocol_error() -> None:
    head = wire.encode(wire.MESSAGE, torch.zeros(1 << 20), memfd=True).head
    with pytest.raises(ProtocolError, match="in memory 5, which did not come"):
        receive(head + wire.describe_loan(5, 1, is_new=False), [])


@pytest.mark.parametrize("reader", [0, loans.FLAGS_BYTES])
def test_a_reader_that_cannot_be_is_a_protocol_error(reader: int) -> None:
    frame, loan = on_loan()
    with pytest.raises(ProtocolError, match=f"as reader {reader}"):
        receive(
            frame[:-4] + wire.describe_loan(3, reader, is_new=True), [loan.piece.memory.descriptor]
        )


def test_over_tcp_a_shared_tensor_is_refused_and_the_channel_stays_usable() -> None:
    with serving(work.echo) as server, RemoteWorker(server.host, server.port) as worker:
        shared = SharedTensor((2,))
        with pytest.raises(TypeError, match=r"cannot leave this machine; send its \.tensor"):
            worker.send({"x": shared})
        shared.tensor[:] = 5
        worker.send({"x": shared.tensor}, timeout=T)
        assert worker.recv(T)["x"].tolist() == [5, 5]


def test_several_in_one_message_keep_their_places() -> None:
    left, right = socket.socketpair()
    with Channel(left, memfd=True) as ours, Channel(right, memfd=True) as theirs:
        shared = [SharedTensor((4,), torch.int64) for _ in range(3)]
        for number, one in enumerate(shared):
            one.tensor.fill_(number)
        large = torch.full((1 << 18,), 3.0)
        ours.send(
            {"a": shared[0], "b": [b"raw", shared[1], large], "c": (shared[2], torch.ones(2))}
        )
        arrived = theirs.recv(T)
        received = [arrived["a"], arrived["b"][1], arrived["c"][0]]
        assert [int(one.tensor[0]) for one in received] == [0, 1, 2]
        assert arrived["b"][0] == b"raw"
        assert torch.equal(arrived["b"][2], large)
        received[1].tensor[3] = 9
        assert shared[1].tensor.tolist() == [1, 1, 1, 9]
        shared[1].tensor[2] = 8
        assert received[1].tensor.tolist() == [1, 1, 8, 9]


def test_the_memory_outlives_the_worker_that_made_it() -> None:
    def give(channel: Channel) -> None:
        shared = SharedTensor((3,), torch.int32)
        shared.tensor[:] = 6
        channel.send(shared)

    with Worker(give) as worker:
        shared = worker.recv(T)
        assert worker.wait(T) == 0
    assert shared.tensor.tolist() == [6, 6, 6]


def test_the_tensor_outlives_its_shared_tensor() -> None:
    tensor = SharedTensor((1 << 18,)).tensor
    gc.collect()
    tensor[:] = 1
    assert tensor.sum() == 1 << 18


def test_repr_and_default_dtype() -> None:
    assert repr(SharedTensor((2, 3))) == "<SharedTensor [2, 3] torch.float32>"


def shared_frame(**changes: Any) -> bytes:
    spec = {"type": "shared", "dtype": "float32", "shape": [4], "nbytes": 16}
    header = json.dumps({"body": {"$": "buffer", "index": 0}, "buffers": [spec | changes]})
    kind = wire.MESSAGE | wire.HAS_DESCRIPTORS
    return struct.pack("!4sBI", wire.MAGIC, kind, len(header)) + header.encode()


def test_a_shared_tensor_larger_than_its_memory_is_a_protocol_error_and_leaks_nothing() -> None:
    memory = os.memfd_create("small")
    os.truncate(memory, 8)
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(ProtocolError, match="8 bytes where 16 were promised"):
        receive(shared_frame(), [memory])
    gc.collect()
    assert sorted(os.listdir("/proc/self/fd")) == before
    os.close(memory)


def test_a_descriptor_that_is_no_memory_is_a_protocol_error_and_leaks_nothing() -> None:
    read_end, write_end = os.pipe()
    before = sorted(os.listdir("/proc/self/fd"))
    for frame in (shared_frame(), shared_frame(type="torch")):
        with pytest.raises(ProtocolError):
            receive(frame, [read_end])
    gc.collect()
    assert sorted(os.listdir("/proc/self/fd")) == before
    os.close(read_end)
    os.close(write_end)


def test_descriptors_nobody_asked_for_are_closed() -> None:
    memory = os.memfd_create("right size")
    os.truncate(memory, 16)
    before = sorted(os.listdir("/proc/self/fd"))
    receive(shared_frame(), [memory] * 5)
    plain = wire.encode(wire.MESSAGE, "x" * 10).head
    left, right = socket.socketpair()
    with Channel(right, memfd=True) as channel, left:
        for _ in range(3):
            socket.send_fds(left, [plain], [memory] * 200)
        assert [channel.recv(T), channel.recv(T)] == ["x" * 10] * 2
        with pytest.raises(ProtocolError, match="descriptors came that no frame speaks of"):
            channel.recv(T)
    gc.collect()
    assert sorted(os.listdir("/proc/self/fd")) == before
    os.close(memory)


def test_a_refused_frame_leaves_no_descriptor_in_the_kernels_queue() -> None:
    """What arrived and was never received is closed with the socket."""
    before = sorted(os.listdir("/proc/self/fd"))
    left, right = socket.socketpair()
    with Channel(left, memfd=True) as ours, Channel(right, memfd=True):
        ours.send(SharedTensor((4,)))
    gc.collect()
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"nbytes": 15},
        {"shape": [-4]},
        {"dtype": "nothing"},
        {"dtype": "qint8"},
        {"nbytes": 1 << 60},
    ],
    ids=str,
)
def test_a_lying_description_is_a_protocol_error(changes: dict[str, Any]) -> None:
    memory = os.memfd_create("right size")
    os.truncate(memory, 16)
    try:
        with pytest.raises(ProtocolError):
            receive(shared_frame(**changes), [memory])
    finally:
        os.close(memory)
