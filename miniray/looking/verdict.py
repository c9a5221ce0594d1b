"""Who of the ranks is behind, in one sentence."""

import dataclasses
import re
from collections.abc import Iterable, Sequence

from miniray.looking.activity import (
    ASKS,
    BUSY,
    COLLECTIVE,
    ENDED,
    LOST,
    PEER,
    RECV,
    SEND,
    SILENT,
    STOPPED,
    STUCK,
)
from miniray.looking.seen import Seen


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whom the others wait for, as far as one can see, and why."""

    text: str
    behind: tuple[str, ...] = ()


def judge(ranks: Sequence[Seen], coordinator: Seen | None) -> Verdict:
    """Say who is behind: first whoever cannot go on, then whoever is not where the others wait."""
    for kinds in ((LOST,), (ENDED,), (STOPPED,), (STUCK,)):
        if out := [one for one in ranks if one.does.kind in kinds and not _has_left(one)]:
            out.sort(key=lambda one: -(one.row.get("ended_s_ago") or 0.0))
            return _blame(out, [one for one in ranks if one not in out and one.does.waits])
    if coordinator is not None and coordinator.does.kind == STOPPED:
        return _blame([coordinator], [one for one in ranks if one.does.waits])
    alive = [one for one in ranks if one.does.kind != ENDED]
    silent = [one for one in alive if one.does.kind == SILENT]
    together = [one for one in alive if one.does.kind in (COLLECTIVE, PEER)]
    if together:
        peers = [one for one in together if one.does.kind == PEER]
        apart = [one for one in ranks if one not in together and one not in silent]
        nobody_sends = all("recv" in one.does.call for one in peers) and not silent
        if peers and nobody_sends and all(one.does.kind == RECV for one in apart):
            return _judge_peers(peers)
        out = [*apart, *silent]
        return _blame(out, together) if out else _judge_collectives(together)
    if not alive:
        return Verdict("no rank runs")
    waiting = [one for one in alive if one.does.kind == RECV]
    others = [one for one in alive if one not in waiting and one not in silent]
    if others and waiting:
        return _blame([*others, *silent], waiting)
    if not others:
        waits = coordinator is None or coordinator.does.kind in (RECV, SILENT)
        if silent and waiting and waits:  # for whomever of them one does not see
            return _blame(silent, waiting)
        return _judge_coordinator(coordinator, waiting)
    return _judge_runners(others)


def _has_left(one: Seen) -> bool:
    """Return whether a rank has ended well, which is the others' fault if they wait for it."""
    return one.does.kind == ENDED and one.row.get("exit_code") == 0


def _blame(out: Sequence[Seen], waiting: Sequence[Seen]) -> Verdict:
    first = [one for one in out if _does(one) == _does(out[0])]
    text = f"{names(first)} {'is' if len(first) == 1 else 'are'} behind: {_each(first)}"
    rest = [one for one in out if one not in first]
    if rest:
        text += f"; so {'is' if len(rest) == 1 else 'are'} {names(rest)}"
    if waiting:
        alike = [one for one in waiting if _does(one) == _does(waiting[0])]
        text += f", while {names(alike)} {tell(alike)}"
    return Verdict(text, tuple(one.name for one in out))


def _judge_collectives(together: Sequence[Seen]) -> Verdict:
    """Judge ranks that all are in a call of torch.distributed's."""
    groups: dict[object, list[Seen]] = {}
    for one in together:
        groups.setdefault((one.does.call, _place(one)), []).append(one)
    few, *rest = sorted(groups.values(), key=len)
    if not rest:
        return Verdict(f"{names(few)} {tell(few)}: none is behind, as far as stacks tell")
    most = rest[-1]
    return Verdict(
        f"{names(few)} {'is' if len(few) == 1 else 'are'} in another call than the others: "
        f"{_each(few)}, while {names(most)} {tell(most)}",
        tuple(one.name for one in few),
    )


def _judge_runners(ranks: Sequence[Seen]) -> Verdict:
    """Judge ranks none of which is seen to wait for another, as on GPUs, where one waits later."""
    groups: dict[object, list[Seen]] = {}
    for one in ranks:
        groups.setdefault((one.does.kind, _place(one)), []).append(one)
    most = max(groups.values(), key=len)
    if len(groups) == 1:
        return Verdict(f"{names(most)} {tell(most)}: none waits for another")
    few = [one for one in ranks if one not in most]
    if len(most) <= len(few) or len({_place(one) for one in few}) > 1:
        return Verdict(f"{names(ranks)} run, each on its own: none waits for another")
    return Verdict(
        f"{names(few)} {'is' if len(few) == 1 else 'are'} elsewhere than the others: "
        f"{_each(few)}, while {names(most)} {tell(most)}",
        tuple(one.name for one in few),
    )


def _judge_peers(peers: Sequence[Seen]) -> Verdict:
    """Judge ranks that wait for messages of other ranks, none of whom can send one."""
    places: dict[str, list[Seen]] = {}
    for one in peers:
        there = f" at {place(one)}" if one.does.place else " outside of the user's code"
        places.setdefault(there, []).append(one)
    where = ", ".join(f"{names(some)}{there}" for there, some in places.items())
    waits = "wait in recv for each other" if len(peers) > 1 else "waits in recv"
    return Verdict(
        f"{names(peers)} {waits}, and nobody sends: {where}", tuple(one.name for one in peers)
    )


def _judge_coordinator(coordinator: Seen | None, waiting: Sequence[Seen]) -> Verdict:
    """Judge ranks that all wait for the coordinator."""
    if not waiting:
        return Verdict("no rank says where it is")
    alike = [one for one in waiting if _does(one) == _does(waiting[0])]
    if coordinator is None or coordinator.does.kind == SILENT:
        return Verdict(f"{names(alike)} {tell(alike)}; where the coordinator is, it does not say")
    if coordinator.does.kind == ASKS:
        return Verdict(f"{names(alike)} {tell(alike)}, and it is the coordinator that asks")
    if coordinator.does.kind == RECV:
        return Verdict(
            f"the coordinator and {names(waiting)} wait for each other: it {tell([coordinator])}, "
            f"and {names(alike)} {tell(alike)}",
            ("coordinator", *(one.name for one in waiting)),
        )
    return Verdict(
        f"the coordinator is behind: it {tell([coordinator])}, while {names(alike)} {tell(alike)}",
        ("coordinator",),
    )


def _each(ranks: Sequence[Seen]) -> str:
    """Say what some do that all do the same, in a clause of its own."""
    return f"{'it' if len(ranks) == 1 else 'each'} {tell(ranks[:1])}"


def _place(one: Seen) -> str:
    return str(one.does.place or "")


def _does(one: Seen) -> object:
    """Return all that `tell` tells of somebody, so as to find those who do the same."""
    ended = one.row.get("ended") if one.does.kind == ENDED else ""
    return (one.does.kind, one.does.call, _place(one), one.problem, ended, one.why_silent)


def place(one: Seen) -> str:
    """Return a line of the user's, with its text if that is known."""
    return f"{one.does.place}" + (f": `{one.source}`" if one.source else "")


def tell(ranks: Sequence[Seen], *, with_place: bool = True) -> str:
    """Say what some do that all do the same, in words that continue their names."""
    one, many = ranks[0], len(ranks) > 1
    does = one.does
    at = f" at {place(one)}" if does.place and with_place else ""
    wait = "wait" if many else "waits"
    if does.kind == LOST:
        return f"cannot be asked: {one.problem}"
    if does.kind == ENDED:
        return "returned" if one.row.get("exit_code") == 0 else str(one.row.get("ended"))
    if does.kind == STOPPED:
        how = "traced by a debugger" if one.facts.get("state") == "t" else "stopped"
        return f"{'are' if many else 'is'} {how}{at}"
    if does.kind == STUCK:
        return f"{wait} in the kernel, which no signal ends (for a disk, or a file system's server)"
    if does.kind == SILENT:
        why = f" ({one.why_silent})" if one.why_silent else ""
        return f"{'do' if many else 'does'} not say where {'they are' if many else 'it is'}{why}"
    if does.kind in (COLLECTIVE, PEER, SEND):
        return f"{wait} in {does.call or 'send'}{at}"
    if does.kind == RECV:
        if one.name == "coordinator":
            return f"{wait} in {does.call}{at}" if does.place else f"{wait} for the ranks"
        return f"{wait} for a message{at}" if does.place else f"{wait} for a call"
    if does.kind == ASKS:
        return f"asks{at}"
    if does.kind == BUSY:
        use = f" ({one.cpu_percent:.0f}% CPU)" if one.cpu_percent is not None else ""
        return f"{'run' if many else 'runs'}{at}{'' if many or with_place else use}"
    where = at or ("" if does.place else " outside of the user's code")
    return f"{wait}{where}, and {'use' if many else 'uses'} no CPU"


def names(ranks: Iterable[Seen]) -> str:
    """Return names in words: "rank 3", "ranks 0-2, 5", or whatever they are called."""
    numbers, others = [], []
    for one in ranks:
        if one.rank is not None:
            numbers.append(one.rank)
        else:
            others.append("the coordinator" if one.name == "coordinator" else one.name)
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    spans = [f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs]
    words = [f"rank{'s' if len(numbers) > 1 else ''} {', '.join(spans)}"] if numbers else []
    return (
        re.sub(r", (?=[^,]*$)", " and ", ", ".join([*others, *words])) if others else "".join(words)
    )
