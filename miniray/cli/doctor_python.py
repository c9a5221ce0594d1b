"""Whether the right Python is there, with the modules that a run needs."""

import collections
import re
import shlex
import sys
from typing import Any

from miniray.cli.doctor_findings import (
    Check,
    Findings,
    World,
    base_version,
    is_late,
    over_there,
    version_of,
)
from miniray.cli.doctor_ssh import node_said
from miniray.node import PYTHON_MIN
from miniray.node_config import quote_path


def check_python(findings: Findings, world: World) -> Check:
    """Return whether the Python that was named is there, and new enough."""
    config = findings.config
    others = _another(findings, world)
    least = ".".join(map(str, PYTHON_MIN))
    if findings.pythons is not None:
        return Check(
            "python",
            "wrong",
            f"there is no {config.python} for a session without a terminal",
            f"{others}; or install Python {least} or newer",
        )
    if findings.version is None:
        said = node_said(findings)
        last = said[-1] if said else "it said nothing"
        how = f"ended with status {findings.exit_status}" if findings.exit_status else "hangs"
        by_hand = over_there(findings, f"{quote_path(config.python)} --version")
        return Check("python", "wrong", f"{config.python} {how}: {last}", f"{others}; {by_hand}")
    text = ".".join(map(str, findings.version))
    path = findings.fact("system").get("python") or config.python
    if findings.version < PYTHON_MIN:
        return Check(
            "python", "wrong", f"{path} is {text}, and MiniRay needs {least} or newer", others
        )
    common = collections.Counter(one.version[:2] for one in world.nodes if one.version)
    if common[findings.version[:2]] < max(common.values()):
        usual = ".".join(map(str, common.most_common(1)[0][0]))
        return Check(
            "python",
            "note",
            f"{text} ({path}), and {usual} on most of the others",
            "MiniRay does not mind; what is installed for them may differ",
        )
    return Check("python", "ok", f"{text} ({path})")


def _another(findings: Findings, world: World) -> str:
    """Return which Python to have instead of one that is missing or too old."""
    fine = [
        other.name
        for other in world.others(findings)
        if other.version is not None and other.version >= PYTHON_MIN
    ]
    same = f"make it there what it is on {fine[0]}, or " if fine else ""
    everywhere = " for all nodes" if fine else ""
    if known := _better(findings):
        return f"{same}take another one{everywhere}: {known}"
    paths = findings.pythons or []
    new = [path for path in paths if re.search(r"3\.1[1-9]$", path)]
    path = next(iter([*new, *paths]), "/path/to/python")
    return f"{same}name one that is there{everywhere}: `--python {shlex.quote(path)}`"


def _better(findings: Findings, module: str = "") -> str:
    """Return a Python over there that will do, and has a module; "" if none is known."""
    fit = [
        one
        for one in findings.fact("modules").get("pythons", [])
        if tuple(one["version"][:2]) >= PYTHON_MIN and (not module or module in one["has"])
    ]
    if not fit:
        return ""
    # The one with the most, and of those the one that is most like this one.
    best = min(
        fit, key=lambda one: (-len(one["has"]), tuple(one["version"][:2]) != sys.version_info[:2])
    )
    version = ".".join(map(str, best["version"]))
    has = f", which has {', '.join(best['has'])}" if best["has"] else ""
    return f"`--python {shlex.quote(best['path'])}` ({version}{has})"


def check_module(findings: Findings, world: World, name: str) -> Check:
    """Return whether a module is there, works, and is of the same version as the others'."""
    if late := is_late(findings, name, "modules", world):
        return late
    found = findings.facts["modules"][name]
    usual = world.version_to_have(name)
    python = findings.fact("system").get("python", findings.config.python)
    install = "install the package that has it over there; pip may call it otherwise"
    if package := world.package_of(name):
        wanted = f"{package}=={base_version(usual['version'])}" if usual else package
        command = shlex.join([python, "-m", "pip", "install", wanted])
        if found.get("is_systems"):  # where pip refuses: the system installs there
            venv = "~/miniray-venv/bin/python"
            command = f"{shlex.quote(python)} -m venv ~/miniray-venv && {venv} -m pip install "
            command += shlex.quote(wanted)
        elif not found.get("has_pip", True):
            command = f"{shlex.quote(python)} -m ensurepip && {command}"
        install = over_there(findings, command)
        if found.get("is_systems"):
            install += f" and then `--python {venv}`"
        build = usual["version"].partition("+")[2] if usual else ""
        if name == "torch" and build:
            install += f" (the others' build is +{build}; pytorch.org/get-started has its line)"
    if found.get("missing"):
        if usual is None and name not in world.wanted.needed:
            return Check(name, "note", "nobody has it: fine for what does not import it")
        better = _better(findings, name)
        other = f", or take another Python: {better}" if better else ""
        verb = "install it: " if package else ""
        return Check(name, "wrong", f"not installed in {python}", f"{verb}{install}{other}")
    if "error" in found:
        fix = f"install it anew: {install}" if package else install
        if re.search(r"lib\w+\.so", found["error"]):
            fix = f"a library is missing over there, or of another version; {fix}"
        return Check(name, "wrong", f"its import fails: {found['error'][:300]}", fix)
    text = found["version"] or "it is there"
    if name == "torch" and "late" not in found:
        text += f", CUDA {found['cuda']}" if found.get("cuda") else ""
    if usual and found["version"] and found["version"] != usual["version"]:
        return _judge_other_version(findings, world, name, text, usual, install)
    if usual and found.get("cuda") != usual.get("cuda") and "late" not in found:
        return Check(
            name,
            "wrong",
            f"{text}, and CUDA {usual['cuda'] or 'none'} on the others",
            "install the same build everywhere; pytorch.org/get-started has the line for each",
        )
    if "late" in found:
        return Check(
            name,
            "note",
            f"{text}, and its import takes more than {found['late']:.0f} s",
            "the first one since it was installed takes longer, one from a network file system "
            "always. The first start of a run will take that long; "
            "if `--start-timeout` is over before, raise it",
        )
    own = version_of(world.here, name)
    if own and found["version"] and base_version(own["version"]) != base_version(found["version"]):
        return Check(
            name,
            "note",
            f"{text}, and {own['version']} on this machine",
            "no harm where only tensors are exchanged with it",
        )
    return Check(name, "ok", text)


def _judge_other_version(
    findings: Findings, world: World, name: str, text: str, usual: dict[str, Any], install: str
) -> Check:
    where = [
        other.name
        for other in world.others(findings)
        if other.fact("modules").get(name, {}).get("version") == usual["version"]
    ]
    says = f"{text}, and {usual['version']} on {', '.join(where[:3])}"
    if base_version(usual["version"]) == base_version(findings.facts["modules"][name]["version"]):
        return Check(name, "note", says, "another build of the same release")
    return Check(name, "wrong", says, f"the same version everywhere: {install}")
