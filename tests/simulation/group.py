"""A group's end: ranks that die, fail and suffer, heard late and in any order; who is named for it.

The channels, the group and the waiting are the package's own. Made up are the sockets, `poll`, the
servers' answers, the sessions, and the clock.
"""

import errno
import math
import random
import select
import signal
import socket
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any, cast

from miniray import (
    RemoteWorker,
    WorkerDied,
    WorkerError,
    WorkerExited,
    WorkerFailed,
    endpoint,
    group,
    remote_worker,
    waiting,
    wire,
)
from miniray.any_worker import EXPLAIN_S
from miniray.frames import FrameSocket
from miniray.group import SETTLE_S, Group
from miniray.remote_worker import SESSION_S
from miniray.waiting import LOOK_S, LOST_PEER_S
from tests.simulation import replaced

NEVER = math.inf
DELAY_S = 0.3  # of what a node says, at most
SLACK_S = 0.3 + SESSION_S  # which a session has, to say what it was that ended
ENOUGH_S = 60.0
CALLS_MAX = 3000
TALK_S = 0.002
CAUSES = ("killed", "failed", "left", "node", "link")
CONSEQUENCES = ("collective", "abort", "hang", "talk")
_POLL_FLAGS = {name: getattr(select, name) for name in dir(select) if name.startswith("POLL")}
HUNG_UP = select.POLLIN | select.POLLHUP | getattr(select, "POLLRDHUP", 0)


class Node:
    """A server and its session: when they go, and how long what it says takes to come here."""

    def __init__(self, world: "World", number: int) -> None:
        self.world, self.number = world, number
        self.delay = world.chance.uniform(0.0, DELAY_S)
        self.gone_at = self.silent_at = self.session_ended_at = NEVER

    def fileno(self) -> int:
        return 1000 + self.number

    def events(self) -> int:
        return select.POLLIN if self.session_ended_at <= self.world.now else 0

    def moments(self) -> list[float]:
        return [self.session_ended_at]

    def how_it_ended(self, timeout: float = 0.0) -> str | None:
        if self.world.now < self.session_ended_at:
            self.world.advance(min(self.world.now + timeout, self.session_ended_at))
        return "the node is lost" if self.session_ended_at <= self.world.now else None


class Line:
    """One rank's connection as frames: what comes over it, and when; also its socket."""

    family, memfd = socket.AF_UNIX, False

    def __init__(self, world: "World", number: int) -> None:
        self.world, self.number = world, number
        self.last_word: wire.Frame | None = None
        self.word_at = self.hung_up_at = NEVER
        self.talks = False
        self.next: wire.Frame | None = None
        self.sock = self

    def fileno(self) -> int:
        return self.number

    def shutdown(self, how: int) -> None:
        pass

    def send_at_once(self, data: bytes) -> None:
        pass

    def events(self) -> int:
        if self.hung_up_at <= self.world.now:
            return HUNG_UP
        return select.POLLIN if self.talks or self.word_at <= self.world.now else 0

    def moments(self) -> list[float]:
        return [self.word_at, self.hung_up_at]

    def receive(self, deadline: float) -> wire.Frame:
        if self.next is not None:
            frame, self.next = self.next, None
            return frame
        if self.word_at <= self.world.now and self.last_word is not None:
            frame, self.last_word = self.last_word, None
            return frame
        if self.hung_up_at <= self.world.now:
            raise ConnectionResetError(errno.ECONNRESET, "it hung up")
        if self.talks:
            self.world.now += TALK_S
            return wire.Frame(wire.MESSAGE, "and so on")
        raise BlockingIOError

    def take_in(self) -> bool:
        return FrameSocket.take_in(cast(FrameSocket, self))

    def may_hold_frame(self) -> bool:
        return self.next is not None

    def is_whole(self) -> bool:
        return True


class Rank(RemoteWorker):
    """A remote worker whose connection and server are made up."""

    def __init__(self, world: "World", number: int, node: Node) -> None:
        self.host, self.port, self._key = f"node{node.number}", 1, b""
        self.session, self.group, self.node = node, None, node
        self.worker_id = self.pid = number
        self.line = Line(world, number)
        self.exited_at, self.exit_code = NEVER, 0
        super(RemoteWorker, self).__init__(self.line, name=f"rank {number}")  # type: ignore[arg-type]

    def ends(self, when: float, code: int, frame: wire.Frame | None = None) -> None:
        """Have it end by itself: a last word, if any, then the process, then the connection."""
        chance, node = self.line.world.chance, self.node
        if when >= node.silent_at:
            return  # nobody hears it
        self.exit_code, self.exited_at = code, when + chance.uniform(0.0, 0.05)
        self.line.last_word = frame
        self.line.word_at = when + node.delay if frame is not None else NEVER
        self.line.hung_up_at = self.exited_at + node.delay


class World:
    """Ranks on nodes, what happens to them, and a clock that everything takes its time from."""

    def __init__(self, seed: int) -> None:
        self.chance = chance = random.Random(seed)
        self.now = self.began = chance.uniform(0.0, 1e6)
        self.jumps, self.has_jumped_in_search = chance.random() < 0.2, False
        self.jumps_at = chance.uniform(0.0, 3.0) + self.now if self.jumps else NEVER
        self.nodes = [Node(self, number) for number in range(chance.randint(1, 3))]

    def connect(self) -> None:
        """Have ranks on the nodes, which are a group."""
        count = max(2, len(self.nodes) * self.chance.randint(1, 3))
        self.ranks = [
            Rank(self, number, self.nodes[number * len(self.nodes) // count])
            for number in range(count)
        ]
        self.by_number: dict[int, Line | Node] = {one.line.number: one.line for one in self.ranks}
        self.by_number |= {node.fileno(): node for node in self.nodes}
        self.group = Group(self.ranks)

    # What the package asks of a clock, of poll, and of servers.

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.advance(self.now + seconds)

    def advance(self, until: float) -> None:
        """Let time pass; once in some worlds much more of it, as when somebody pressed Ctrl-Z."""
        self.now = max(self.now, until)
        if self.now >= self.jumps_at:
            self.jumps_at = NEVER
            self.has_jumped_in_search = self.group._settler is not None
            self.now += self.chance.choice((1.0, 100.0, 1e5))

    def poll(self) -> "Poller":
        return Poller(self)

    def server_status(self, host: str, port: int, **request: Any) -> dict[str, Any]:
        rank = next(one for one in self.ranks if one.worker_id == request["worker"])
        if rank.node.silent_at <= self.now:
            self.advance(self.now + request["timeout"])
            raise TimeoutError("no answer")
        if rank.node.gone_at <= self.now:
            raise ConnectionError("connection refused")
        self.advance(self.now + min(self.chance.uniform(0.0, 0.01), request["timeout"]))
        has_ended = rank.exited_at <= self.now
        record = {"pid": rank.pid, "state": "ended" if has_ended else "running"}
        return {"workers": [record | {"exit_code": rank.exit_code}]}

    def link_is_lost(self, line: Line) -> bool:
        silent_at = next(one for one in self.ranks if one.line is line).node.silent_at
        return silent_at + LOST_PEER_S <= self.now


class Poller:
    """One call of poll: what is there, or comes until its time is over."""

    def __init__(self, world: World) -> None:
        self._world, self._wanted = world, dict[int, int]()

    def register(self, number: int, events: int) -> None:
        self._wanted[number] = events | waiting.ERROR

    def poll(self, milliseconds: float) -> list[tuple[int, int]]:
        world, end = self._world, self._world.now + milliseconds / 1000
        while True:
            sources = [(one, world.by_number[one], wanted) for one, wanted in self._wanted.items()]
            found = [(one, here & wanted) for one, it, wanted in sources if (here := it.events())]
            happened = [(one, events) for one, events in found if events]
            if happened or world.now >= end:
                world.chance.shuffle(happened)
                return happened
            moments = [when for _, it, _ in sources for when in it.moments() if when > world.now]
            world.advance(min([*moments, end]))


def play(seed: int) -> str:
    """Play one world to its end; return what the cause was.

    Raises AssertionError if the group names another than the first culprit, though it had the time
    to hear of it, if two of its ranks say different things, or if a wait takes longer than it may.
    """
    world = World(seed)
    with _made_up(world):
        world.connect()
        return _play(world)


def _play(world: World) -> str:
    chance = world.chance
    cause, first = chance.choice(CAUSES), chance.choice(world.ranks)
    _happen(world, cause, first, world.now + chance.uniform(0.0, 1.0))
    is_patient = chance.random() < 0.7
    ended = _watch(world, is_patient)
    culprit = world.group.culprit
    assert culprit is not None
    for rank in world.ranks:
        assert rank.ended is culprit, f"{rank.name} ended with {rank.ended!r}"
    assert str(ended) == str(culprit)
    # A jump may leave no time to hear the others, nor to ask after a link that is silent.
    if is_patient and not world.has_jumped_in_search and not (cause == "link" and world.jumps):
        lost = first.node if cause in ("node", "link") else None
        named = [one for one in world.ranks if one.node is lost or one is first]
        assert any(one.name in str(culprit).partition("\n")[0] for one in named), (
            f"{cause} of {first.name}, and named is: {culprit}"
        )
        assert isinstance(culprit, WorkerFailed if cause == "failed" else WorkerDied)
        assert ("left early" in str(culprit)) == (cause == "left")
    return cause


def _happen(world: World, cause: str, first: Rank, when: float) -> None:
    """Have one rank or its node end, and then some of the others, because of that."""
    chance, node = world.chance, first.node
    if cause == "killed":
        first.ends(when, -chance.choice((signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM)))
    elif cause == "failed":
        first.ends(when, 1, _error(when, in_collective=False))
    elif cause == "left":
        first.ends(when, 0, wire.Frame(wire.EXIT, {"code": 0}))
    elif cause == "node":
        node.gone_at, node.session_ended_at = when, when + chance.uniform(0.0, DELAY_S)
        for rank in world.ranks:
            if rank.node is node:
                rank.line.hung_up_at = when + chance.uniform(0.0, DELAY_S)
    else:
        node.silent_at = when
        node.session_ended_at = when + LOST_PEER_S + chance.uniform(0.0, 2.0)
    others = [one for one in world.ranks if one is not first]
    if cause in ("node", "link"):
        others = [one for one in others if one.node is not node]
    chance.shuffle(others)
    for index, rank in enumerate(others):
        later = when + chance.expovariate(10.0)
        how = chance.choice(CONSEQUENCES) if index else "collective"
        if how == "abort" and cause != "left":  # else nobody can tell whose fault that was
            rank.ends(later, -signal.SIGABRT)
        elif how == "collective":
            rank.ends(later, 1, _error(later, in_collective=True))
        elif how == "talk":
            rank.line.talks = True


def _error(when: float, *, in_collective: bool) -> wire.Frame:
    body = {"type": "RuntimeError", "message": "as it was to be", "traceback": "", "code": 1}
    return wire.Frame(wire.ERROR, body | {"time": when, "in_collective": in_collective})


def _watch(world: World, is_patient: bool) -> Exception:
    """Use the ranks as somebody does, until it raises; each wait takes as long as it may."""
    chance = world.chance
    for _ in range(CALLS_MAX):
        rank = chance.choice(world.ranks)
        timeout = ENOUGH_S if is_patient else chance.choice((0.0, 0.01, 0.2, 1.0))
        way = chance.choice(("recv", "wait", "check"))
        began, jumps_at = world.now, world.jumps_at
        try:
            if way == "recv":
                rank.recv(timeout)
            elif way == "wait":
                waiting.wait(world.ranks, timeout)
            else:
                world.group.check(timeout)
                world.sleep(0.5)
        except (TimeoutError, WorkerExited):  # who has left is no fault, so far
            pass
        except WorkerError as error:
            return error
        finally:
            if jumps_at == world.jumps_at:
                is_strict = way != "check" and not is_patient
                most = timeout + (SLACK_S if is_strict else SETTLE_S + EXPLAIN_S + LOOK_S)
                assert world.now - began <= most, f"{way}({timeout}) took {world.now - began}"
        if world.group.culprit is not None:
            return world.group.culprit
        world.sleep(0.01)
    raise AssertionError("nobody has noticed")


def _made_up(world: World) -> AbstractContextManager[None]:
    """Have the package take the world's clock, poll, servers and sockets for its own."""
    return replaced(
        *((module, "time", world) for module in (waiting, group, remote_worker)),
        (waiting, "select", SimpleNamespace(poll=world.poll, **_POLL_FLAGS)),
        (remote_worker, "server_status", world.server_status),
        (endpoint, "link_is_lost", world.link_is_lost),
        (endpoint, "frames_over", lambda line, **options: line),
    )
