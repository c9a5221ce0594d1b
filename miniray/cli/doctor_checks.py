"""What the findings mean: for each node a list of checks, each of them well or with what to do."""

from collections.abc import Callable, Sequence

from miniray.cli.doctor_findings import Check, Findings, Wanted, World
from miniray.cli.doctor_gpus import check_gpus
from miniray.cli.doctor_machine import check_clock, check_disk, check_memory
from miniray.cli.doctor_network import check_interface, check_others, check_ports, check_tunnel
from miniray.cli.doctor_python import check_python, module_check
from miniray.cli.doctor_ssh import check_session


def judge(nodes: Sequence[Findings], here: Findings, wanted: Wanted) -> list[list[Check]]:
    """Return each node's checks, in the order in which one depends on the other."""
    world = World(nodes, here, wanted)
    return [_check_node(findings, world) for findings in nodes]


def _check_node(findings: Findings, world: World) -> list[Check]:
    checks = check_session(findings, world.wanted.limit_s * 0.48)
    before = next((one.name for one in checks if one.state in ("wrong", "untested")), "")
    python = check_python(findings, world, before)
    checks.append(python)
    if python.state != "ok" and not findings.facts:
        before = before or "python"
    later: list[tuple[str, Callable[[Findings, World], list[Check]]]] = [
        *((name, module_check(name)) for name in world.wanted.modules),
        ("gpus", check_gpus),
        ("memory", check_memory),
        ("disk", check_disk),
        ("clock", check_clock),
        ("interface", check_interface),
        ("ports", check_ports),
        ("others", check_others),
        ("tunnel", check_tunnel),
    ]
    for name, check in later:
        if before:
            checks.append(Check(name, "untested", f"not tested: {before} comes first"))
        else:
            checks += check(findings, world)
    return checks
