"""Assemble frames from bytes that arrive in pieces of any size."""

LENGTH_BYTES = 4
BODY_BYTES_MAX = 1024 * 1024


class Decoder:
    """Take bytes as they come, and give back the bodies of the frames that are complete.

    A frame is the length of its body, four bytes, big-endian, and then the body.
    """

    def __init__(self) -> None:
        self.buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Return the bodies of all frames that these bytes complete, in their order.

        Raises ValueError for a length beyond BODY_BYTES_MAX as soon as the length has arrived.
        """
        # begin yours
        # end yours
