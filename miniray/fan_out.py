"""One message to many, encoded once and sent side by side; and one message from each of many."""

import contextlib
from collections.abc import Iterable
from typing import Any

from miniray import loans, wire
from miniray.channel import Channel
from miniray.waiting import Late, deadline_after, time_left, wait, wait_until


def broadcast(channels: Iterable[Channel], message: Any, timeout: float | None = None) -> None:
    """Send one message to all channels, side by side.

    It is encoded once, and local workers share one copy of large arrays in it; what one of them
    writes into those, the others do not see. A channel that cannot take the message ends, as after
    a `send`, and the first such error is raised when the others have it. Nobody has it if it cannot
    be sent at all.

    >>> broadcast(workers, {"cmd": "load", "weights": model.state_dict()})
    """
    deadline = deadline_after(timeout)
    everyone = list(dict.fromkeys(channels))
    frames = _encode(message, everyone)
    taken: list[Channel] = []
    try:
        # In one order everywhere: two threads that broadcast must not wait for each other.
        for channel in sorted(everyone, key=id):
            channel.turn_to_send.refuse_handler()
            taken.append(channel)
            channel.turn_to_send.take(deadline)
        _send(everyone, frames, deadline, timeout)
    except Late:
        others = f"other threads' messages to {taken[-1].name} took all of {timeout}s"
        raise TimeoutError(f"{others}; nobody has the broadcast") from None
    finally:
        try:
            _leave(taken)
        finally:  # for a handler that raises in the midst of it
            _leave(taken)
    for channel in everyone:
        if channel.ended is not None:
            raise channel.why_it_ended()


def gather(channels: Iterable[Channel], timeout: float | None = None) -> list[Any]:
    """Return the next message of each channel, in the order of the channels.

    It waits for all at once: the first that has ended raises, whoever else is still busy. Raises
    TimeoutError after `timeout` seconds, and what has been received by then is lost.

    >>> losses = gather(workers)
    """
    deadline = deadline_after(timeout)
    everyone = list(channels)
    messages: dict[Channel, Any] = {}
    while pending := [channel for channel in everyone if channel not in messages]:
        ready = wait(pending, time_left(deadline))
        if not ready:
            names = ", ".join(channel.name for channel in pending)
            raise TimeoutError(f"{names} sent nothing for {timeout:.3g}s")
        messages |= {channel: channel.recv() for channel in ready}
    return [messages[channel] for channel in everyone]


def _encode(message: Any, channels: list[Channel]) -> dict[bool, wire.Encoded]:
    """Return the message for local channels (True) and for others, as far as there are any."""
    local = sum(channel.frames.memfd for channel in channels)
    if local > loans.READERS_MAX:
        raise ValueError(f"a broadcast to more than {loans.READERS_MAX} workers of this machine")
    kinds = {channel.frames.memfd for channel in channels}
    frames = {memfd: wire.encode(wire.MESSAGE, message, memfd=memfd) for memfd in kinds}
    if local > 1 and (loan := frames[True].loan) is not None:
        loan.is_shared = True
    return frames


def _send(
    channels: list[Channel],
    frames: dict[bool, wire.Encoded],
    deadline: float,
    timeout: float | None,
) -> None:
    sending = {one: one.sending(frames[one.frames.memfd], deadline, timeout) for one in channels}
    wanted: dict[Channel, int] = {}
    ready = channels
    try:
        while ready:
            for channel in ready:
                if events := next(sending[channel], 0):
                    wanted[channel] = events
                else:
                    del sending[channel]
                    wanted.pop(channel, None)
            # At the deadline each of them finds out by itself that it is late.
            ready = (wait_until(wanted, deadline) or [*wanted]) if wanted else []
    finally:
        for steps in sending.values():
            steps.close()


def _leave(channels: list[Channel]) -> None:
    while channels:
        with contextlib.suppress(RuntimeError):  # it was not taken
            channels[-1].turn_to_send.leave()
        channels.pop()
