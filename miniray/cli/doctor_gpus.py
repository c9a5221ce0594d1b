"""Whether GPUs are there, as many as ranks, and who else uses them."""

import collections
from typing import Any

from miniray.cli.doctor_findings import Check, Findings, World, is_late, over_there, with_ranks
from miniray.cli.doctor_probe import TOO_LATE

GPU_USED_MAX = 0.1


def check_gpus(findings: Findings, world: World) -> list[Check]:
    """Return how the GPUs are that ranks would get."""
    if world.wanted.fake_gpus:
        return [Check("gpus", "ok", "fake ones, as asked for")]
    if late := is_late(findings, "gpus", "gpus", world):
        return [late]
    facts, ranks = findings.facts["gpus"], findings.config.num_workers
    if "error" in facts:
        said = " ".join(facts["error"].split())[:200] or f"status {facts.get('status')}"
        if facts.get("status") == TOO_LATE:
            said = "it hangs"
        fix = "the driver does not work over there: `sudo dmesg | grep -i nvrm`, and reboot it"
        if "mismatch" in said:
            fix = "the driver was updated under a running kernel module: reboot that node"
        return [
            Check(
                "gpus", "wrong", f"nvidia-smi fails: {said}", f"{fix}; or do without: `--fake-gpus`"
            )
        ]
    gpus = facts["gpus"]
    if not gpus:
        having = [one.name for one in world.others(findings) if one.fact("gpus").get("gpus")]
        if having:
            return [
                Check(
                    "gpus",
                    "wrong",
                    f"none, and {having[0]} has some: NCCL and gloo do not meet",
                    f"leave {findings.name} out, or take the CPU everywhere: `--fake-gpus`",
                )
            ]
        if facts.get("device"):
            return [
                Check(
                    "gpus",
                    "wrong",
                    "there is /dev/nvidia0, and no nvidia-smi on PATH",
                    "install the driver's tools, or put their folder on PATH",
                )
            ]
        return [Check("gpus", "ok", "none: gloo on the CPU")]
    visible = _visible(findings, gpus)
    return [*_busy(findings, facts, visible[:ranks]), _count_gpus(findings, world, visible)]


def _visible(findings: Findings, gpus: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return the GPUs that ranks see, the first rank's first."""
    variable = findings.fact("system").get("environment", {}).get("CUDA_VISIBLE_DEVICES")
    if variable is None:
        return gpus
    found = []
    for word in filter(None, (part.strip() for part in variable.split(","))):
        found += [gpu for gpu in gpus if gpu["index"] == word or gpu["uuid"].startswith(word)]
    return found


def _count_gpus(findings: Findings, world: World, visible: list[dict[str, str]]) -> Check:
    config = findings.config
    names = collections.Counter(gpu["name"] for gpu in visible)
    text = ", ".join(f"{count} x {name}" for name, count in names.items()) or "none is visible"
    if not visible:
        return Check(
            "gpus",
            "wrong",
            "CUDA_VISIBLE_DEVICES hides them all",
            "unset it over there, or name those to take: `--env CUDA_VISIBLE_DEVICES=0,1`",
        )
    if config.num_workers > len(visible):
        return Check(
            "gpus",
            "wrong",
            f"{text}, and {config.num_workers} ranks: one GPU is for one rank",
            f"fewer ranks: {with_ranks(config, world, len(visible))}",
        )
    torch = findings.fact("modules").get("torch", {})
    if torch.get("version") and "late" not in torch and not torch.get("gpus"):
        driver = visible[0].get("driver_version", "")
        return Check(
            "gpus",
            "wrong",
            f"{text}, and torch {torch['version']} sees none of them",
            "a torch for the CPU, or for a newer driver than "
            f"{driver or 'this one'}: install one that fits (pytorch.org/get-started)",
        )
    return Check("gpus", "ok", text)


def _busy(findings: Findings, facts: dict[str, Any], gpus: list[dict[str, str]]) -> list[Check]:
    checks = []
    for gpu in gpus:
        used, total = _number(gpu["memory.used"]), _number(gpu["memory.total"])
        users = [one for one in facts["uses"] if one["gpu_uuid"] == gpu["uuid"]]
        if total and used is not None and used / total <= GPU_USED_MAX:
            continue
        if not total and not users:
            continue
        whose = ", ".join(
            f"{one['user'] or 'somebody'} (pid {one['pid']}: "
            f"{(one['command'] or one['process_name'])[:60]})"
            for one in users
        )
        free = [one["index"] for one in facts["gpus"] if _is_free(one)]
        instead = f"take others: `--env CUDA_VISIBLE_DEVICES={','.join(free)}`" if free else (
            f"leave {findings.name} out"
        )  # fmt: skip
        checks.append(
            Check(
                "gpus",
                "wrong",
                f"GPU {gpu['index']} is taken, {used or 0:.0f} of {total or 0:.0f} MiB, by "
                f"{whose or 'processes that are not to be seen from here'}",
                f"{_end(findings, users)}, or {instead}",
            )
        )
    return checks


def _end(findings: Findings, users: list[dict[str, Any]]) -> str:
    """Return how those on a GPU get to leave: nobody's processes but one's own are to be ended."""
    if not users:
        return f"see who it is ({over_there(findings, 'nvidia-smi')})"
    me = findings.fact("system").get("user")
    own = [one["pid"] for one in users if me and one["user"] == me]
    if not own:
        return "ask them"
    kill = over_there(findings, f"kill {' '.join(own)}")
    ask = "" if len(own) == len(users) else "ask the others, and "
    return f"{ask}end what is yours, if you need it no more ({kill})"


def _is_free(gpu: dict[str, str]) -> bool:
    used, total = _number(gpu["memory.used"]), _number(gpu["memory.total"])
    return bool(total and used is not None and used / total <= GPU_USED_MAX)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # "[N/A]"
        return None
