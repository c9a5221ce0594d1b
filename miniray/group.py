"""Ranks that live and end together: who belongs, who died first, who is ended."""

import signal
import threading
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from miniray.errors import WorkerDied, WorkerError, WorkerExited, WorkerFailed
from miniray.waiting import HANG_UP, READABLE, Source, deadline_after, time_left, wait, wait_until

if TYPE_CHECKING:
    from miniray.remote_worker import RemoteWorker

SETTLE_S = 2.0
HEAR_S = 0.05  # for all who talk, in turn
ANSWER_S = 0.1  # what an explanation may take though the deadline is near
FAILURES = (WorkerDied, WorkerFailed)
# How well a failure explains the others, which are its consequences: a collective fails when a
# peer has gone, and torch may then abort its process.
DEATH, OWN_FAILURE, ABORT, CONSEQUENCE = range(4)


class Group(Source):
    """A process group: when one of its workers dies or fails, all end with the culprit's error.

    Every wait for one of them watches all. A worker whose function has returned has left; that is
    a fault only if others then fail in a collective.

    >>> group = Group(cluster.start("my_module.train"))
    """

    def __init__(self, workers: Sequence["RemoteWorker"]) -> None:
        self.workers = list(workers)
        # The error with which all have ended, or None.
        self.culprit: WorkerError | None = None
        self._endings: dict[RemoteWorker, Exception] = {}
        self._left: dict[RemoteWorker, None] = {}
        self._settling = threading.Lock()
        self._settler: int | None = None  # the thread that finds out
        self.look_due = 0.0
        for worker in self.workers:
            worker.group = self

    def _present(self) -> list["RemoteWorker"]:
        return [one for one in self.workers if one.ended is None and one not in self._left]

    def watched(self) -> Iterable[tuple[int, int]]:
        if self._settler == threading.get_ident():
            return []
        present = self._present()
        sessions = {one.session for one in present if one.session is not None}
        return [
            *((one.descriptor(), HANG_UP) for one in present),
            *((session.fileno(), READABLE) for session in sessions),
        ]

    def heed(self, descriptor: int, deadline: float) -> None:
        for worker in self._present():
            session = worker.session
            if session is not None and session.fileno() == descriptor:
                if session.how_it_ended():  # it may have said something that is nobody's end
                    self._examine(worker, deadline)
            elif worker.descriptor() == descriptor:
                self._examine(worker, deadline)

    def look(self, deadline: float) -> None:
        for worker in self._present():
            worker.look(deadline)

    def check(self, timeout: float = SETTLE_S) -> None:
        """Notice now whoever has died or is lost; ask after nobody else once `timeout` is over."""
        deadline = deadline_after(timeout)
        for worker in self._present():
            if self.culprit is not None or not time_left(deadline):
                return
            if worker.how_it_ended() is not None:  # a server that is only slow has lost nobody
                self._examine(worker, deadline)

    def _examine(self, worker: "RemoteWorker", deadline: float) -> None:
        """Find out how a worker is that seems to have ended."""
        until = min(deadline_after(SETTLE_S), max(deadline, deadline_after(ANSWER_S)))
        try:
            if worker.wait(time_left(until)) == 0:
                self._left[worker] = None
            else:
                # Its own word says more than a status.
                worker.read_to_the_end(max(until, deadline), keep=False)
        except (TimeoutError, WorkerDied) as error:
            lost = WorkerDied(f"{worker.name} hung up, and its server says no more: {error}")
            worker.end(error if isinstance(error, WorkerDied) else lost, deadline)

    def conclude(self, worker: "RemoteWorker", ending: Exception, deadline: float) -> Exception:
        """Return what a worker's channel ends with: if it has failed, the first culprit's error.

        All ranks end with that. Whichever thread notices first finds out, and others wait for it.
        """
        self._endings[worker] = ending
        if not isinstance(ending, FAILURES) or self._settler == threading.get_ident():
            return ending
        with self._settling:
            if self.culprit is None:
                try:
                    self._settler = threading.get_ident()
                    self.culprit = self._find_culprit(deadline)
                    for one in self.workers:
                        one.ended = self.culprit
                        one.hang_up(self.culprit)
                finally:
                    self._settler = None
            return self.culprit

    def settle(self) -> None:
        if self._settler not in (None, threading.get_ident()):
            with self._settling:
                pass

    def _find_culprit(self, deadline: float) -> WorkerError:
        """Hear everybody's last word, until there is one that is no consequence."""
        until = min(deadline_after(SETTLE_S), max(deadline, deadline_after(ANSWER_S)))
        patience = 0.0  # first what is here already: who died says nothing, and has died before
        while pending := [one for one in self._present() if one not in self._endings]:
            heard = wait(pending, patience)
            gone = wait_until(dict.fromkeys(heard, HANG_UP), deadline=0.0)
            # Who has hung up comes first and takes no time, though there is none left; the others
            # may talk for ever.
            for worker in sorted(heard, key=lambda one: one not in gone):
                choose = max if worker in gone else min
                heard_by = choose(until, deadline_after(HEAR_S / len(heard)))
                worker.read_to_the_end(heard_by, keep=False)
            if self._best() <= OWN_FAILURE or not time_left(until):
                break
            patience = time_left(until)
            time.sleep(0.001)  # another thread may be receiving there, and about to report
        if self._best() > OWN_FAILURE and time_left(deadline):
            self._look_for_lost_nodes(pending, deadline)
        return self._name_culprit()

    def _best(self) -> int:
        return min(map(_explains, list(self._endings.values())))  # other threads add theirs

    def _look_for_lost_nodes(self, pending: list["RemoteWorker"], deadline: float) -> None:
        servers = {(one.host, one.port): one for one in pending}
        for worker in servers.values():
            lost = worker.how_it_ended(min(SETTLE_S, time_left(deadline)))
            if isinstance(lost, WorkerDied):
                self._endings[worker] = lost

    def _name_culprit(self) -> WorkerError:
        endings = self._endings.copy()
        gone = [one for one, said in endings.items() if isinstance(said, WorkerExited)]
        failures = [said for said in endings.values() if isinstance(said, FAILURES)]
        first = min(failures, key=lambda said: (_explains(said), getattr(said, "failed_at", 0.0)))
        if _explains(first) == CONSEQUENCE and (left := [*self._left, *gone]):
            return WorkerDied(
                f"{left[0].name} left early: its work function returned while others were in a "
                f"collective with it. What one of them said:\n{first}",
                exit_code=0,
            )
        others = [one.name for one in self.workers if one not in endings]
        if _explains(first) == CONSEQUENCE and others:
            first.add_note(f"{', '.join(others)} did not fail, and may have left early")
        return first


def _explains(ending: Exception) -> int:
    if isinstance(ending, WorkerDied):
        return ABORT if ending.signal == signal.SIGABRT else DEATH
    is_own = isinstance(ending, WorkerFailed) and not ending.in_collective
    return OWN_FAILURE if is_own else CONSEQUENCE
