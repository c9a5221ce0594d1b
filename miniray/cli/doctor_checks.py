"""What the findings mean: for each node a list of checks, each of them well or with what to do."""

import dataclasses
from collections.abc import Callable, Sequence

from miniray.cli.doctor_findings import Check, Findings, Wanted, World, waiting, without_sudo
from miniray.cli.doctor_gpus import check_gpus
from miniray.cli.doctor_machine import check_clock, check_disk, check_memory
from miniray.cli.doctor_network import check_interface, check_others, check_ports, check_tunnel
from miniray.cli.doctor_python import check_module, check_python
from miniray.cli.doctor_session import ANSWER
from miniray.cli.doctor_ssh import check_session


def judge(nodes: Sequence[Findings], here: Findings, wanted: Wanted) -> list[list[Check]]:
    """Return each node's checks, in the order in which one depends on the other."""
    world = World(nodes, here, wanted)
    return [[_fit(check, findings) for check in _check_node(findings, world)] for findings in nodes]


def _fit(check: Check, findings: Findings) -> Check:
    """Return a check whose advice is for whoever one is over there; of others, it has its own."""
    if check.name == "others":
        return check
    return dataclasses.replace(check, fix=without_sudo(check.fix, findings))


def _check_node(findings: Findings, world: World) -> list[Check]:
    checks = check_session(findings, world.wanted.limit_s * ANSWER)
    wrong = [one.name for one in checks if one.state == "wrong"]
    checks.append(waiting("python", wrong[0]) if wrong else check_python(findings, world))
    first_wrong = next((one.name for one in checks if one.state == "wrong"), "")
    for name in world.wanted.modules:  # of which another Python may have others
        checks.append(
            waiting(name, first_wrong) if first_wrong else check_module(findings, world, name)
        )
    for name, check in LATER.items():
        if first_wrong and not findings.facts:
            checks.append(waiting(name, first_wrong))
        else:
            checks += check(findings, world)
    return checks


LATER: dict[str, Callable[[Findings, World], list[Check]]] = {
    "gpus": check_gpus,
    "memory": check_memory,
    "disk": check_disk,
    "clock": check_clock,
    "interface": check_interface,
    "ports": check_ports,
    "others": check_others,
    "tunnel": check_tunnel,
}
