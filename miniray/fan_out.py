"""One message to many: encoded once, and every connection is filled as fast as it takes it."""

import contextlib
from collections.abc import Iterable
from typing import Any

from miniray import wire
from miniray.channel import Channel
from miniray.waiting import deadline_after, wait_until


def broadcast(channels: Iterable[Channel], message: Any, timeout: float | None = None) -> None:
    """Send one message to all channels, side by side.

    It is encoded once, and local workers share one copy of large arrays in it until each has let
    go of its own. A channel that cannot take it ends, as after a `send`, and the first such error
    is raised when the others have the message. Nobody has it if it cannot be sent at all.

    >>> broadcast(workers, {"cmd": "load", "weights": model.state_dict()})
    """
    deadline = deadline_after(timeout)
    # In one order everywhere: two threads that broadcast must not wait for each other.
    everyone = sorted(dict.fromkeys(channels), key=id)
    frames = {
        memfd: wire.encode(wire.MESSAGE, message, memfd=memfd)
        for memfd in {channel.frames.memfd for channel in everyone}
    }
    with contextlib.ExitStack() as turns:
        for channel in everyone:
            channel.turn_to_send.refuse_handler()
            try:
                channel.turn_to_send.take(deadline)
            except TimeoutError:
                others = f"other threads' messages to {channel.name} took all of {timeout}s"
                raise TimeoutError(f"{others}; nobody has the broadcast") from None
            turns.callback(channel.turn_to_send.leave)
        sending = {
            channel: channel.sending(frames[channel.frames.memfd], deadline, timeout)
            for channel in everyone
        }
        ready = everyone
        wanted: dict[Channel, int] = {}
        try:
            while sending:
                for channel in ready:
                    if events := next(sending[channel], 0):
                        wanted[channel] = events
                    else:
                        del sending[channel]
                        wanted.pop(channel, None)
                # At the deadline each of them finds out by itself that it is late.
                ready = wait_until(wanted, deadline) or [*sending] if sending else []
        finally:
            for steps in sending.values():
                steps.close()
    for channel in everyone:
        if channel.ended is not None:
            raise channel.why_it_ended()
