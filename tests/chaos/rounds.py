"""What a round does, drawn from its seed, and what the design promises about its end."""

import random
from dataclasses import dataclass

STOPPED_S = (1.0, 30.0)  # the longer is more than a node waits for a sign of life
PATIENCE_S = 60.0  # the timeout of a recv that is to be ended by an error
SHORT_PATIENCE_S = 3.0
START_TIMEOUT_S = 25.0
SHORT_START_TIMEOUT_S = 8.0

STARTING = ("import", "launch", "connect")
RUNNING = ("idle", "traffic", "group")
MOMENTS = (*STARTING, *RUNNING, "stop")
SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGSTOP")
CUTS = ("reset", "silence")
LOST = {("link", "silence"), ("sshd", "SIGSTOP"), ("ssh", "SIGSTOP")}
ERRORS = {"WorkerDied", "WorkerFailed", "WorkerExited"}


@dataclass(frozen=True)
class Round:
    """Do `act` to `victim` of node `node` at `moment`."""

    seed: int
    number: int
    transport: str
    moment: str
    victim: str
    act: str
    node: int
    workers_per_node: int
    stopped_s: float

    def __str__(self) -> str:
        how = f" for {self.stopped_s:.0f}s" if self.coordinator_is_stopped else ""
        whose = "" if self.victim == "coordinator" else f" of node{self.node + 1}"
        return (
            f"round {self.number} of seed {self.seed}: {self.act}{how} to the {self.victim}{whose}"
            f", {self.transport}, {self.workers_per_node} workers a node, at: {self.moment}"
        )

    @property
    def coordinator_is_stopped(self) -> bool:
        return (self.victim, self.act) == ("coordinator", "SIGSTOP")

    @property
    def is_lost(self) -> bool:
        """Whether the node hears no more of its coordinator, and nobody says so."""
        return (self.victim, self.act) in LOST


@dataclass(frozen=True)
class Promise:
    """How a round may end, within how many seconds of the act, and what makes it end well."""

    endings: set[str]
    within_s: float
    goes_on: bool = False
    patience_s: float = PATIENCE_S
    start_timeout_s: float = START_TIMEOUT_S
    clean_within_s: float = 20.0


def draw(seed: int, number: int) -> Round:
    """Draw a round: the same for the same numbers, on every machine."""
    dice = random.Random(f"{seed}/{number}")
    transport = dice.choice(("ssh", "ssh", "tunnel", "tunnel", "local"))
    moment = dice.choice(MOMENTS)
    victim = dice.choice(_victims(transport, moment))
    act = dice.choice(CUTS if victim == "link" else SIGNALS)
    long_stop = moment in RUNNING and dice.random() < 0.3
    return Round(
        *(seed, number, transport, moment, victim, act),
        node=dice.randrange(2),
        workers_per_node=1 if moment == "group" else dice.choice((1, 2)),
        stopped_s=STOPPED_S[long_stop],
    )


def _victims(transport: str, moment: str) -> list[str]:
    victims = ["coordinator"]
    if moment != "launch":  # when nobody knows who they will be
        victims += ["server", "keeper"]
    if moment not in STARTING:
        victims += ["worker"]
    if transport != "local":
        victims += ["ssh", "sshd", "link"]
    return victims


def promise(one: Round) -> Promise:
    """Return what the design's "What happens when" says of a round."""
    clean_within_s = 30.0 if one.is_lost else 20.0
    if one.victim == "coordinator":
        if one.coordinator_is_stopped:
            return Promise({"done"}, 10.0, goes_on=True)
        if one.act == "SIGINT":
            return Promise({"KeyboardInterrupt"}, 5.0)
        return Promise({"killed"}, 1.0)
    if one.moment == "stop":
        return Promise({"done"}, 10.0, goes_on=True, clean_within_s=clean_within_s)
    if one.moment in STARTING:
        endings = {"ClusterError"}
        if one.moment == "connect":  # which is short: the start may be over
            endings |= ERRORS
        if one.act not in ("SIGSTOP", "silence"):
            return Promise(endings, 10.0)
        # A node that is stopped may have done by then all that it had to do.
        return Promise(
            endings | {"done"},
            (20.0 if one.is_lost else 10.0) + SHORT_START_TIMEOUT_S,
            goes_on=one.moment != "import" and not one.is_lost,
            start_timeout_s=SHORT_START_TIMEOUT_S,
            patience_s=20.0,
            clean_within_s=clean_within_s,
        )
    if one.victim == "worker":
        if one.act == "SIGSTOP":
            return Promise({"TimeoutError"}, SHORT_PATIENCE_S, patience_s=SHORT_PATIENCE_S)
        error = "WorkerFailed" if one.act == "SIGINT" else "WorkerDied"
        return Promise({error}, 5.0 if one.moment == "group" else 1.0)
    if one.act == "SIGSTOP" and one.victim in ("server", "keeper"):
        return Promise({"done"}, 10.0, goes_on=True)
    if one.is_lost:
        return Promise(ERRORS, 30.0 if one.victim == "ssh" else 20.0, clean_within_s=clean_within_s)
    return Promise({"WorkerDied"} if one.act == "SIGKILL" else ERRORS, 5.0)
