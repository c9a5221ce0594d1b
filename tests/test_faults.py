"""Cause every fault of the design's "What happens when" for real, and see what the user sees."""

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from miniray import process
from tests.support import namespaces, poll, processes

pytestmark = pytest.mark.thorough
T = 30.0
START = """
import json, sys
from miniray import *

def say(**fields):
    print(json.dumps(fields), flush=True)

nodes = [NodeConfig(host, {each}, python=sys.executable, ssh_options={options!r}, tunnel={tunnel})
         for host in ("node1", "node2")]
cluster = Cluster(nodes, fake_gpus=True)
workers = cluster.start("{work_fn}")
"""
WITH_GRANDCHILDREN = """
for worker in workers:
    worker.send("grandchildren")
pids = [worker.recv(30) for worker in workers]
say(pids=pids, servers=[one["server"]["pid"] for one in cluster.status()])
try:
    with cluster:
        workers[0].recv()
except WorkerError as error:
    say(error=type(error).__name__, text=str(error), signal=getattr(error, "signal", None))
"""


class Script:
    """A coordinator, in its namespace, that tells what it sees in lines of JSON."""

    def __init__(self, nodes: namespaces.Nodes, body: str, **options: Any) -> None:
        fields = {"each": 2, "tunnel": False, "work_fn": "tests.work.obey", **options}
        text = START.format(options=nodes.ssh_options, **fields) + body
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self.process = nodes.popen([sys.executable, "-c", text], text=True, **streams)
        self.errors = ""

    def say(self, line: str) -> None:
        """Write a line to its stdin."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """Return the next line of JSON."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        line = self.process.stdout.readline()
        assert line, f"the coordinator ended:\n{self.process.stderr.read()}"
        heard: dict[str, Any] = json.loads(line)
        return heard

    def press_ctrl_c(self) -> None:
        """Interrupt it once it waits: not in mid-sentence, just after it was heard."""
        poll.until(self.waits, what="it to wait")
        self.process.send_signal(signal.SIGINT)

    def waits(self) -> bool:
        """Return whether its main thread sleeps."""
        status: str = psutil.Process(self.process.pid).status()
        return status == psutil.STATUS_SLEEPING

    def end(self) -> int:
        """Wait for its end; return the exit status."""
        _, errors = self.process.communicate(timeout=T)
        self.errors += errors
        return self.process.returncode


@contextlib.contextmanager
def coordinator(nodes: namespaces.Nodes, body: str, **options: Any) -> Iterator[Script]:
    script = Script(nodes, body, **options)
    try:
        yield script
    finally:
        if script.process.poll() is None:
            script.process.kill()
        script.process.communicate()


@pytest.mark.netns
@pytest.mark.ssh
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM])
def test_nothing_is_left_when_the_coordinator_is_killed_or_its_terminal_closes(
    netns_nodes: namespaces.Nodes, number: int
) -> None:
    with coordinator(netns_nodes, WITH_GRANDCHILDREN) as script:
        script.hear()
        script.process.send_signal(number)
        netns_nodes.wait_until_empty(timeout_s=15)


@pytest.mark.netns
@pytest.mark.ssh
def test_nothing_is_left_when_ssh_is_killed_and_the_coordinator_learns_of_it(
    netns_nodes: namespaces.Nodes,
) -> None:
    with coordinator(netns_nodes, WITH_GRANDCHILDREN) as script:
        script.hear()
        for child in psutil.Process(script.process.pid).children(recursive=True):
            if child.name() == "ssh":
                child.kill()
        heard = script.hear()
        assert heard["error"] == "WorkerDied"
        assert "rank 0 at node1" in heard["text"]
        netns_nodes.wait_until_empty(timeout_s=15)
        assert script.end() == 0


@pytest.mark.netns
@pytest.mark.ssh
@pytest.mark.parametrize("victim", ["server", "keeper"])
def test_workers_and_grandchildren_die_with_their_server(
    netns_nodes: namespaces.Nodes, victim: str
) -> None:
    with coordinator(netns_nodes, WITH_GRANDCHILDREN) as script:
        heard = script.hear()
        server = psutil.Process(heard["servers"][0])
        (server if victim == "server" else server.parent()).kill()
        families = [pid for family in heard["pids"][:2] for pid in family]
        processes.wait_until_gone(families, timeout_s=15)
        assert script.hear()["error"] == "WorkerDied"
        assert script.end() == 0
    netns_nodes.wait_until_empty(timeout_s=15)


@pytest.mark.netns
@pytest.mark.ssh
def test_ctrl_c_gives_the_prompt_back_and_leaves_nothing(netns_nodes: namespaces.Nodes) -> None:
    with coordinator(netns_nodes, WITH_GRANDCHILDREN) as script:
        script.hear()
        script.press_ctrl_c()
        assert script.end() == -signal.SIGINT
        assert "KeyboardInterrupt" in script.errors
    netns_nodes.wait_until_empty(timeout_s=15)


HANGING = """
for worker in workers:
    worker.send("hang")
    worker.recv(30)
try:
    try:
        say(ready=True)
        workers[0].recv()
    finally:
        say(stopping=True)
        cluster.stop(timeout=1000.0)
except KeyboardInterrupt:
    say(ended=True)
"""


@pytest.mark.netns
@pytest.mark.ssh
def test_a_second_ctrl_c_ends_all_at_once(netns_nodes: namespaces.Nodes) -> None:
    with coordinator(netns_nodes, HANGING) as script:
        assert script.hear() == {"ready": True}
        script.press_ctrl_c()
        assert script.hear() == {"stopping": True}
        script.press_ctrl_c()
        assert script.hear() == {"ended": True}
        assert script.end() == 0
    netns_nodes.wait_until_empty(timeout_s=15)


@pytest.mark.netns
@pytest.mark.ssh
@pytest.mark.slow
def test_a_coordinator_killed_while_it_stops_patiently_leaves_nothing(
    netns_nodes: namespaces.Nodes,
) -> None:
    with coordinator(netns_nodes, HANGING) as script:
        assert script.hear() == {"ready": True}
        script.press_ctrl_c()
        assert script.hear() == {"stopping": True}
        poll.until(script.waits, what="it to wait for the nodes")
        script.process.kill()
        netns_nodes.wait_until_empty(timeout_s=15)


LOST = """
import time
from miniray import wait
say(ready=True)
sys.stdin.readline()
begun = time.monotonic()
try:
    {waiting}
except WorkerDied as error:
    say(seconds=time.monotonic() - begun, text=str(error))
workers[0].send("unharmed")
say(answer=workers[0].recv(30))
cluster.stop()
"""


@pytest.mark.netns
@pytest.mark.ssh
@pytest.mark.slow
def test_a_cut_link_ends_both_sides(netns_nodes: namespaces.Nodes) -> None:
    ways = [
        (False, "workers[2].recv()"),
        (True, "workers[2].recv()"),
        # Bytes under way that nobody acknowledges are no matter for keepalive.
        (False, "workers[2].send('late'); workers[2].recv()"),
        (False, "workers[2].send('late'); wait([workers[2]]); workers[2].recv()"),
    ]
    with contextlib.ExitStack() as stack:
        scripts = []
        for tunnel, waiting in ways:
            body = LOST.format(waiting=waiting)
            script = stack.enter_context(coordinator(netns_nodes, body, each=2, tunnel=tunnel))
            assert script.hear() == {"ready": True}
            scripts.append(script)
        with netns_nodes.cut("node2"):
            for script in scripts:
                script.say("go")
            for script in scripts:
                heard = script.hear()
                assert "rank 2 at node2" in heard["text"]
                assert heard["seconds"] < 30  # the promise is 20, on a machine that is not busy
            gone = lambda: not netns_nodes.pids("node2")  # noqa: E731
            poll.until(gone, timeout_s=40, what="node2 to be clean")
            for script in scripts:
                assert script.hear() == {"answer": "unharmed"}
        for script in scripts:
            assert script.process.wait(T) == 0
    # The sessions' own sshds have not heard of the cut; they would wait for hours.
    for session in psutil.Process(netns_nodes.servers["node2"].process.pid).children():
        session.kill()
    netns_nodes.wait_until_empty(timeout_s=15)


COLLECTIVE = """
import time
for worker, config in zip(workers, cluster.nccl_configs()):
    worker.send(config.__dict__)
assert {worker.recv(100) for worker in workers} == {8.0}
for rank, worker in enumerate(workers):
    worker.send("die" if rank == 5 else "all_reduce")
begun = time.monotonic()
for worker in workers:
    try:
        worker.recv(60)
    except WorkerError as error:
        say(seconds=time.monotonic() - begun, error=type(error).__name__, text=str(error))
cluster.stop()
"""


@pytest.mark.netns
@pytest.mark.ssh
@pytest.mark.slow
def test_the_first_culprit_is_named_when_a_rank_dies_inside_a_collective(
    netns_nodes: namespaces.Nodes,
) -> None:
    pytest.importorskip("torch")
    with coordinator(
        netns_nodes, COLLECTIVE, each=4, work_fn="tests.torch_work.all_reduce"
    ) as script:
        for _ in range(8):
            heard = script.hear()
            assert heard["error"] == "WorkerDied"
            assert "rank 5 at node2" in heard["text"]
            assert "killed by SIGKILL" in heard["text"]
            assert heard["seconds"] < 15  # the promise is 5, on a machine that is not busy
        assert script.end() == 0
    netns_nodes.wait_until_empty(timeout_s=15)


@pytest.mark.netns
@pytest.mark.ssh
@pytest.mark.slow
def test_fsdp_over_two_nodes_learns_what_one_process_learns(
    netns_nodes: namespaces.Nodes, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    options = [f"--ssh-option={option}" for option in netns_nodes.ssh_options]
    ended = netns_nodes.run(
        [
            *(sys.executable, "-m", "miniray", "demo", "--hosts", "node1,node2", "--steps", "6"),
            *("--python", sys.executable, "--output", str(tmp_path), *options),
        ],
        timeout=280,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "equal: over 6 steps the losses of 8 ranks and of one process" in ended.stdout
    netns_nodes.wait_until_empty(timeout_s=15)


@pytest.mark.netns
@pytest.mark.ssh
def test_every_node_that_cannot_start_is_listed_with_what_ssh_said(
    netns_nodes: namespaces.Nodes,
) -> None:
    script = f"""
import sys, time
from miniray import *
options = {netns_nodes.ssh_options!r}
nodes = [NodeConfig(host, 2, python=sys.executable, ssh_options=(*options, *more)) for host, more in
         [("node1", ()), ("node2", ()), ("10.77.0.99", ("-oStrictHostKeyChecking=no",)),
          ("node1", ("-p", "2222"))]]
begun = time.monotonic()
try:
    Cluster(nodes, start_timeout=60).start("tests.work.echo")
except ClusterError as error:
    print(error)
assert time.monotonic() - begun < 25, time.monotonic() - begun
"""
    with netns_nodes.changed_host_key("node2"):
        ended = netns_nodes.python(script)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("3 of 4 nodes failed to start; nothing was left running:")
    assert "node2: " in ended.stdout
    assert "Host key verification failed" in ended.stdout
    assert "10.77.0.99: " in ended.stdout
    assert "No route to host" in ended.stdout or "timed out" in ended.stdout
    assert "node1#3: " in ended.stdout
    assert "Connection refused" in ended.stdout
    assert "try: ssh -F" in ended.stdout
    netns_nodes.wait_until_empty(timeout_s=15)


def test_fork_after_cuda_was_initialised_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(RuntimeError, match="CUDA is initialised in this process"):
        process.fork(lambda: 0)


def test_a_killed_parent_takes_its_worker_along() -> None:
    script = (
        "import time; from miniray import Worker; from tests.work import obey\n"
        "w = Worker(obey); w.send('hang'); w.recv(); print(w.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    processes.wait_until_gone([worker], timeout_s=T)
