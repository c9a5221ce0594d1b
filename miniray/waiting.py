"""The one way to wait: deadlines, what is already here, what arrives, and who is lost."""

import math
import select
import socket
import struct
import sys
import time
from collections.abc import Iterable, Mapping
from typing import TypeVar

LOST_PEER_S = 15
LOOK_S = 2.0
FOREVER_S = 1e6  # twelve days; poll() takes not much more
ASK_S = 0.02
OVERTIME_S = 0.02  # for what is here already; a message that flows on and on is late
READABLE, WRITABLE = select.POLLIN, select.POLLOUT
ERROR = select.POLLHUP | select.POLLERR | select.POLLNVAL  # poll says so unasked
HANG_UP = ERROR | getattr(select, "POLLRDHUP", 0)
# Of Linux's struct tcp_info: unanswered retransmissions and probes, milliseconds since an answer.
_TCP_INFO_HEAD = struct.Struct("=2xBB52xI")
_UNANSWERED_MIN = 3
_INTERNET = (socket.AF_INET, socket.AF_INET6)


class Source:
    """What a wait can be for: a descriptor of its own, and omens of its end elsewhere."""

    look_due = math.inf  # when `look` is to be asked, by time.monotonic()

    def descriptor(self) -> int:
        """Return the descriptor that becomes ready when there is something to do; -1 for none."""
        raise NotImplementedError

    def is_ready(self, events: int) -> bool:
        """Return whether there is something to do, whatever the descriptor says of the events."""
        return False

    def omens(self) -> "Iterable[Source]":
        """Return what else to watch, because its end may be the end of this, too."""
        return ()

    def watched(self) -> Iterable[tuple[int, int]]:
        """Return, of an omen, the descriptors and the events that it wants to heed."""
        return ()

    def heed(self, descriptor: int, deadline: float) -> None:
        """Find out, of an omen, what an event means for whoever it concerns."""

    def settle(self) -> None:
        """Wait, of an omen, while another thread finds out why all end that it concerns."""

    def look(self, deadline: float) -> None:
        """Ask what no descriptor tells; called when `look_due` has come."""


AnySource = TypeVar("AnySource", bound=Source)


class Late(Exception):
    """A deadline has passed; whoever knows the timeout makes a TimeoutError of it.

    It is a class of its own because a signal's handler may raise a TimeoutError, too.
    """


def deadline_after(timeout: float | None) -> float:
    """Return the moment, by time.monotonic(), at which a timeout in seconds has passed."""
    return math.inf if timeout is None else time.monotonic() + timeout


def time_left(deadline: float) -> float:
    """Return the seconds until a deadline: 0 if it has passed, and no more than FOREVER_S."""
    return min(max(deadline - time.monotonic(), 0.0), FOREVER_S)


def wait_until(wanted: Mapping[AnySource, int], deadline: float) -> list[AnySource]:
    """Wait until a source is ready or has the events that are wanted of its descriptor.

    Returns all that are, in the order given; none once the deadline has passed. Meanwhile it heeds
    the sources' omens, and now and then has each look for what no descriptor tells.
    """
    omens: set[Source] = set()
    for source in wanted:
        omens.update(source.omens())
    everyone: list[Source] = [*wanted, *omens]
    heeded: set[int] = set()  # an omen says what it has to say once
    while True:
        now = time.monotonic()
        for one in everyone:
            if one.look_due <= now:
                one.look_due = now + LOOK_S
                one.look(deadline)
        poller = select.poll()
        ready, watching, heeding, patience = set(), {}, {}, LOOK_S
        for omen in omens:
            for number, events in omen.watched():
                if number >= 0 and number not in heeded:
                    heeding[number] = omen
                    poller.register(number, events)
        for source, events in wanted.items():
            if source.is_ready(events):
                ready.add(source)
            elif (number := source.descriptor()) < 0:  # none, or another thread has closed it
                patience = ASK_S
            else:
                watching[number] = source
                poller.register(number, events | (HANG_UP if number in heeding else 0))
        seconds = 0.0 if ready else min(max(deadline - now, 0.0), patience)
        happened = poller.poll(math.ceil(seconds * 1000))
        for number, events in happened:
            found = watching.get(number)
            if found is not None and events & (wanted[found] | ERROR):
                ready.add(found)
        if ready:
            return [source for source in wanted if source in ready]
        for number, _ in happened:
            if number in heeding:
                heeded.add(number)
                heeding[number].heed(number, deadline)
        if not happened and now >= deadline:
            return []


class Receiver(Source):
    """A source of messages."""

    def holds_message(self) -> bool:
        """Return whether `recv` will not wait, having taken in what has arrived so far."""
        raise NotImplementedError

    def wait_for_more(self, deadline: float) -> bool:
        """Wait for more of a message; return False once it is late, though there may be more."""
        found = wait_until({self: READABLE}, deadline)
        return bool(found) and time.monotonic() <= deadline + OVERTIME_S


AnyReceiver = TypeVar("AnyReceiver", bound=Receiver)


def wait(channels: Iterable[AnyReceiver], timeout: float | None = None) -> list[AnyReceiver]:
    """Return the channels on which `recv` will not wait, in the order given; [] on timeout.

    Works over any number of channels (poll, not select with its limit of 1024). What has arrived
    of a message that is not complete yet is taken in, and does not count.
    """
    channels = list(channels)
    wanted = dict.fromkeys(channels, READABLE)
    deadline = deadline_after(timeout)
    while wanted and (found := wait_until(wanted, deadline)):
        if ready := {channel for channel in found if channel.holds_message()}:
            return [channel for channel in channels if channel in ready]
        if time.monotonic() > deadline + OVERTIME_S:
            break
    return []


def watch_link(sock: socket.socket) -> None:
    """Have the kernel end a TCP connection whose other machine is gone, within LOST_PEER_S.

    That is while nothing is under way. Bytes that nobody acknowledges it sends again for some 15
    minutes; told to give up earlier, it also gives up a peer that is well and does not read. So
    whoever waits asks `link_is_lost` now and then.
    """
    if sock.family not in _INTERNET:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 5}.items():
        if hasattr(socket, option):  # macOS has other names for some
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def link_is_lost(sock: socket.socket) -> bool:
    """Return whether the kernel asks again and again, and had no answer for LOST_PEER_S.

    A machine that is there answers, though its process does not read.
    """
    if sock.family not in _INTERNET or sys.platform != "linux":
        return False
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_HEAD.size)
    retransmissions, probes, silent_ms = _TCP_INFO_HEAD.unpack(info)
    unanswered = int(max(retransmissions, probes))
    return unanswered >= _UNANSWERED_MIN and silent_ms >= LOST_PEER_S * 1000
