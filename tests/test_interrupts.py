"""Ctrl-C at every line of a cluster's start and stop, while the traceback is held."""

import psutil
import pytest

from miniray import Cluster, NodeConfig, cluster, faults, node, node_log, session
from tests.support import poll, processes
from tests.support.interrupts import Interrupter

T = 30.0
FILES = {module.__file__ for module in (cluster, faults, node, node_log, session)}


def nothing_is_left(before: set[psutil.Process]) -> bool:
    return not processes.descendants() - before


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("what", ["start", "stop"])
def test_ctrl_c_at_any_line_leaves_nothing(what: str) -> None:
    before = processes.descendants()
    at, held = 0, []
    while len(held) == at:
        at += 1
        one = Cluster([NodeConfig.local()])
        if what == "stop":
            one.start("tests.work.echo")
        with Interrupter(at, FILES) as interrupter:
            try:
                if what == "start":
                    one.start("tests.work.echo")
                else:
                    one.stop()
            except KeyboardInterrupt as error:
                held.append(error)  # with its traceback, as a notebook does
        if len(held) < at:
            assert not interrupter.where, f"swallowed at {interrupter.where}"
            one.stop()
        elif what == "stop" and at == 1:
            one.stop()  # it had not begun, and can be called again
        poll.until(lambda: nothing_is_left(before), timeout_s=T, what=interrupter.where)
    assert at > 20
