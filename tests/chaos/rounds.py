"""What a round does, drawn from its seed."""

import random
from dataclasses import dataclass

STARTING = ("import", "launch", "connect")
RUNNING = ("idle", "traffic", "group")
MOMENTS = (*STARTING, *RUNNING, "stop")

SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGSEGV", "SIGSTOP")
# What each may suffer. "pause" is SIGSTOP for a while, and SIGCONT.
ACTS = {
    "worker": (*SIGNALS, "pause", "memory", "oom", "heir", "flood"),
    "server": (*SIGNALS, "pause", "memory", "strangers"),
    "keeper": (*SIGNALS, "pause", "memory"),
    "ssh": (*SIGNALS, "pause"),
    "sshd": (*SIGNALS, "pause"),
    # For good it may be stopped, too: then it is somebody at a breakpoint, and nothing happens.
    "coordinator": (*SIGNALS[:-1], "pause", "memory", "line"),
    "session": ("reset", "silence"),
    "link": ("down", "blink", "lossy", "reset"),
    "disk": ("full",),
}
VICTIMS = tuple(ACTS)
# Seconds that an act lasts; those that are not here are for good, or over in a moment.
LASTS_S = {
    "pause": 3.0,
    "blink": 5.0,
    "lossy": 5.0,
    "strangers": 3.0,
    "full": 2.0,
    "flood": 1.0,
    "line": 1.0,  # so long the work goes on, until the line comes
}
LONG_PAUSE_S = 30.0  # more than a node waits for a sign of life
NOTICED_PAUSE = ("ssh", "sshd")  # by who asks whether they are there: so no long ones for them
LOST = {
    *(("link", "down"), ("link", "reset"), ("session", "silence")),
    *(("sshd", "SIGSTOP"), ("ssh", "SIGSTOP")),
}
TOLD = ("memory", "oom", "heir", "flood")  # a worker does these to itself, on request
FLOOD_LINES = 80_000
LINES_MAX = 3000  # about what a start and a stop execute of the package
RANKS_IN_A_GROUP = 4  # a node


@dataclass(frozen=True)
class Round:
    """Do `act` to `victim` of node `node` at `moment`, for `lasts_s` if that is not for good.

    Who does it to itself is interrupted at the `line`-th line of the package from then on.
    """

    seed: int
    number: int
    transport: str
    moment: str
    victim: str
    act: str
    node: int
    workers_per_node: int
    lasts_s: float
    line: int

    def __str__(self) -> str:
        how = f" for {self.lasts_s:.0f}s" if self.lasts_s else ""
        how = f" {self.line}" if self.act == "line" else how
        whose = "" if self.victim == "coordinator" else f" of node{self.node + 1}"
        return (
            f"round {self.number} of seed {self.seed}: {self.act}{how} to the {self.victim}{whose}"
            f", {self.transport}, {self.workers_per_node} workers a node, at: {self.moment}"
        )

    @property
    def is_lost(self) -> bool:
        """Whether the node hears no more of its coordinator, and nobody says so."""
        return (self.victim, self.act) in LOST

    @property
    def needs_namespaces(self) -> bool:
        """Whether the nodes need a network of their own; else they share this machine's."""
        return self.victim == "link"


def draw(seed: int, number: int) -> Round:
    """Draw a round: the same for the same numbers, on every machine."""
    dice = random.Random(f"{seed}/{number}")
    transport = dice.choice(("ssh", "ssh", "tunnel", "tunnel", "local"))
    moment = dice.choice(MOMENTS)
    victim, act = dice.choice(_what_may_happen(transport, moment))
    lasts_s = LASTS_S.get(act, 0.0)
    if act == "pause" and moment in RUNNING and victim not in NOTICED_PAUSE:
        lasts_s = LONG_PAUSE_S if dice.random() < 0.3 else lasts_s
    return Round(
        *(seed, number, transport, moment, victim, act),
        node=dice.randrange(2),
        workers_per_node=RANKS_IN_A_GROUP if moment == "group" else dice.choice((1, 2)),
        lasts_s=lasts_s,
        line=round(LINES_MAX ** dice.random()),  # early ones as often as late ones
    )


def _what_may_happen(transport: str, moment: str) -> list[tuple[str, str]]:
    """Return pairs of victim and act."""
    victims = {"coordinator", "disk"}
    if moment != "launch":  # when nobody knows who they will be
        victims |= {"server", "keeper"}
    if moment not in STARTING:
        victims |= {"worker"}
    if transport != "local":
        victims |= {"ssh", "sshd", "session", "link"}
    pairs = [(victim, act) for victim in VICTIMS if victim in victims for act in ACTS[victim]]
    if moment not in RUNNING or transport == "tunnel":
        pairs = [
            pair for pair in pairs if pair[1] != "strangers"
        ]  # there is no port, yet or at all
    if moment == "stop":  # a worker that is being stopped hears of nothing any more
        pairs = [pair for pair in pairs if pair[0] != "worker" or pair[1] not in TOLD]
    return pairs
