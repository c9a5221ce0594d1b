"""Workers that are spoken to together: one message to all, one from each, a call of all of them."""

import importlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

from miniray import calls
from miniray.endings import without_frames_of
from miniray.errors import WorkerError
from miniray.fan_out import broadcast, gather
from miniray.recovery import attempt_again
from miniray.rendezvous import NCCLConfig
from miniray.waiting import deadline_after, time_left
from miniray.work_fn import AnyFunction, name_of

if TYPE_CHECKING:
    from miniray.group import Group
    from miniray.looking.look import Look
    from miniray.remote_worker import RemoteWorker


def _looking(module: str) -> Any:
    """Return one of the modules that are for looking at a cluster, and that nothing else needs."""
    return importlib.import_module(f"miniray.looking.{module}")


# By which an error of a rank comes to whoever has called `run` or `map`.
_WAY = ("crew", "recovery", "fan_out", "calls", "any_worker", "remote_worker", "channel", "group")


class Crew:
    """What a Cluster does with all of its workers at once."""

    def __init__(self) -> None:
        self.workers: list[RemoteWorker] = []
        # The ranks as a process group, from `nccl_configs` on.
        self.group: Group | None = None
        # Whether the workers answer calls, rather than run a function of the user's.
        self.answers_calls = False

    def start(self, work_fn: str | AnyFunction, *, calls: bool = False) -> "Sequence[RemoteWorker]":
        """Start the workers."""
        raise NotImplementedError

    def restart(
        self, *, without_lost: bool = False, timeout: float | None = None
    ) -> "Sequence[RemoteWorker]":
        """Start new workers in the place of all that there are, or were."""
        raise NotImplementedError

    def stop(self) -> None:
        """End the workers, and all that they were started from."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def whereabouts(self) -> dict[str, Any]:
        """Return what runs, and where each node's server is: all that it takes to look at it."""
        raise RuntimeError("ranks that another launcher keeps have no server to ask: try py-spy")

    def stacks(self, *, wake: bool = True) -> "Look":
        """Return where every rank is, however it hangs, and who of them is behind; print it.

        The nodes' servers are asked, and the kernel there: it needs nothing of the ranks' own code,
        and any thread may call it while others wait. A stopped rank is woken for the milliseconds
        that it takes to say where it is, and stopped again, unless `wake` is False. It takes less
        than a second if all servers answer.

        >>> print(cluster.stacks())
        Rank 3 is behind: it runs at train.py:31 in step ...
        """
        look: Look = _looking("look").look_here(self.whereabouts(), wake=wake)
        return look

    def __repr__(self) -> str:
        return str(_looking("reprs").of_cluster(self))

    def _repr_html_(self) -> str:
        return str(_looking("reprs").of_cluster_in_html(self))

    def say(self, text: str) -> None:
        """Write to the log."""
        raise NotImplementedError

    def nccl_configs(self) -> list[NCCLConfig]:
        """Return each worker's place."""
        raise NotImplementedError

    def broadcast(self, message: Any, timeout: float | None = None) -> None:
        """Send one message to all ranks, side by side; it is encoded once. See `broadcast`."""
        broadcast(self._started(), message, timeout)

    def gather(self, timeout: float | None = None) -> list[Any]:
        """Return one message from each rank, in rank order. See `gather`."""
        return gather(self._started(), timeout)

    def _started(self) -> "list[RemoteWorker]":
        if not self.workers:
            raise RuntimeError("this cluster has no workers: start it first")
        return self.workers

    def run(
        self, function: str | AnyFunction, *args: Any, timeout: float | None = None, **kwargs: Any
    ) -> list[Any]:
        """Call a function on all ranks at once, and return their results in rank order.

        It goes by name, so it has to be one at the top of a module, or of the running script, or as
        text, from a notebook's cell. The cluster is started if it has not been. Each rank finds its
        place in torchrun's environment variables: `process_group()` joins, and so does torch's own
        `init_process_group()`. The ranks are a group: when one fails, WorkerFailed or WorkerDied
        names it. Whatever is raised, TimeoutError after `timeout` seconds too, the cluster is
        stopped, and the next call starts it anew.

        >>> cluster.run(train, learning_rate=0.1)
        [0.25, 0.25, 0.25, 0.25]
        """
        call = calls.make_call(function, *args, **kwargs)
        return self._run(function, call, timeout)

    def run_resilient(
        self,
        function: str | AnyFunction,
        *args: Any,
        restarts: int = 3,
        without_lost: bool = False,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        """Do what `run` does, and do it again, on new ranks, whenever a rank has died or failed.

        The function begins anew each time: it is to go on from its own last checkpoint. Servers
        that live stay; where one is lost a new one is started, or with `without_lost` its node is
        left out, so that there may be fewer ranks. A restart that fails counts, too, and the next
        one waits 15 s, 45 s, then 60 s. Raises what ended the last attempt if there are more than
        `restarts` such ends, and TimeoutError if all of it takes longer than `timeout` seconds.

        >>> cluster.run_resilient(train, "checkpoints/", restarts=20, without_lost=True)
        """
        call = calls.make_call(function, *args, **kwargs)
        return self._run(function, call, timeout, restarts, without_lost=without_lost)

    def _run(
        self,
        function: str | AnyFunction,
        call: dict[str, Any],
        timeout: float | None,
        restarts: int = 0,
        *,
        without_lost: bool = False,
    ) -> list[Any]:
        self._be_ready(function)
        deadline = deadline_after(timeout)
        try:
            return attempt_again(
                self,
                lambda restarted: self._run_once(call, deadline),
                restarts=restarts,
                tell=lambda why, what_next: self.say(f"{why}; {what_next}"),
                deadline=deadline,
                without_lost=without_lost,
            )
        except (TypeError, ValueError):  # the arguments cannot be sent, and nobody has them
            raise
        except TimeoutError as late:
            self.stop()
            problem = f"{call['call']} has not returned from all ranks within {timeout}s: {late}"
            raise TimeoutError(problem) from None
        except BaseException as error:
            self.stop()
            if isinstance(error, WorkerError):
                error.__traceback__ = without_frames_of(error.__traceback__, *_WAY)
            raise

    def _run_once(self, call: dict[str, Any], deadline: float) -> list[Any]:
        results: dict[RemoteWorker, list[Any]] = {}
        for worker, place in zip(self.workers, self.nccl_configs(), strict=True):
            worker.send({"place": place.__dict__}, time_left(deadline))
        calls.send_cells(self.workers, call["call"], time_left(deadline))
        broadcast(self.workers, call, time_left(deadline))
        while pending := [worker for worker in self.workers if not results.get(worker)]:
            try:
                messages = gather(pending, time_left(deadline))
            except TypeError:  # of a class that is not here; the others are still at it
                self.stop()
                raise
            for worker, message in zip(pending, messages, strict=True):
                results[worker] = calls.read_answer(worker, call, message)
        return [results[worker][0] for worker in self.workers]

    def map(
        self,
        function: str | AnyFunction,
        tasks: Iterable[Any],
        *more: Iterable[Any],
        timeout: float | None = None,
    ) -> Iterator[Any]:
        """Yield `function(task)` for each task, in order, computed by whichever rank is free.

        Starts the cluster, and fails, as `run` does.

        >>> list(cluster.map(count_words, paths))
        [1021, 88, 307]
        """
        if more:
            problem = "map takes one iterable, and each task of it is the function's only argument"
            raise TypeError(f"{problem}; pass zip(a, b), and take the pairs apart there")
        self._be_ready(function)
        return self._stop_if_failed(calls.in_order(self.workers, function, tasks, timeout=timeout))

    def as_completed(
        self, function: str | AnyFunction, tasks: Iterable[Any], *, timeout: float | None = None
    ) -> Iterator[tuple[Any, Any]]:
        """Yield (task, result) for each task, as the results come. Otherwise it is `map`."""
        self._be_ready(function)
        return self._stop_if_failed(
            calls.as_completed(self.workers, function, tasks, timeout=timeout)
        )

    def _be_ready(self, function: str | AnyFunction) -> None:
        calls.send_cells([], name_of(function), None)  # what cannot go is refused, and all goes on
        if not self.workers:
            self.start(function, calls=True)
        elif not self.answers_calls:
            raise RuntimeError(
                "this cluster was started with a work function of its own, which gets messages; "
                "for calls stop it first, or start it with start(function, calls=True)"
            )

    def _stop_if_failed(self, results: Iterator[Any]) -> Iterator[Any]:
        try:
            yield from results
        except GeneratorExit:  # nobody wants the rest; what is under way will be dropped
            raise
        except BaseException as error:
            self.stop()
            if isinstance(error, WorkerError):
                error.__traceback__ = without_frames_of(error.__traceback__, *_WAY)
            raise
