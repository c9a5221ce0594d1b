"""What can be sent, and what cannot, from stage 5 on."""

import socket
import struct
import unittest
from typing import Any

from .channel import Channel
from .errors import ProtocolError
from .remote_worker import RemoteWorker
from .test_remote_worker import T, frame_of, make_pair, serving, setUpModule  # noqa: F401
from .test_worker import echo

try:
    import torch
except ImportError:
    torch = None  # type: ignore[assignment]

PRELUDE = struct.Struct("!4sBI")


def round_trip(message: Any) -> Any:
    """Return what arrives when this is sent."""
    ours, theirs = socket.socketpair()
    with Channel(ours) as one, Channel(theirs) as other:
        one.send(message, timeout=T)
        return other.recv(T)


class TestValues(unittest.TestCase):
    def test_tuples_and_bytes_stay_what_they_are(self) -> None:
        messages: list[Any] = [(), (1, [2, (3,)]), b"", b"\x00\xff" * 1000, {"a": (b"x", None)}]
        for message in messages:
            arrived = round_trip(message)
            assert arrived == message
            assert type(arrived) is type(message)

    def test_what_cannot_be_sent_is_named_with_its_path(self) -> None:
        channel, other = make_pair()
        with channel, other:
            circle: list[Any] = []
            circle.append(circle)
            for message, words in (
                ({"batch": [1, object()]}, r'message\["batch"\]\[1\]: object'),
                ({"a": {print: 2}}, r'message\["a"\]: .*key'),
                ((object(),), r"message\[0\]: object"),
                (circle, "contains itself"),
            ):
                with self.assertRaisesRegex(TypeError, words):
                    channel.send(message)
            channel.send("usable")

    def test_headers_that_no_encoder_makes_raise_protocol_error(self) -> None:
        spec = b'{"type": "bytes", "dtype": null, "shape": [1], "nbytes": %d}'
        for header in (
            b"[]",
            b"{}",
            b'{"body": 1, "buffers": {}}',
            b'{"body": {"$": "what"}, "buffers": []}',
            b'{"body": {"$": "buffer", "index": 7}, "buffers": []}',
            b'{"body": {"$": "buffer", "index": -1}, "buffers": []}',
            b'{"body": 1, "buffers": [' + spec % 2 + b"]}",
            b'{"body": 1, "buffers": [' + spec % -1 + b"]}",
            b'{"body": 1, "buffers": [{"type": "pickle", "dtype": "x", "shape": [], "nbytes": 1}]}',
        ):
            channel, other = make_pair()
            with self.subTest(header), channel, other:
                other.sendall(PRELUDE.pack(b"MRY1", 1, len(header)) + header)
                other.close()
                with self.assertRaises(ProtocolError):
                    channel.recv(T)


@unittest.skipIf(torch is None, "torch is not installed")
class TestTensors(unittest.TestCase):
    def test_every_dtype_comes_back_in_every_layout(self) -> None:
        for dtype in (
            *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64),
            *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
        ):
            base = torch.arange(24).reshape(4, 6).to(dtype)
            layouts = (base, base.T, base[::2, 1:3], base[:0], base[0, 0])
            for tensor in layouts:
                arrived = round_trip({"t": tensor})["t"]
                assert arrived.dtype == dtype
                assert arrived.shape == tensor.shape
                assert torch.equal(arrived, tensor)

    def test_a_tensor_is_the_receivers_own_and_writable(self) -> None:
        sent = torch.zeros(3)
        arrived = round_trip(sent)
        arrived += 1
        assert arrived.tolist() == [1, 1, 1]
        assert sent.tolist() == [0, 0, 0]

    def test_a_parameter_arrives_as_a_plain_tensor(self) -> None:
        arrived = round_trip(torch.nn.Parameter(torch.ones(2)))
        assert not arrived.requires_grad
        assert arrived.tolist() == [1, 1]

    def test_a_large_tensor_goes_to_another_process_and_back(self) -> None:
        with serving(echo) as address, RemoteWorker(*address) as worker:
            tensor = torch.randn(1000, 1000)
            worker.send([tensor, "and words"])
            arrived, words = worker.recv(T)
            assert torch.equal(arrived, tensor)
            assert words == "and words"

    def test_a_tensor_may_arrive_byte_by_byte(self) -> None:
        tensor = torch.arange(5, dtype=torch.int16)
        channel, other = make_pair()
        with channel, other:
            frame = frame_of({"t": tensor, "empty": torch.empty(0)})
            for byte in frame[:-1]:
                other.send(bytes([byte]))
                with self.assertRaises(TimeoutError):
                    channel.recv(timeout=0.0)
            other.send(frame[-1:])
            assert torch.equal(channel.recv(T)["t"], tensor)

    def test_a_tensor_that_is_not_here_says_what_to_do(self) -> None:
        channel, other = make_pair()
        with channel, other:
            with self.assertRaisesRegex(TypeError, r"on meta; call \.cpu\(\) first"):
                channel.send({"x": torch.empty(2, device="meta")})
            channel.send("usable")


if __name__ == "__main__":
    unittest.main()
