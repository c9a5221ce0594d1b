"""Call functions in workers and get their results, with nothing but messages.

A call is the message {"call": name, "number": n, "args": ..., "kwargs": ...}, and its answer is
{"answer": n, "result": ...}. The number is there so that a result which comes too late, after a
timeout or Ctrl-C, is not taken for another call's. An exception is no answer: it ends the worker.
"""

import contextlib
import itertools
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from miniray import cells
from miniray.channel import Channel
from miniray.errors import ProtocolError, WorkerError
from miniray.rendezvous import NCCLConfig, environment
from miniray.title import set_title
from miniray.waiting import deadline_after, time_left, wait
from miniray.work_fn import AnyFunction, load_work_fn, name_of

SHOWN_CHARS = 200
_numbers = itertools.count(1)
LAST_WORDS_S = 5.0  # what it takes at most until one that has ended is known to have
LOOK_S = 0.2  # how often a caller looks whether somebody else has read its answer
_awaited = weakref.WeakValueDictionary[int, "Answer"]()


class Answer(list[Any]):
    """[what a call has returned], or [] until anybody has read it; kept by whoever expects it.

    Whoever reads a worker's messages may come across the answer to another's call: of another
    thread, or of a `map` that is not asked for its next result just now.
    """


def answer_calls(channel: Channel) -> None:
    """Be a worker that calls what each message names, and sends back what that returns.

    A function that raises ends the worker, as always. One that says sys.exit(0) returns None.
    """
    place: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    who = ""
    for message in channel:
        if type(message) is not dict or not message.keys() & {"call", "cells", "place"}:
            raise TypeError(f"this worker answers calls, and got {message!r:.{SHOWN_CHARS}}")
        if "cells" in message:  # the text of what the next call names, if a notebook makes it
            cells.define(message["cells"])
            continue
        if "place" in message:  # that of the next call
            config = NCCLConfig(**message["place"])
            place, who = environment(config), f"rank {config.rank} of {config.world_size}"
            continue
        if who:
            set_title(who, message["call"])
        with place:
            result = _call(message["call"], message["args"], message["kwargs"])
        place = contextlib.nullcontext()
        try:
            channel.send({"answer": message["number"], "result": result})
        except (TypeError, ValueError) as error:
            problem = f"{message['call']} returned what cannot be sent: {error}"
            raise type(error)(problem) from None


def _call(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    try:
        function = load_work_fn(name)
    except ImportError as error:
        along = "what is imported by the module that a cluster starts with goes along; see sync"
        raise ImportError(f"cannot call {name} here: {error} ({along})") from error
    try:
        return function(*args, **kwargs)
    except SystemExit as leaving:
        if leaving.code:
            raise
        return None


def make_call(function: str | AnyFunction, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Return the message that asks for a call."""
    name, number = name_of(function), next(_numbers)
    return {"call": name, "number": number, "args": args, "kwargs": kwargs}


def send_cells(channels: Iterable[Channel], function: str, timeout: float | None) -> None:
    """Send the text of a notebook's function, of which calls are about to be sent."""
    if pieces := cells.collect(function):
        deadline = deadline_after(timeout)
        for channel in channels:
            with contextlib.suppress(WorkerError):  # `recv` says it as well
                channel.send({"cells": pieces}, None if timeout is None else time_left(deadline))


def read_answer(channel: Channel, call: Mapping[str, Any], message: Any) -> list[Any]:
    """Return [result] if a message answers a call; [] if another one, whose caller gets it."""
    if type(message) is not dict or "answer" not in message:
        raise ProtocolError(
            f"{channel.name} does not answer calls: its work function is another. Make it with "
            "Worker(), WorkerServer(answer_calls) or Cluster.start(..., calls=True)"
        )
    if message["answer"] == call["number"]:
        return [message["result"]]
    _awaited.get(message["answer"], []).append(message["result"])
    return []


def expect(call: Mapping[str, Any]) -> Answer:
    """Return where the answer to a call, which is about to be sent, will be."""
    return _awaited.setdefault(call["number"], Answer())


def take_answer(
    channel: Channel,
    call: Mapping[str, Any],
    answer: Answer,
    deadline: float,
    timeout: float | None,
) -> Any:
    """Return the result of a call; raise TimeoutError if it is not there in time."""
    while not answer:
        if wait([channel], min(time_left(deadline), LOOK_S)):
            answer += _read(channel, call, deadline)
        elif not time_left(deadline):
            late = f"{channel.name} has not returned from {call['call']} after {timeout}s"
            raise TimeoutError(f"{late}; it goes on, and its result will be dropped")
    return answer[0]


def _read(channel: Channel, call: Mapping[str, Any], deadline: float) -> list[Any]:
    """Return what `read_answer` does of what has just come; [] if somebody else was faster."""
    with contextlib.suppress(TimeoutError):
        return read_answer(channel, call, channel.recv(min(time_left(deadline), LAST_WORDS_S)))
    return []


def as_completed(
    workers: Iterable[Channel],
    function: str | AnyFunction,
    tasks: Iterable[Any],
    *,
    timeout: float | None = None,
    keep_going: bool = False,
) -> Iterator[tuple[Any, Any]]:
    """Call `function(task)` for each task on whichever worker is free; yield (task, result) pairs.

    They come as they are done, and no worker waits for another. Raises the error of a worker that
    fails, with a note of its task; with `keep_going` it comes in the result's place and the others
    go on, until none is left: then RuntimeError says how many tasks are. Raises TimeoutError if not
    all is done within `timeout` seconds.

    >>> for path, count in as_completed(workers, count_words, paths):
    ...     print(path, count)
    """
    for _, task, result in _work_off(list(workers), function, tasks, timeout, keep_going):
        yield task, result


def in_order(
    workers: Iterable[Channel],
    function: str | AnyFunction,
    tasks: Iterable[Any],
    *,
    timeout: float | None = None,
) -> Iterator[Any]:
    """Do the same, and yield the results alone, in the order of the tasks."""
    early: dict[int, Any] = {}
    due = 0
    for index, _, result in _work_off(list(workers), function, tasks, timeout, keep_going=False):
        early[index] = result
        while due in early:
            yield early.pop(due)
            due += 1


def _work_off(
    workers: Sequence[Channel],
    function: str | AnyFunction,
    tasks: Iterable[Any],
    timeout: float | None,
    keep_going: bool,
) -> Iterator[tuple[int, Any, Any]]:
    """Yield (index, task, result) as results come; who is done has the next task before that."""
    name, deadline, waiting = name_of(function), deadline_after(timeout), enumerate(tasks)
    busy: dict[Channel, tuple[int, Any, dict[str, Any], Answer]] = {}

    def give(free: Sequence[Channel]) -> None:
        for worker, (index, task) in zip(free, waiting, strict=False):
            call = make_call(name, task)
            busy[worker] = index, task, call, expect(call)
            with contextlib.suppress(WorkerError):  # `recv` says it as well
                worker.send(call, None if timeout is None else time_left(deadline))

    send_cells(workers, name, timeout)
    give(workers)
    while busy:
        ready = [worker for worker, (*_, answer) in busy.items() if answer]
        if not (ready := ready or wait(busy, min(time_left(deadline), LOOK_S))):
            if time_left(deadline):
                continue
            names = ", ".join(worker.name for worker in busy)
            raise TimeoutError(f"still at {name} after {timeout}s: {names:.{SHOWN_CHARS}}")
        for worker in ready:
            index, task, call, answer = busy[worker]
            alive, found = [worker], list[Any](answer)
            try:
                found = found or _read(worker, call, deadline)
            except WorkerError as error:
                error.add_note(f"{worker.name} was at {name}({task!r:.{SHOWN_CHARS}})")
                if not keep_going:
                    raise
                alive, found = [], [error]
            if found:
                del busy[worker]
                give(alive)
                yield index, task, found[0]
    for _, task in waiting:
        lost = f"none of {len(workers)} workers is left"
        raise RuntimeError(f"{lost}; not done: {task!r:.{SHOWN_CHARS}} and what comes after it")
