"""Workers that another launcher has started: they come to the coordinator, and not it to them.

What they are once they are here is what every worker is. `rank_host` is their side.
"""

import contextlib
import select
import socket
from collections.abc import Callable, Sequence
from typing import Any, cast

from miniray import auth, nccl
from miniray.any_worker import EXPLAIN_S
from miniray.channel import Channel
from miniray.crew import Crew
from miniray.endings import keep
from miniray.errors import ClusterError, MiniRayError, WorkerDied, WorkerError, WorkerFailed
from miniray.extras.rank_host import ANSWERS_CALLS, HOST, RANK, READY, Place
from miniray.group import Group
from miniray.listening import Listener
from miniray.poll_loop import PollLoop
from miniray.process import STOP_S
from miniray.remote_worker import RemoteWorker
from miniray.rendezvous import NCCLConfig
from miniray.strangers import Strangers, Welcome
from miniray.waiting import deadline_after, time_left, watch_link
from miniray.work_fn import AnyFunction
from miniray.worker_log import WorkerLog, clean_name, printable

TURN_S = 0.25  # for one thread that waits for a rank's end, before another one may look
WELCOME_S = 5.0
LEAVE_S = 1.0
FAULT_SPREAD_S = 5.0  # what the others get to come, or to say what is wrong with them, too


class Lease:
    """The connection to the process that keeps a rank, which tells how the rank has ended.

    It is to such a worker what its node's ssh session is to a Cluster's.
    """

    def __init__(self, channel: Channel, place: Place) -> None:
        self.channel, self.place = channel, place
        # How the rank's process ended, once that is known.
        self.exit_code: int | None = None
        self.why_lost: str | None = None
        # Who may know more of the end of the process that kept it.
        self.ask: Callable[[int], str] | None = None

    def fileno(self) -> int:
        """Return a descriptor that is readable once there is news, or nobody to tell any."""
        return self.channel.descriptor()

    def how_it_ended(self, timeout: float = 0.0) -> str | None:
        """Return in words why nobody tells any more how the rank is; None if somebody does."""
        self.look(deadline_after(timeout))
        return self.why_lost

    def look(self, deadline: float) -> int | None:
        """Return the rank's exit code, which may come until the deadline."""
        while self.exit_code is None and self.why_lost is None:
            try:
                said = self.channel.recv(min(time_left(deadline), TURN_S))
                self.exit_code = int(said["exit_code"])
            except TimeoutError:
                if not time_left(deadline):
                    break
            except (EOFError, OSError, MiniRayError) as error:
                known = f"{error}" if self.ask is None else self.ask(self.place.rank)
                self.why_lost = f"the process that kept it has gone ({known})"
        return self.exit_code

    def tell(self, words: dict[str, Any]) -> None:
        """Tell the process that keeps the rank something, if it is there."""
        with contextlib.suppress(EOFError, OSError, MiniRayError):  # nobody is there
            self.channel.send(words, WELCOME_S)


class HostedWorker(RemoteWorker):
    """A rank that has come to the coordinator by itself; from then on, a worker as any other."""

    def __init__(self, sock: socket.socket, lease: Lease, meet: str) -> None:
        place = lease.place
        self.session = self.lease = lease
        self.group: Group | None = None
        self.worker_id, self.host = place.rank, place.node
        self.rendezvous = [meet.split()[0], int(meet.split()[1])] if meet else []
        Channel.__init__(self, sock, name=clean_name(f"rank {place.rank} at {place.node}"))
        self.port = self.pid = 0

    def take_pid(self, pid: int) -> None:
        """Note the number of the rank's process, which is what tells it from others there."""
        self.port = self.pid = pid
        self.name = f"{self.name}:{pid}"

    def wait(self, timeout: float | None = None) -> int:
        code = self.lease.look(deadline_after(timeout))
        if code is not None:
            return code
        if self.lease.why_lost is not None:
            raise WorkerDied(f"{self.name} is lost: {self.lease.why_lost}")
        raise TimeoutError(f"{self.name} still runs after {timeout}s")

    def how_it_ended(self, timeout: float = EXPLAIN_S) -> WorkerError | None:
        try:
            return self.ending(self.wait(0.0))
        except TimeoutError:
            return None
        except WorkerDied as lost:
            return self.ended if isinstance(self.ended, WorkerError) else keep(lost)

    def close(self, timeout: float = STOP_S) -> None:
        """Hang up, and wait for `timeout` seconds at most until its host has ended the rank."""
        was_open = self.ended is None
        Channel.close(self)
        self.lease.tell({"end": timeout})
        if was_open:
            self.lease.look(deadline_after(timeout))


class HostedCluster(Crew):
    """Ranks that another launcher starts, and that report at `self.address`, `self.port`.

    It listens there from the beginning. `gather_ranks` returns once all of them have come; what a
    Cluster does with its workers from then on, this does.

    >>> with HostedCluster(8, "0.0.0.0", 23456, key) as cluster:
    ...     workers = cluster.gather_ranks("module.train_fn", timeout=60.0)
    """

    def __init__(self, world_size: int, host: str, port: int, key: bytes) -> None:
        super().__init__()
        self.world_size = world_size
        self._loop = PollLoop()
        self._log = WorkerLog(self._loop, "coordinator")
        self._strangers = Strangers(self._loop, self._log, key, self._admit)
        self._listener = Listener(host, port, self._loop, self._log.say, self._strangers.add)
        self.address: str = self._listener.address[0]
        self.port: int = self._listener.address[1]
        self._leases: dict[int, Lease] = {}
        self._arrived: dict[int, HostedWorker] = {}
        self._ready: set[int] = set()
        self._faults: dict[int, Exception] = {}
        self._work_fn, self._is_open = "", True

    def start(self, work_fn: str | AnyFunction, *, calls: bool = False) -> Sequence[RemoteWorker]:
        """Refuse: the launcher has started what there is, and will start no more."""
        raise RuntimeError(
            "these ranks were started by another launcher, with the function that it names; for "
            f"calls name {ANSWERS_CALLS.replace('.answer', ':answer')}"
        )

    def restart(
        self, *, without_lost: bool = False, timeout: float | None = None
    ) -> Sequence[RemoteWorker]:
        """Refuse: who starts ranks again is the launcher."""
        raise RuntimeError("only the launcher that has started these ranks can start them again")

    def say(self, text: str) -> None:
        """Write a line to stderr."""
        self._log.say(text)
        self._log.flush(deadline_after(LEAVE_S))

    def gather_ranks(
        self,
        work_fn: str,
        timeout: float,
        check: Callable[[], None] = lambda: None,
    ) -> list[RemoteWorker]:
        """Wait until all ranks have come and have found their function; return them, by rank.

        Raises ClusterError, with every fault that is known by then, if not all do within `timeout`
        seconds. `check` is called now and then, and may raise what makes the waiting vain.
        """
        self._work_fn, deadline = work_fn, deadline_after(timeout)
        while len(self._ready) < self.world_size and time_left(deadline):
            check()
            self._loop.turn()
            for rank in self._leases.keys() - self._arrived.keys():
                self._look_for_early_end(self._leases[rank])
            if self._faults:  # whose host is not here yet would look for us in vain
                if len(self._ready) + len(self._faults) == self.world_size:
                    break
                deadline = min(deadline, deadline_after(FAULT_SPREAD_S))
        if len(self._ready) < self.world_size:
            raise ClusterError(self._sum_up("" if self._faults else f"within {timeout:.1f} s"))
        self._stop_listening()
        self.answers_calls = work_fn == ANSWERS_CALLS
        self.workers = [self._arrived[rank] for rank in range(self.world_size)]
        return list(self.workers)

    def ask_why_lost(self, ask: Callable[[int], str]) -> None:
        """Have somebody asked who may know how a rank's host has ended."""
        for lease in self._leases.values():
            lease.ask = ask

    def _admit(self, sock: socket.socket, request: auth.Message, welcome: Welcome) -> bytes | None:
        """Take in a host, or a rank; return what it is told if it is not wanted."""
        problem = self._why_not(request)
        if problem is not None:
            self._log.say(f"refused a connection: {printable(problem)}")
            return welcome({"error": problem})
        place = Place(**{one: request[one] for one in Place.__dataclass_fields__})
        sock.settimeout(WELCOME_S)
        sock.sendall(welcome({}))
        watch_link(sock)
        name = clean_name(f"rank {place.rank} at {place.node}")
        if request["type"] == HOST:
            self._leases[place.rank] = Lease(Channel(sock, name=f"the host of {name}"), place)
            return None
        worker = HostedWorker(sock, self._leases[place.rank], request["meet"])
        self._arrived[place.rank] = worker
        self._loop.watch(
            worker.descriptor(), select.POLLIN, lambda _: self._hear(place.rank, worker)
        )
        self._hear(place.rank, worker)
        return None

    def _why_not(self, request: auth.Message) -> str | None:
        """Return what is wrong with a request to be taken in."""
        kinds = {"rank": int, "world_size": int, "node": str, "pid": int, "local_rank": int}
        kinds |= {"local_world_size": int, "node_rank": int}
        if request.get("type") not in (HOST, RANK):
            return f"there is no request of the type {request.get('type')!r}"
        if any(type(request.get(name)) is not kind for name, kind in kinds.items()):
            return "it does not say which rank it is: another MiniRay, perhaps"
        rank = request["rank"]
        if request["world_size"] != self.world_size or not 0 <= rank < self.world_size:
            world = f"rank {rank} of {request['world_size']}"
            return f"{world} is none of the {self.world_size} ranks of this coordinator"
        if (other := request.get("work_fn", self._work_fn)) != self._work_fn:
            return f"this coordinator's ranks run {self._work_fn}, not {other}: it is another job's"
        if request["type"] == HOST and rank in self._leases:
            return f"rank {rank} has reported already, from {self._leases[rank].place.node}"
        if request["type"] == RANK and (rank not in self._leases or rank in self._arrived):
            return f"rank {rank} has come without its host, or has come already"
        if request["type"] == RANK and type(request.get("meet")) is not str:
            return f"rank {rank} does not say where it can be met"
        return None

    def _hear(self, rank: int, worker: HostedWorker) -> None:
        """Take in a rank's first word, which is that it is ready."""
        if not worker.holds_message():
            return
        self._loop.unwatch(worker.descriptor())
        try:
            ready, pid = worker.recv(0.0)
            assert ready == READY  # who holds the key, and is a host, says that
            worker.take_pid(pid)
            self._ready.add(rank)
        except (MiniRayError, OSError, EOFError) as error:
            self._faults[rank] = error

    def _look_for_early_end(self, lease: Lease) -> None:
        """Note a host that has gone, or whose rank ended before it could connect."""
        lost, code = lease.how_it_ended(), lease.exit_code
        if lost is None and code is None:
            return
        ended = lost if code is None else f"it ended with status {code} before it was there"
        self._faults[lease.place.rank] = WorkerDied(f"{lease.channel.name}: {ended}")

    def _sum_up(self, late: str = "") -> str:
        """Return one text with what is known of each rank that is not ready."""
        lines, traces = [], []
        for rank in range(self.world_size):
            fault = self._faults.get(rank)
            if fault is not None:
                lines.append(f"  {str(fault).partition(chr(10))[0]}")
            elif late and rank not in self._leases:
                lines.append(f"  rank {rank} has not come {late}")
            elif late and rank not in self._ready:
                lines.append(f"  rank {rank} at {self._leases[rank].place.node}: not ready {late}")
            if isinstance(fault, WorkerFailed):
                traces.append(f"\nThe traceback of rank {rank}:\n{fault.remote_traceback.rstrip()}")
        head = f"{len(lines)} of {self.world_size} ranks failed to start; nothing is left running:"
        return "\n".join([head, *lines, *traces[:1]])

    def nccl_configs(self, backend: str | None = None) -> list[NCCLConfig]:
        """Return one config a rank, with a port that rank 0 holds; the ranks are a group from now.

        That is as a Cluster does it.
        """
        if not self.workers:
            raise RuntimeError("no ranks have come yet: call gather_ranks first")
        if backend not in (None, "nccl", "gloo"):
            raise ValueError(f'backend must be "nccl", "gloo" or None, got {backend!r}')
        self.group = Group(self.workers)
        address, port = self.workers[0].rendezvous
        places = [cast(HostedWorker, worker).lease.place for worker in self.workers]
        return [
            nccl.NCCLConfig(
                address, port, one.rank, one.world_size, one.local_rank, one.local_world_size,
                one.node_rank, backend,
            )
            for one in places
        ]  # fmt: skip

    def dismiss(self, verdict: dict[str, Any], first: int | None = None) -> None:
        """End what still runs, and have all hosts leave with a verdict: one of them before others.

        The launcher takes whichever fails first for the cause.
        """
        self.hang_up(STOP_S)
        order = sorted(self._leases, key=lambda rank: (rank != first, rank))
        for rank in order:
            lease = self._leases[rank]
            lease.tell({"verdict": verdict if rank == first else {"status": verdict["status"]}})
            if rank == first:
                lease.channel.read_to_the_end(deadline_after(LEAVE_S), keep=False)

    def hang_up(self, timeout: float) -> None:
        """Have all ranks end within `timeout` seconds, and wait for that."""
        for worker in self._arrived.values():
            Channel.close(worker)
        for lease in self._leases.values():
            lease.tell({"end": timeout * 0.8})
        deadline = deadline_after(timeout)
        for lease in self._leases.values():
            lease.look(deadline)

    def stop(self, timeout: float = STOP_S) -> None:
        """End all ranks within `timeout` seconds; there will be no others.

        Their hosts stay for the verdict. A KeyboardInterrupt meanwhile leaves all to `release`.
        """
        try:
            if self._leases:
                self.hang_up(timeout)
        finally:
            self.workers, self.group = [], None
            self._stop_listening()

    def release(self) -> None:
        """Let go of all hosts: those that have no verdict end their ranks, and say so."""
        for worker in self._arrived.values():
            Channel.close(worker)
        for lease in self._leases.values():
            lease.channel.close()
        self._leases, self._arrived, self.workers, self.group = {}, {}, [], None
        self._stop_listening()

    def pass_on(self, number: int) -> None:
        """Have rank 0 get a signal that came here, unless its host has passed that on already."""
        if 0 in self._leases:
            self._leases[0].tell({"signal": number})

    def await_ranks(self, patience: float) -> None:
        """Wait until rank 0 has ended, and for `patience` seconds until all have; in any thread."""
        leases = [self._leases[rank] for rank in sorted(self._leases)]
        for lease in leases[:1]:
            lease.look(deadline_after(None))
        deadline = deadline_after(patience)
        for lease in leases:
            lease.look(deadline)

    def _stop_listening(self) -> None:
        if self._is_open:
            self._is_open = False
            self._strangers.close()
            self._listener.close()
            self._log.flush(deadline_after(LEAVE_S))
            self._loop.close()
