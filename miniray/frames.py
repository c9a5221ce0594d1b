"""Frames over a stream socket, as far as they go without waiting long."""

import array
import collections
import errno
import math
import select
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from miniray import wire
from miniray.decoding import Decoder
from miniray.waiting import HANG_UP, OVERTIME_S, time_left

SENDMSG_PARTS_MAX = 512  # the kernel takes 1024 at once
PATIENCE_S = 0.02
DONTWAIT = int(socket.MSG_DONTWAIT)  # not the enum, which is slower
# Arguments for `map`, which calls in one step of C.
_DONTWAIT = (DONTWAIT,)
_DONTWAIT_CLOEXEC = (DONTWAIT | int(getattr(socket, "MSG_CMSG_CLOEXEC", 0)),)  # macOS has none
_AHEAD = (wire.AHEAD_BYTES,)
_ANCILLARY = (socket.CMSG_SPACE(wire.DESCRIPTORS_MAX * array.array("i").itemsize),)


class FrameSocket:
    """Send and receive whole frames over a socket, which it owns from now on.

    `send` never waits: it says when there is no room. `receive` waits for PATIENCE_S at most, the
    quickest way, and then raises BlockingIOError. It reads ahead: what has arrived of the next
    frames waits here. One thread may send while another receives.
    """

    def __init__(self, sock: socket.socket, *, memfd: bool, handshake: bool) -> None:
        sock.settimeout(None)
        self.sock = sock
        self.poller = select.poll()  # for whoever has the turn to receive
        self.poller.register(sock, select.POLLIN)
        self.memfd = memfd
        self._reads_ahead = not handshake  # the worker's words are for another channel
        self.decoder = Decoder(auth_only=handshake, memfd=memfd)
        self.next: wire.Frame | None = None  # complete, and not received yet
        self._lent: dict[int, int] = {}  # which piece the other side has under each number
        # What the kernel gave, until it is taken in. One step of C notes it, so that a handler
        # which raises comes before or after that, and `is_whole` can tell.
        self.arrived: collections.deque[Any] = collections.deque()
        self.in_kernel = False

    def send(self, frame: wire.Encoded) -> Iterable[None]:
        """Send a frame; for each item that is returned, wait until there is room again."""
        if frame.parts or frame.owners or frame.loan:
            return self._send_all(frame)
        try:
            sent = self.sock.send(frame.head, DONTWAIT)
        except BlockingIOError:
            sent = 0
        if sent == len(frame.head):
            return ()  # as for most messages
        return self._send_parts([memoryview(frame.head)[sent:]])

    def _send_all(self, frame: wire.Encoded) -> Iterator[None]:
        descriptors = [owner.descriptor for owner in frame.owners]
        parts = [frame.head, *frame.parts]
        if frame.loan is not None:
            piece, reader = frame.loan.piece, frame.loan.add_reader()
            is_new = self._lent.get(piece.number) != piece.serial
            if is_new:
                descriptors.insert(0, piece.memory.descriptor)
            self._lent[piece.number] = piece.serial
            is_shared = frame.loan.is_shared
            parts.append(
                wire.describe_loan(piece.number, reader, is_new=is_new, is_shared=is_shared)
            )
        yield from self._send_parts(parts, descriptors)

    def _send_parts(self, parts: Sequence[Any], descriptors: Sequence[int] = ()) -> Iterator[None]:
        rights = array.array("i", descriptors)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else []
        while parts:
            try:
                sent = self.sock.sendmsg(parts[:SENDMSG_PARTS_MAX], ancillary, DONTWAIT)
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

    def send_at_once(self, data: bytes) -> None:
        """Send what nobody waits for: if there is no room for it, it is lost."""
        self.sock.send(data, DONTWAIT)

    def close(self) -> None:
        """Close the socket, and let go of what has arrived."""
        self.sock.close()
        self.decoder.close()
        self.next = None

    def receive(self, deadline: float) -> wire.Frame:
        """Return the next frame.

        Raises BlockingIOError if it is not complete at the deadline, though bytes may flow on
        (-inf stands for all that is here), or PATIENCE_S after something came; OSError if the
        other side hung up, and ProtocolError. Whatever else it raises, and any OSError without a
        number, came from a signal's handler.
        """
        self.in_kernel = False
        if self.next is not None:
            frame, self.next = self.next, None
            return frame
        decoder = self.decoder
        until = math.inf if math.isinf(deadline) else max(deadline, time.monotonic()) + OVERTIME_S
        while True:
            if decoder.may_hold_frame and (whole := decoder.next_frame()) is not None:
                return whole
            if until != math.inf and time.monotonic() > until:
                raise BlockingIOError(errno.EAGAIN, "it is not all here yet")
            self.read(deadline)

    def is_whole(self) -> bool:
        """Return whether nothing that had arrived is lost, after a handler raised in `receive`."""
        return self.in_kernel and not self.arrived

    def may_hold_frame(self) -> bool:
        """Return whether a frame may be complete in what has been taken in."""
        return self.next is not None or self.decoder.may_hold_frame

    def take_in(self) -> bool:
        """Take in what is here of the next frame; return whether it is complete."""
        try:
            self.next = self.receive(time.monotonic())
        except BlockingIOError:
            return False
        return True

    def peek(self) -> None:
        """Have `next` tell whether a frame is complete in what has been taken in."""
        self.in_kernel = False
        if self.next is None:
            self.next = self.decoder.next_frame()

    def has_hung_up(self) -> bool:
        """Return whether the other side has hung up, which nobody does halfway."""
        poller = select.poll()
        poller.register(self.sock, HANG_UP)
        return bool(poller.poll(0))

    def drop_unread(self) -> None:
        """Drop what has arrived; raises OSError once there is no more."""
        while self.sock.recv(1 << 16, DONTWAIT):
            pass

    def read(self, deadline: float) -> None:
        """Have the decoder take in some of what has arrived, or arrives within PATIENCE_S."""
        decoder, arrived, memory = self.decoder, self.arrived, self.decoder.memory
        patience_ms = PATIENCE_S * 1000
        if deadline != math.inf:
            patience_ms = min(patience_ms, math.ceil(time_left(deadline) * 1000))
        self.in_kernel = True
        if patience_ms:
            self.poller.poll(patience_ms)
        if memory is not None and len(memory) > wire.AHEAD_BYTES:
            arrived.extend(map(self.sock.recv_into, (memory,), (0,), _DONTWAIT))
        elif self.memfd:
            arrived.extend(map(self.sock.recvmsg, _AHEAD, _ANCILLARY, _DONTWAIT_CLOEXEC))
        else:
            nbytes = _AHEAD if self._reads_ahead else (decoder.missing,)
            arrived.extend(map(self.sock.recv, nbytes, _DONTWAIT))
        got, ancillary = arrived[0], None
        if type(got) is tuple:
            got, ancillary, _, _ = got
        if type(got) is bytes:
            decoder.feed(got, _descriptors_in(ancillary) if ancillary else ())
        else:
            decoder.filled(got)
        self.in_kernel = False
        arrived.clear()
        if not got:
            raise ConnectionResetError(errno.ECONNRESET, "it hung up without a goodbye")


def frames_over(sock: socket.socket | FrameSocket, *, memfd: bool, handshake: bool) -> FrameSocket:
    """Return frames over a socket; if they are that already, as they are."""
    if isinstance(sock, FrameSocket):
        return sock
    return FrameSocket(sock, memfd=memfd, handshake=handshake)


def _descriptors_in(ancillary: Iterable[tuple[int, int, bytes]]) -> Sequence[int]:
    descriptors = array.array("i")
    for _, _, rights in ancillary:
        descriptors.frombytes(rights[: len(rights) - len(rights) % descriptors.itemsize])
    return descriptors
