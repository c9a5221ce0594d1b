"""A server's front door: many clients, a network that cuts anywhere, and a clock that jumps."""

import json
import random
import select
import socket
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

from miniray import auth, strangers, wire
from miniray.decoding import Decoder
from miniray.strangers import REFUSALS_S, STRANGER_S, STRANGERS_MAX, Strangers
from tests.simulation import replaced

KEY = b"k" * 64
FOR_THE_WORKER = b"what the worker is to read"
FLOOD = "203.0.113.7"
# Most worlds have a small door: it is as full, and sooner. Fewer networks than that come to it.
SMALL_MAX = 10


class Connection:
    """A socket as the server sees it; whoever plays the client uses `say`, `hear` and `leave`."""

    family = socket.AF_INET

    def __init__(self, number: int, chance: random.Random) -> None:
        self.number, self._chance = number, chance
        self._largest = chance.choice((64, 1000, 1000))  # piece that its network delivers
        self.coming, self.going = b"", b""
        self.has_left = self.is_closed = False

    def fileno(self) -> int:
        return self.number

    def setblocking(self, flag: bool) -> None:
        assert not flag

    def recv(self, nbytes: int) -> bytes:
        assert not self.is_closed
        if not self.coming and not self.has_left:
            raise BlockingIOError
        if nbytes > self._largest:
            nbytes = self._chance.randint(1, self._largest)
        data, self.coming = self.coming[:nbytes], self.coming[nbytes:]
        return data

    def send(self, data: bytes) -> int:
        assert not self.is_closed
        if self.has_left:
            raise BrokenPipeError("it has left")
        nbytes = self._chance.randint(1, len(data)) if self._chance.random() < 0.1 else len(data)
        if len(data) < 400:  # a challenge, which a new connection takes at once
            nbytes = len(data)
        self.going += data[:nbytes]
        return nbytes

    def close(self) -> None:
        assert not self.is_closed, "closed twice"
        self.is_closed = True


class InOrder(dict[Any, None]):
    """A set whose order is that of its members' coming, and the same each time."""

    def add(self, member: Any) -> None:
        self[member] = None

    def discard(self, member: Any) -> None:
        self.pop(member, None)


class World:
    """A loop, a log and a clock for one `Strangers`, and what it has admitted."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.now = self.chance.uniform(0.0, 1e6)
        self.strangers_max = self.chance.choice((SMALL_MAX, SMALL_MAX, SMALL_MAX, STRANGERS_MAX))
        self.duties: list[Callable[[], float | None]] = []
        self.handlers: dict[int, tuple[int, Callable[[int], None]]] = {}
        self.connections: dict[int, Connection] = {}
        self.admitted: dict[int, auth.Message] = {}
        self.said: list[tuple[float, str]] = []
        self.server = Strangers(self, self, KEY, self._admit)  # type: ignore[arg-type]
        self.server._strangers = InOrder()  # type: ignore[assignment]

    # What Strangers asks of a loop, and of a log.

    def watch(self, descriptor: int, events: int, handler: Callable[[int], None]) -> None:
        self.handlers[descriptor] = events, handler

    def unwatch(self, descriptor: int) -> None:
        self.handlers.pop(descriptor, None)

    def say(self, line: str) -> None:
        self.said.append((self.now, line))

    def _admit(
        self, sock: Any, request: auth.Message, welcome: Callable[[auth.Message], bytes]
    ) -> bytes | None:
        assert sock.number not in self.admitted
        self.admitted[sock.number] = request
        if request["type"] == "status":
            return welcome({}) + b"s" * 2000
        sock.send(welcome({"worker": sock.number}))
        return None

    def connect(self, host: str) -> Connection:
        number = len(self.connections) + 3
        connection = self.connections[number] = Connection(number, self.chance)
        self.server.add(connection, (host, 40000 + number))  # type: ignore[arg-type]
        assert self.strangers() <= self.strangers_max
        return connection

    def strangers(self) -> int:
        return len(self.server._strangers)

    def turn(self) -> None:
        """Do what is due, and call who has something to do, in any order."""
        for duty in self.duties:
            duty()
        ready = [number for number in self.handlers if self._is_ready(number)]
        if self.handlers and self.chance.random() < 0.3:  # once in vain, as a loop may
            ready.append(self.chance.choice(list(self.handlers)))
        self.chance.shuffle(ready)
        for number in ready:
            if number in self.handlers:  # nobody has dismissed it meanwhile
                events, handler = self.handlers[number]
                handler(events)

    def _is_ready(self, number: int) -> bool:
        connection = self.connections[number]
        return self.handlers[number][0] == select.POLLOUT or bool(
            connection.coming or connection.has_left
        )

    def check(self) -> None:
        """Hold what the door promises at any moment."""
        assert self.strangers() <= self.strangers_max
        recent = [line for when, line in self.said if when > self.now - REFUSALS_S]
        assert len(recent) <= 1


DONE = object()
# Each plays one client: it gets its connection, and is continued at each step of the world.
Client = Iterator[None]


def honest(world: World, line: Connection, *, key: bytes = KEY, extra: bytes = b"") -> Client:
    """Introduce itself in pieces, with a pause wherever the network likes."""
    hello = auth.hello("c" * 64)
    yield from _say(world, line, hello)
    challenge = yield from _hear(line)
    kind = world.chance.choice(("worker", "status"))
    request: auth.Message = {"type": kind, "name": f"client {line.number}"}
    # With another key it does not believe the server; here it pretends to.
    response = {
        "request": request,
        "proof": auth._prove(key, "client", hello, challenge, request),
    }
    yield from _say(world, line, response, extra if kind == "worker" else b"")
    while line.number not in world.admitted and not line.is_closed:
        yield
    if kind == "status" and key == KEY:
        while len(line.going) < 2000:  # it reads all of its farewell
            assert not line.is_closed
            yield


def wrong_key(world: World, line: Connection) -> Client:
    """Hold another key."""
    return honest(world, line, key=b"w" * 64)


def garbage(world: World, line: Connection) -> Client:
    """Say what is no frame, or a frame with a byte changed."""
    data = bytearray(_frame(auth.hello("c" * 64)) + world.chance.randbytes(20))
    for _ in range(world.chance.randint(1, 4)):
        data[world.chance.randrange(len(data))] = world.chance.randrange(256)
    for start in range(0, len(data), 16):
        line.coming += data[start : start + 16]
        yield


def odd_messages(world: World, line: Connection) -> Client:
    """Say frames of the right form with wrong things in them."""
    for _ in range(3):
        body: Any = world.chance.choice(
            ([], "text", {}, {"version": 1}, {"version": 2, "nonce": "c" * 64}, {"nonce": 1}, 3)
        )
        line.coming += wire.encode(wire.AUTH, body).head
        yield


def silent(world: World, line: Connection) -> Client:
    """Say nothing at all."""
    while not line.is_closed:
        yield


def trickling(world: World, line: Connection) -> Client:
    """Say a byte now and then, for longer than anybody would wait."""
    for byte in _frame(auth.hello("c" * 64)):
        if line.is_closed:
            return
        line.coming += bytes([byte])
        for _ in range(4):
            yield


def leaving(world: World, line: Connection) -> Client:
    """Hang up somewhere in the middle."""
    data = _frame(auth.hello("c" * 64))
    line.coming += data[: world.chance.randrange(len(data) + 1)]
    yield
    line.has_left = True


def replaying(world: World, line: Connection) -> Client:
    """Say what an honest client said on another connection, to another challenge."""
    hello = auth.hello("c" * 64)
    request = {"type": "worker", "name": "again"}
    earlier = auth.challenge(KEY, hello, "5" * 64)
    yield from _say(world, line, hello)
    yield from _hear(line)
    yield from _say(world, line, auth.response(KEY, hello, earlier, request))


def reflecting(world: World, line: Connection) -> Client:
    """Say the server's own proof back to it."""
    yield from _say(world, line, auth.hello("c" * 64))
    challenge = yield from _hear(line)
    request = {"type": "worker", "name": "mirror"}
    yield from _say(world, line, {"request": request, "proof": challenge["proof"]})


def added_to(world: World, line: Connection) -> Client:
    """Hold the key, and have somebody in between who adds to what is said, in any depth."""
    hello, request = auth.hello("c" * 64), {"type": world.chance.choice(("worker", "status"))}
    yield from _say(world, line, hello)
    challenge = yield from _hear(line)
    response = auth.response(KEY, hello, challenge, request)
    depth = world.chance.randrange(1000)
    text = json.dumps(response)[:-1] + f',"more":{"[" * depth}{"]" * depth}}}'
    data = f'{{"body":{text}}}'.encode()
    line.coming += wire.PRELUDE.pack(wire.MAGIC, wire.AUTH, len(data)) + data


def _frame(message: auth.Message) -> bytes:
    return wire.encode(wire.AUTH, message).head


def _say(world: World, line: Connection, message: auth.Message, extra: bytes = b"") -> Client:
    data = _frame(message) + extra
    cuts = sorted(world.chance.choices(range(len(data) + 1), k=world.chance.randint(0, 3)))
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        line.coming += data[start:end]
        if world.chance.random() < 0.5:
            yield


def _hear(line: Connection) -> Generator[None, None, Any]:
    decoder = Decoder(auth_only=True)
    while True:
        data, line.going = line.going, b""
        if data:
            decoder.feed(data)
            if (frame := decoder.next_frame()) is not None:
                return frame.body
        yield


STRANGE = (
    *(wrong_key, garbage, odd_messages, silent, trickling, leaving, replaying, reflecting),
    added_to,
)


def play(seed: int) -> dict[str, int]:
    """Play one world to its end; return how many clients of each kind it had.

    Raises AssertionError if the door let in who has no key, kept out who has, held on to anybody,
    or raised anything.
    """
    world = World(seed)
    with _made_up(world):
        return _play(world)


def _play(world: World) -> dict[str, int]:
    chance = world.chance
    clients: list[tuple[Any, Connection, Client]] = []

    def connect(kind: Any, host: str, **options: Any) -> None:
        line = world.connect(host)
        clients.append((kind, line, kind(world, line, **options)))

    jumps, has_jumped = chance.random() < 0.2, False
    for number in range(chance.randint(1, 3)):
        connect(honest, f"198.51.100.{number}", extra=FOR_THE_WORKER)
    for number in range(chance.choice((0, 2, 8))):
        connect(chance.choice(STRANGE), f"192.0.2.{number % 4}")
    for _ in range(chance.choice((0, 0, 0, world.strangers_max + 20))):
        connect(chance.choice((silent, garbage, leaving)), FLOOD)
    alive = [client for _, _, client in clients]
    deadline = world.now + STRANGER_S
    busy = {client for kind, _, client in clients if kind is honest}
    while alive and world.now < deadline - 1.0:
        # Honest clients need some thirty steps, and have four seconds; the rest may lag behind.
        world.now += chance.uniform(0.0, 0.04 if busy else 0.4)
        chance.shuffle(alive)
        done = {client for client in alive if next(client, DONE) is DONE}
        alive, busy = [client for client in alive if client not in done], busy - done
        world.turn()
        world.check()
        if jumps and chance.random() < 0.02:
            world.now += chance.choice((1.0, 4.9, STRANGER_S, 1e5))  # stopped by Ctrl-Z, say
            has_jumped = True
    is_late = has_jumped and world.now >= deadline - 1.0
    for kind, line, _ in clients:
        if kind is not honest:
            assert line.number not in world.admitted, f"{kind.__name__} was let in"
        elif not is_late:
            assert line.number in world.admitted, "an honest client was kept out"
            if world.admitted[line.number]["type"] == "worker":
                assert line.coming == FOR_THE_WORKER, "the server read what was the worker's"
    slow = [client for kind, _, client in clients if kind is trickling]
    for seconds in (STRANGER_S / 2, STRANGER_S / 2, chance.choice((0.1, 1e5))):
        world.now += seconds
        for client in slow * 5:  # who goes on and on gets no more time by that
            next(client, None)
        world.turn()
    for _ in range(60):  # a farewell goes in pieces
        world.turn()
        if not world.handlers:
            break
    for _, line, _ in clients:
        is_workers = world.admitted.get(line.number, {}).get("type") == "worker"
        assert line.is_closed != is_workers, "a connection without an owner"
    assert not world.handlers, "a descriptor is watched that is nobody's"
    newcomer = world.connect("198.51.100.99")
    late = honest(world, newcomer)
    while newcomer.number not in world.admitted:  # whatever was before, the door still opens
        next(late, None)
        world.turn()
        assert not newcomer.is_closed or newcomer.number in world.admitted
    return {kind.__name__: sum(one is kind for one, _, _ in clients) for kind in (honest, *STRANGE)}


def _made_up(world: World) -> AbstractContextManager[None]:
    """Have the door take the world's clock, chance, size and nonces for its own."""
    return replaced(
        (strangers, "time", SimpleNamespace(monotonic=lambda: world.now)),
        (strangers, "random", world.chance),
        (strangers, "STRANGERS_MAX", world.strangers_max),
        (auth, "make_nonce", lambda: f"{world.chance.getrandbits(256):064x}"),
    )
