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
    if one.victim == "coordinator":
        if one.coordinator_is_stopped:
            return Promise({"done"}, 10.0, goes_on=True)
        if one.act == "SIGINT":
            return Promise({"KeyboardInterrupt"}, 5.0)
        return Promise({"killed"}, 1.0)
    if one.moment == "stop":
        return Promise({"done"}, 10.0, goes_on=True, clean_within_s=_clean_within_s(one))
    if one.moment in STARTING:
        return _promise_a_start(one)
    if one.is_lost:
        return _promise_a_loss(one)
    if one.victim == "worker":
        if one.act == "SIGSTOP":
            return Promise({"TimeoutError"}, SHORT_PATIENCE_S, patience_s=SHORT_PATIENCE_S)
        endings = {"WorkerFailed" if one.act == "SIGINT" else "WorkerDied"}
        if one.moment == "traffic":  # after half a message a worker cannot say why it fails
            endings |= {"WorkerDied"}
        return Promise(endings, 5.0 if one.moment == "group" else 1.0)
    if one.act == "SIGSTOP":  # the server and the keeper are not in the way
        return Promise({"done"}, 10.0, goes_on=True)
    return Promise({"WorkerDied"} if one.act == "SIGKILL" else ERRORS, 5.0)


def _promise_a_start(one: Round) -> Promise:
    endings = {"ClusterError"}
    if one.moment == "connect":  # which is short: the start may be over
        endings |= ERRORS
    if one.moment == "launch" and one.victim in ("sshd", "link"):
        endings |= {"done"}  # an sshd that hangs up at once is tried again
    if one.act not in ("SIGSTOP", "silence"):
        return Promise(endings, 10.0, goes_on="done" in endings)
    # Who is stopped may have done by then all that there was to do.
    loss = _promise_a_loss(one)
    return Promise(
        endings | {"done"} | (loss.endings if one.moment == "connect" and one.is_lost else set()),
        max(10.0 + SHORT_START_TIMEOUT_S, loss.within_s if one.is_lost else 0.0),
        goes_on=one.moment != "import" and not one.is_lost,
        start_timeout_s=SHORT_START_TIMEOUT_S,
        patience_s=loss.patience_s,
        clean_within_s=_clean_within_s(one),
    )


def _promise_a_loss(one: Round) -> Promise:
    clean_within_s = _clean_within_s(one)
    if one.transport != "tunnel":
        # The session alone is lost, not the machine: the node has a lease, which lasts longer.
        return Promise(ERRORS, 30.0, clean_within_s=clean_within_s)
    if one.victim == "ssh":  # of this very machine: nobody can know that it is not just silent
        return Promise(
            {"TimeoutError"} | ERRORS, 30.0, patience_s=25.0, clean_within_s=clean_within_s
        )
    return Promise(ERRORS, 20.0, clean_within_s=clean_within_s)


def _clean_within_s(one: Round) -> float:
    return 30.0 if one.is_lost else 20.0
