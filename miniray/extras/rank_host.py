"""The process that another launcher starts for a rank: it forks the rank, and tells how that ends.

It holds one connection to the coordinator, the lease, over which go few words:

    host -> coordinator   {"exit_code": 3}          the rank's process has ended
    coordinator -> host   {"end": 3.0}              end it, within so many seconds
    coordinator -> host   {"signal": 15}            it was told to end: tell the rank, too
    coordinator -> host   {"verdict": {...}}        how it went for all: leave, with this status

When the lease ends without a verdict, the coordinator is gone, and the rank has to go, too. A
second connection is the rank's, whose first word is that its function has been found. So it is
always the ranks that connect, and one port is all that anybody has to reach.
"""

import contextlib
import dataclasses
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from miniray import auth, process
from miniray.calls import answer_calls
from miniray.channel import Channel
from miniray.connection import open_connection
from miniray.endings import run_work
from miniray.errors import ProtocolError
from miniray.process import Process
from miniray.title import set_title
from miniray.torch_store import StoreHost
from miniray.waiting import READABLE, Late, Source, deadline_after, time_left, wait_until
from miniray.work_fn import load_work_fn

READY = "ready"
HOST, RANK = "host", "rank"
ANSWERS_CALLS = f"{answer_calls.__module__}.{answer_calls.__name__}"
ASK_AGAIN_S = 0.2
ANSWER_S = 5.0
# What a launcher, or whoever watches a queue of jobs, tells a rank by.
PASSED_ON = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT),
)


@dataclasses.dataclass(frozen=True)
class Place:
    """One rank among all, and the name of the machine that it is on."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int
    node: str

    @property
    def is_everybody_here(self) -> bool:
        """Whether all ranks are on this machine."""
        return self.world_size == self.local_world_size

    def introduce(self, kind: str) -> auth.Message:
        """Return the request that a host, or its rank, begins with."""
        return {"type": kind, "pid": os.getpid(), **dataclasses.asdict(self)}


class Lost(Exception):
    """The coordinator is gone, or was never there; in words."""


def reach(
    find: Callable[[], tuple[str, int]], key: bytes, request: auth.Message, deadline: float
) -> tuple[Channel, tuple[str, int]]:
    """Connect to the coordinator, which may start later than we do; return where it was.

    Raises Lost, with the last reason, and AuthenticationError at once.
    """
    while True:
        try:
            where = find()
            sock, _ = open_connection(*where, key, request, min(ANSWER_S, time_left(deadline)))
            return Channel(sock, name="coordinator"), where
        except ConnectionRefusedError as error:  # it is there, and says no
            raise Lost(str(error)) from None
        except (ConnectionError, TimeoutError, Late) as error:
            if time_left(deadline) < ASK_AGAIN_S:
                raise Lost(f"rank 0 is not to be found: {error}") from None
            time.sleep(ASK_AGAIN_S)


class Leash(Source):
    """A descriptor that somebody holds as long as this process is wanted."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def descriptor(self) -> int:
        return self._descriptor


class RankHost:
    """The keeper of one rank, from the first connection to the exit status.

    `find` says where the coordinator is; it is asked again until somebody answers there, for
    `timeout` seconds. `meet_at` are addresses of this machine, of which rank 0 takes one for
    torch's store. A `leash` is a descriptor whose end is the end of this, too. `also` names another
    function that the rank is to find before it is ready. Raises Lost if nobody is to be found.
    """

    def __init__(
        self,
        place: Place,
        work_fn: str,
        key: bytes,
        find: Callable[[], tuple[str, int]],
        *,
        meet_at: list[str],
        timeout: float,
        leash: int | None = None,
        also: str | None = None,
    ) -> None:
        self.place, self.verdict = place, dict[str, Any]()
        self._work_fn, self._also, self._key, self._meet_at = work_fn, also, key, meet_at
        self._was_told_to_end = self._is_let_go = False
        self._passed_on = set[int]()
        request = place.introduce(HOST) | {"work_fn": work_fn}
        self._lease, self._where = reach(find, key, request, deadline_after(timeout))
        try:
            self.rank = self._fork()
        except BaseException:
            self._lease.close()
            raise
        self._sources: dict[Source, int] = {self.rank: READABLE, self._lease: READABLE}
        self._leash = None if leash is None else Leash(leash)
        if self._leash is not None:
            self._sources[self._leash] = READABLE

    def _fork(self) -> Process:
        """Connect a second time, and fork the rank, which talks over that connection."""

        def run() -> int:
            for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT):  # the host's handlers
                signal.signal(number, signal.SIG_DFL)
            store.take_over()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            return run_work(self._work, Channel(line, name="coordinator"))

        with StoreHost([] if self.place.rank else self._meet_at) as store:
            request = self.place.introduce(RANK) | {"meet": " ".join(map(str, store.address))}
            sock, _ = open_connection(*self._where, self._key, request, ANSWER_S)
            assert isinstance(sock, socket.socket)  # for nothing is encrypted
            # Ours, by which we hang up, whoever else holds the connection once the rank has ended.
            self._line = sock
            with socket.socket(fileno=os.dup(sock.fileno())) as line:
                return process.fork(run)

    def _work(self, channel: Channel) -> None:
        place, shown = self.place, self._also or self._work_fn
        set_title(f"rank {place.rank} of {place.world_size}", shown)
        # As on a Cluster's nodes: a script without its guard would start ranks in each rank.
        os.environ["MINIRAY_IMPORTING"] = shown.rpartition(".")[0]
        if self._also is not None:
            load_work_fn(self._also)
        work_fn = load_work_fn(self._work_fn)
        del os.environ["MINIRAY_IMPORTING"]
        channel.send([READY, os.getpid()])
        work_fn(channel)

    def run(self) -> int:
        """Keep the rank until it and the coordinator are done; return the exit status."""
        try:
            while self.rank.poll() is None and self._obey():
                self._wait(deadline_after(self.rank.advance_stop()))
            if self.rank.exit_code is None:  # there is nobody for whom it could go on
                self._was_told_to_end = True
                process.stop([self.rank])
            code = self.rank.exit_code
            with contextlib.suppress(OSError, EOFError, ProtocolError):  # nobody to be told
                if not self._is_let_go:
                    self._lease.send({"exit_code": code}, ANSWER_S)
                self._line.shutdown(socket.SHUT_RDWR)
            self._line.close()
            del self._sources[self.rank]
            while self._obey():
                self._wait(deadline_after(None))
        finally:
            process.stop([self.rank], 0.0)
        return self._status(code)

    def close(self) -> None:
        """Let go of the coordinator, which may wait for that before it tells the others."""
        self._lease.close()

    def _wait(self, deadline: float) -> None:
        """Wait for the rank's end, the coordinator's words, or the end of the leash."""
        if self._leash in wait_until(self._sources, deadline):
            self._is_let_go = True

    def _obey(self) -> bool:
        """Do what the coordinator has said; return whether there may be more to come."""
        while not (self.verdict or self._is_let_go):
            try:
                order = self._lease.recv(0.0)
            except TimeoutError:
                return True
            except (EOFError, OSError, ProtocolError):
                return False
            if "end" in order:
                self._was_told_to_end = True
                self.rank.begin_stop(order["end"])
            if (number := order.get("signal", 0)) and number not in self._passed_on:
                self._signal(number)  # the coordinator alone has had it
            self.verdict = order.get("verdict", {})
        return False

    def _status(self, code: int | None) -> int:
        """Return what to exit with: the verdict's, or if there is none, the rank's own."""
        own = 0 if code is None or self._was_told_to_end else as_status(code)
        if self.verdict:
            return int(self.verdict["status"]) or own
        return own or 1

    def pass_on(self, number: int) -> bool:
        """Send what the launcher says to the rank; return False if that has ended."""
        self._passed_on.add(number)
        return self._signal(number)

    def _signal(self, number: int) -> bool:
        if self.rank.exit_code is not None:
            return False
        os.kill(self.rank.pid, number)  # this thread alone reaps it, so it is still its number
        return True


def as_status(exit_code: int) -> int:
    """Return an exit code as a shell would: 128 and its number for a signal."""
    return exit_code if exit_code >= 0 else 128 - exit_code


def own_address(towards: str, place: Place) -> str:
    """Return the address at which others reach this machine, as far as it can tell.

    That is the one with which it reaches rank 0's machine, unless that is a loopback, and some
    ranks are elsewhere.
    """
    names = (towards, socket.gethostname(), socket.getfqdn())
    found = [address for name in names if (address := _interface_towards(name))]
    others = [address for address in found if not address.startswith("127.") and address != "::1"]
    if place.is_everybody_here or not others:
        return found[0] if found else "127.0.0.1"
    return others[0]


def _interface_towards(host: str) -> str | None:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # sends nothing: it only looks the route up
            return str(probe.getsockname()[0])
    except OSError:
        return None
