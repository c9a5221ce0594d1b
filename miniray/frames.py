"""Frames over a stream socket, as far as they go without waiting."""

import array
import errno
import socket
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from miniray import wire

SENDMSG_PARTS_MAX = 512  # the kernel takes 1024 at once
_DONTWAIT = int(socket.MSG_DONTWAIT)  # not the enum, which is slower
_CLOEXEC = int(getattr(socket, "MSG_CMSG_CLOEXEC", 0))  # macOS has none
_PEEK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)
_ANCILLARY_BYTES = socket.CMSG_SPACE(wire.DESCRIPTORS_MAX * array.array("i").itemsize)


class FrameSocket:
    """Send and receive whole frames over a socket, which it owns from now on.

    It never waits: `send` says when there is no room, and `receive` raises BlockingIOError while
    there is nothing. One thread may send while another receives.
    """

    def __init__(self, sock: socket.socket, *, memfd: bool, handshake: bool) -> None:
        sock.settimeout(None)
        self.sock = sock
        self.memfd = memfd
        self._decoder = wire.Decoder(auth_only=handshake, memfd=memfd)

    def send(self, frame: wire.Encoded) -> Iterable[None]:
        """Send a frame; for each item that is returned, wait until there is room again."""
        if frame.parts or frame.descriptors:
            return self._send_all(frame)
        try:
            sent = self.sock.send(frame.head, _DONTWAIT)
        except BlockingIOError:
            sent = 0
        if sent == len(frame.head):
            return ()  # as for most messages
        return self._send_parts([memoryview(frame.head)[sent:]])

    def _send_all(self, frame: wire.Encoded) -> Iterator[None]:
        if frame.descriptors:
            yield from self._send_parts([frame.head])
            yield from self._send_parts([b"\0"], frame.descriptors)
            yield from self._send_parts(frame.parts)
        else:
            yield from self._send_parts([frame.head, *frame.parts])

    def _send_parts(self, parts: Sequence[Any], descriptors: Sequence[int] = ()) -> Iterator[None]:
        rights = array.array("i", descriptors)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else []
        while parts:
            try:
                sent = self.sock.sendmsg(parts[:SENDMSG_PARTS_MAX], ancillary, _DONTWAIT)
            except BlockingIOError:
                yield
                continue
            ancillary, done = [], 0
            while done < len(parts) and sent >= len(parts[done]):
                sent -= len(parts[done])
                done += 1
            parts = parts[done:]
            if sent:
                parts = [memoryview(parts[0])[sent:], *parts[1:]]

    def close(self) -> None:
        """Close the socket, and let go of what has arrived of a frame."""
        self.sock.close()
        self._decoder.close()

    def receive(self) -> wire.Frame:
        """Return the next frame, once it is complete.

        Raises BlockingIOError before that, OSError if the other side hung up, and ProtocolError.
        Whatever else it raises came from a signal's handler: what has arrived is lost then.
        """
        frame = None
        while frame is None:
            frame = self._receive_into(self._decoder.want)
        return frame

    def drop_unread(self) -> None:
        """Drop what has arrived; raises OSError once there is no more."""
        while self.sock.recv(1 << 16, _DONTWAIT):
            pass

    def take_in(self) -> bool:
        """Take in all of the current frame that is here but its last byte; return if that is here.

        That byte stays in the kernel, so that the descriptor says that there is a message.
        """
        try:
            while True:
                want = memoryview(self._decoder.want)
                if not self._decoder.ends_frame:
                    self._receive_into(want)
                elif len(want) > 1:
                    self._receive_into(want[:-1])
                else:
                    self.sock.recv(1, _PEEK)  # nothing, if the other side has hung up
                    return True
        except BlockingIOError:
            return False

    def _receive_into(self, want: Any) -> wire.Frame | None:
        if self._decoder.wants_descriptors:
            return self._receive_descriptors()
        nbytes = self.sock.recv_into(want, 0, _DONTWAIT)
        if not nbytes:
            raise ConnectionResetError(errno.ECONNRESET, "it hung up without a goodbye")
        return self._decoder.advance(nbytes)

    def _receive_descriptors(self) -> wire.Frame | None:
        asked = 1, _ANCILLARY_BYTES, _DONTWAIT | _CLOEXEC
        byte, ancillary, _, _ = self.sock.recvmsg(*asked)  # the byte itself says nothing
        if not byte:
            raise ConnectionResetError(errno.ECONNRESET, "it hung up without a goodbye")
        descriptors = array.array("i")
        for _, _, rights in ancillary:
            descriptors.frombytes(rights[: len(rights) - len(rights) % descriptors.itemsize])
        return self._decoder.advance(1, descriptors)
