"""Memory, disk and clock of a node."""

import shlex
from typing import Any

from miniray.cli.doctor_findings import Check, Findings, World, is_late, over_there

MIB, GIB = 1 << 20, 1 << 30
# MiniRay sends up to 16 MiB of code; with less than the other a run is soon in trouble.
DISK_BYTES_MIN, DISK_BYTES_FEW = 32 * MIB, 1 * GIB
SHM_BYTES_FEW = 256 * MIB
RANK_BYTES_MIN = 256 * MIB  # a process that has imported torch, and done nothing
CLOCK_AHEAD_S_MAX = 1.0
SET_CLOCK = "sudo timedatectl set-ntp true"


def check_memory(findings: Findings, world: World) -> list[Check]:
    if late := is_late(findings, "memory", "memory", world):
        return [late]
    facts, ranks = findings.facts["memory"], findings.config.num_workers
    text = f"{_size(facts['available'])} free of {_size(facts['limit'] or facts['total'])}"
    if facts["limit"]:
        text += " that this session may have"
    if facts["available"] < ranks * RANK_BYTES_MIN:
        return [
            Check(
                "memory",
                "wrong",
                f"{text}, for {ranks} ranks",
                "see who has it: " + over_there(findings, "ps aux --sort=-rss | head"),
            )
        ]
    return [Check("memory", "ok", text)]


def _size(nbytes: float) -> str:
    if nbytes < MIB:
        return f"{nbytes / 1024:.0f} KiB"
    if nbytes < GIB:
        return f"{nbytes / MIB:.0f} MiB"
    return f"{nbytes / GIB:.0f} GiB" if nbytes >= 10 * GIB else f"{nbytes / GIB:.1f} GiB"


MOVES = {"temporary files": "TMPDIR", "your folder's copy": "XDG_CACHE_HOME"}


def check_disk(findings: Findings, world: World) -> list[Check]:
    checks, well = [], []
    places = sorted(name for name in findings.facts if name.startswith("place"))
    if len(places) < findings.num_places:
        checks.append(
            Check(
                "disk",
                "wrong",
                f"no answer within {world.wanted.limit_s:.0f} s",
                "a file system hangs, a network's perhaps: `df` over there shows which",
            )
        )
    for name in places:
        facts = findings.facts[name]
        check = _check_place(findings, facts) if "error" not in facts else None
        if check is not None:
            checks.append(check)
        elif "error" not in facts:
            well.append(f"{_size(facts['free_bytes'])} free in {facts['there']}")
    if well and all(one.state == "note" for one in checks):
        checks.insert(0, Check("disk", "ok", ", ".join(dict.fromkeys(well))))
    return checks


def _check_place(findings: Findings, facts: dict[str, Any]) -> Check | None:
    """Return what is wrong with a folder that a run writes to; None if nothing is."""
    name, path, there = facts["name"], facts["path"], facts["there"]
    where = f"{there} ({name})"
    move = MOVES.get(name, "")
    elsewhere = facts.get("elsewhere") or []
    instead = f"`--env {move}=/another/folder`"
    if elsewhere:
        instead = f"`--env {move}={elsewhere[0][0]}` ({_size(elsewhere[0][1])} free)"
    take = f", or take another place: {instead}" if move else ""
    remount = f"sudo mount -o remount,rw $(findmnt -no TARGET -T {shlex.quote(there)})"
    largest = over_there(findings, f"du -xahd1 {shlex.quote(there)} | sort -h | tail")

    def wrong(says: str, fix: str) -> Check:
        return Check("disk", "wrong", says, fix)

    problem = facts.get("problem")
    if name == "temporary files" and there != path:
        gone = f"{path} (temporary files) is not there"
        if "TMPDIR" in findings.config.env:
            return wrong(gone, f"{over_there(findings, f'mkdir -p {shlex.quote(path)}')}{take}")
        return Check("disk", "note", gone, "Python takes /tmp then; unset TMPDIR over there")
    if name == "the folder to run in" and (there != path or problem == "it is no folder"):
        return wrong(f"there is no folder {path}", "make it there, or leave `--workdir` out")
    if problem == "it is no folder":
        look = over_there(findings, f"ls -ld {shlex.quote(there)}")
        return wrong(f"{where} is no folder", f"see what it is: {look}{take}")
    if facts["is_read_only"]:
        return wrong(
            f"{where} is on a read-only file system",
            "one becomes so after errors, which `sudo dmesg` over there shows, and then the disk "
            f"has to be repaired; if there are none: {over_there(findings, remount)}{take}",
        )
    is_wanting = facts["free_bytes"] < DISK_BYTES_MIN and name != "shared memory"
    # Nothing fills it, or it would not do if it were empty.
    is_small = facts["free_bytes"] > facts["total_bytes"] / 2
    is_small |= is_wanting and 0 < facts["total_bytes"] < DISK_BYTES_MIN
    if is_small and (facts.get("errno") == "ENOSPC" or is_wanting) and facts["free_files"] != 0:
        larger = remount.replace("remount,rw", "remount,size=1G")
        return wrong(
            f"{where} is too small: {_size(facts['total_bytes'])} in all",
            f"if it is a tmpfs: {over_there(findings, larger)}{take}",
        )
    if problem and facts.get("errno") in ("ENOSPC", "EDQUOT"):
        if facts["free_files"] == 0:
            return wrong(
                f"{where} has no inodes left: too many small files (`df -i`)",
                "see where they are: "
                f"{over_there(findings, f'du -x --inodes {shlex.quote(there)} | sort -n | tail')}"
                f"{take}",
            )
        left = f"no space left of {_size(facts['total_bytes'])}"
        how = "you may write no more" if facts["errno"] == "EDQUOT" else left
        hidden = "what that leaves out is in deleted files that somebody has open: `sudo lsof +L1`"
        return wrong(f"{where} is full: {how}", f"see what fills it: {largest} ({hidden}){take}")
    if problem:
        return wrong(
            f"cannot write in {where}: {problem.lower()}",
            f"see whose it is: {over_there(findings, f'ls -ld {shlex.quote(there)}')}{take}",
        )
    if is_wanting:
        return wrong(
            f"{where} is nearly full: {_size(facts['free_bytes'])} left",
            f"see what fills it: {largest}{take}",
        )
    if name == "your folder's copy" and "miniray" in there and facts["is_open_to_others"]:
        return wrong(
            f"others could put code into {there}, so MiniRay will not use it",
            over_there(findings, f"chmod 700 {shlex.quote(there)}"),
        )
    if facts["is_noexec"] and name != "shared memory":
        return Check(
            "disk",
            "note",
            f"{where} is mounted noexec: compiled modules cannot be loaded from it",
            f"no harm to Python files; for others{take.removeprefix(', or')}",
        )
    if name == "shared memory" and facts["free_bytes"] < SHM_BYTES_FEW:
        return Check(
            "disk",
            "note",
            f"{where} has {_size(facts['free_bytes'])} left: NCCL and DataLoaders need more",
            "in a container: `docker run --shm-size=8g`, or `--ipc=host`",
        )
    if facts["free_bytes"] < DISK_BYTES_FEW and name != "shared memory":
        return Check(
            "disk",
            "note",
            f"{where}: only {_size(facts['free_bytes'])} left",
            f"see what fills it: {largest}",
        )
    return None


def check_clock(findings: Findings, world: World) -> list[Check]:
    """Return whether the node's clock is this machine's."""
    ahead, error = findings.clock_ahead_s, findings.clock_error_s
    if ahead is None:
        return [Check("clock", "untested", "not tested: it did not answer in time")]
    if abs(ahead) <= CLOCK_AHEAD_S_MAX + error:
        return [Check("clock", "ok", f"{abs(ahead):.3f} s apart, give or take {error:.3f} s")]
    which = "ahead of" if ahead > 0 else "behind"
    return [
        Check(
            "clock",
            "wrong",
            f"{_duration(abs(ahead))} {which} this machine's",
            "the times in logs and of files will not agree. Compare both with a third (date -u), "
            f"and set the wrong one: {over_there(findings, SET_CLOCK)}",
        )
    ]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
