"""What the design's "What happens when" promises about a round's end."""

from dataclasses import dataclass

from tests.chaos.rounds import RUNNING, STARTING, Round

PATIENCE_S = 60.0  # the timeout of a recv that is to be ended by an error
SHORT_PATIENCE_S = 3.0
START_TIMEOUT_S = 60.0  # torch is imported by several at once
SHORT_START_TIMEOUT_S = 8.0
CLEAN_S = 20.0
LOST_S, LOST_CLEAN_S = 20.0, 30.0

ERRORS = frozenset({"WorkerDied", "WorkerFailed", "WorkerExited"})
DONE = frozenset({"done"})
REFUSED = frozenset({"ClusterError"})
WITHOUT_MEMORY = frozenset({"MemoryError", "RuntimeError", "OSError"})


@dataclass(frozen=True)
class Promise:
    """How a round may end, within how many seconds of the act, and what makes it end well."""

    endings: frozenset[str]
    within_s: float
    goes_on: bool = False
    patience_s: float = PATIENCE_S
    start_timeout_s: float = START_TIMEOUT_S
    clean_within_s: float = CLEAN_S
    says: str = ""  # what stands in the error


def promise(one: Round) -> Promise:
    """Return what is promised of a round."""
    if one.victim == "coordinator":
        return _promise_of_the_coordinator(one)
    if one.moment == "stop":
        return Promise(DONE, 10.0, goes_on=True, clean_within_s=_clean_within_s(one))
    if one.lasts_s:
        return _promise_a_while(one)
    if one.act == "memory" and one.victim != "worker":
        return Promise(DONE | REFUSED | ERRORS, 20.0, goes_on=True)
    if one.moment in STARTING:
        return _promise_a_start(one)
    if one.is_lost:
        return _promise_a_loss(one)
    if one.victim == "worker":
        return _promise_of_a_worker(one)
    if one.act == "SIGSTOP":  # the server and the keeper are not in the way
        return Promise(DONE, 10.0, goes_on=True)
    return Promise(_died_of(one.act), 5.0)


def _promise_of_the_coordinator(one: Round) -> Promise:
    if one.act == "pause":
        return Promise(DONE, 10.0, goes_on=True)
    if one.act == "line":  # the last one may be over before
        return Promise(frozenset({"KeyboardInterrupt", "done"}), 10.0, goes_on=True)
    if one.act == "SIGINT":
        return Promise(frozenset({"KeyboardInterrupt"}), 5.0)
    if one.act == "memory":  # it may have all that it needs, and else it says what it lacks
        return Promise(DONE | REFUSED | ERRORS | WITHOUT_MEMORY, 20.0, goes_on=True)
    return Promise(frozenset({"killed"}), 1.0)


def _promise_of_a_worker(one: Round) -> Promise:
    if one.act == "SIGSTOP":
        return Promise(frozenset({"TimeoutError"}), SHORT_PATIENCE_S, patience_s=SHORT_PATIENCE_S)
    fails = one.act in ("SIGINT", "memory")  # of an exception, which arrives
    endings = {"WorkerFailed" if fails else "WorkerDied"}
    if one.moment == "traffic":  # after half a message a worker cannot say why it fails
        endings |= {"WorkerDied"}
    says = {"oom": "out of memory", "SIGSEGV": "SIGSEGV"}.get(one.act, "")
    within_s = 5.0 if one.moment == "group" or one.act in ("memory", "oom") else 1.0
    return Promise(frozenset(endings), within_s, says=says)


def _promise_a_while(one: Round) -> Promise:
    """Promise that what is over after a while is not the end of a run, though of a start."""
    endings = DONE
    if one.moment in STARTING and one.victim in ("link", "disk"):
        endings |= REFUSED
    if one.moment == "connect" and one.victim == "link":
        endings |= ERRORS
    return Promise(endings, 20.0, goes_on=True)


def _promise_a_start(one: Round) -> Promise:
    endings = REFUSED
    if one.moment == "connect":  # which is short: the start may be over
        endings |= ERRORS
    if one.moment == "launch" and one.victim in ("sshd", "session"):
        endings |= DONE  # an sshd that hangs up at once is tried again
    if not one.is_lost and one.act != "SIGSTOP":
        return Promise(endings, 10.0, goes_on="done" in endings)
    # Who is stopped may have done by then all that there was to do.
    loss = _promise_a_loss(one)
    return Promise(
        endings | DONE | (loss.endings if one.moment == "connect" and one.is_lost else set()),
        max(10.0 + SHORT_START_TIMEOUT_S, loss.within_s if one.is_lost else 0.0),
        goes_on=one.moment != "import" and not one.is_lost,
        start_timeout_s=SHORT_START_TIMEOUT_S,
        patience_s=loss.patience_s,
        clean_within_s=_clean_within_s(one),
    )


def _promise_a_loss(one: Round) -> Promise:
    clean_within_s = _clean_within_s(one)
    if one.victim != "link" and one.transport != "tunnel":
        # The session alone is lost, not the machine: the node has a lease, which lasts longer.
        return Promise(ERRORS, LOST_CLEAN_S, clean_within_s=clean_within_s)
    if one.victim == "ssh":  # of this very machine: nobody can know that it is not just silent
        # But its node ends its ranks when the lease is over, and then the others of a group tell.
        patience_s = 35.0 if one.moment == "group" else 25.0
        endings = ERRORS | {"TimeoutError"}
        return Promise(endings, 35.0, patience_s=patience_s, clean_within_s=clean_within_s)
    return Promise(ERRORS, LOST_S, clean_within_s=clean_within_s)


def _died_of(act: str) -> frozenset[str]:
    return frozenset({"WorkerDied"}) if act in ("SIGKILL", "SIGSEGV") else ERRORS


def _clean_within_s(one: Round) -> float:
    return LOST_CLEAN_S if one.is_lost else CLEAN_S


def names_a_culprit(one: Round, ending: str) -> bool:
    """Say whether the error has to name a rank of the node that something happened to."""
    return one.moment in RUNNING and ending in ERRORS and one.victim != "coordinator"
