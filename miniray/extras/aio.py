"""Wait for messages in an asyncio program: `await recv(channel)`.

It is made of `fileno()`, which is readable when `recv` has something to do, and of `recv` itself.
There is no thread. Sending needs nothing of its own: `channel.send` does not wait, unless the other
side has not received for megabytes; then give it to `loop.run_in_executor`.
"""

import asyncio
import contextlib
import time
import weakref
from collections.abc import AsyncIterator
from typing import Any

from miniray import Channel, calls
from miniray.any_worker import AnyWorker
from miniray.calls import expect, make_call, read_answer, send_cells

LOOK_S = 2.0  # how often a channel looks for what no descriptor tells: a machine that is lost

_waiting = weakref.WeakKeyDictionary[Channel, set[asyncio.Future[None]]]()
_turns = weakref.WeakKeyDictionary[Channel, tuple[asyncio.AbstractEventLoop, asyncio.Lock]]()


async def recv(channel: Channel, timeout: float | None = None) -> Any:
    """Return the channel's next message, as its `recv` does, while other tasks run.

    Raises what that raises. After a TimeoutError or a cancellation the channel is as before, and no
    message is lost. Several tasks may wait for one channel: each message goes to one of them.

    >>> message = await aio.recv(worker)
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        try:
            return channel.recv(timeout=0)
        except TimeoutError:
            left = LOOK_S if deadline is None else deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"{channel.name} sent nothing for {timeout}s")
        await _until_readable(channel, min(left, LOOK_S))


async def messages(channel: Channel) -> AsyncIterator[Any]:
    """Yield a channel's messages until the other side hangs up: `async for message in ...`."""
    while True:
        try:
            message = await recv(channel)
        except channel.goodbye:
            return
        yield message


async def call(
    worker: AnyWorker, function: Any, *args: Any, timeout: float | None = None, **kwargs: Any
) -> Any:
    """Call a function in a worker, as `worker.call` does, while other tasks run.

    Tasks that call one worker take turns. A call that is cancelled goes on there, and the next one
    waits for its end and drops its result.

    >>> squares = await asyncio.gather(*(aio.call(worker, square, 3) for worker in workers))
    """
    loop, request = asyncio.get_running_loop(), make_call(function, *args, **kwargs)
    answer = expect(request)
    if worker not in _turns or _turns[worker][0] is not loop:
        _turns[worker] = loop, asyncio.Lock()
    async with asyncio.timeout(timeout), _turns[worker][1]:
        send_cells([worker], request["call"], None)
        worker.send(request)
        while not answer:  # which somebody else may have read meanwhile
            with contextlib.suppress(TimeoutError):
                answer += read_answer(worker, request, await recv(worker, calls.LOOK_S))
        return answer[0]


async def _until_readable(channel: Channel, seconds: float) -> None:
    """Wait until a channel's descriptor is readable, or for some seconds."""
    loop, descriptor = asyncio.get_running_loop(), channel.fileno()
    waiting = _waiting.setdefault(channel, set())
    mine = loop.create_future()

    def wake() -> None:
        loop.remove_reader(descriptor)  # else it would call again before anybody has received
        for one in waiting:
            one.set_result(None)
        waiting.clear()

    if not waiting:
        loop.add_reader(descriptor, wake)
    waiting.add(mine)
    try:
        await asyncio.wait([mine], timeout=seconds)
    finally:
        if mine in waiting:  # nobody has woken it
            waiting.remove(mine)
            if not waiting:
                loop.remove_reader(descriptor)
