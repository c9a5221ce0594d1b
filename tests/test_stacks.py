"""Ranks that hang are seen from elsewhere: where they are, who is behind, and without harm."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from miniray import Cluster, NodeConfig, window
from miniray.looking.clusters import find_clusters
from miniray.looking.look import look_at
from tests import hanging
from tests.support import poll, processes
from tests.support.hung import check_verdict, hung, line_of, miniray, state_of, verdict_of
from tests.support.namespaces import Nodes
from tests.support.servers import serving

T = 60.0
LOCAL = {"local": True}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="macOS cannot tell")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


class TestWhoHangs:
    @pytest.mark.parametrize(
        ("how", "does", "places"),
        [
            ("loop", "runs", (line_of("loop"), line_of("body of loop"))),
            ("loop_in_c", "runs", (line_of("loop_in_c"),)),
            ("sleep", "waits", (line_of("sleep"),)),
            ("stop", "is stopped", (line_of("stop"),)),
        ],
    )
    def test_is_named_with_its_line(self, how: str, does: str, places: Sequence[str]) -> None:
        with hung("tests.hanging", how, dict(LOCAL)) as ranks:
            ranks.wait_until_they_hang(how)
            verdict = verdict_of(miniray("stacks"))
        assert verdict.startswith(f"Rank 2 is behind: it {does} at {verdict.split(' at ')[1][:6]}")
        assert any(f" at {place}" in verdict.partition(", while ")[0] for place in places)
        assert f", while ranks 0-1, 3 wait for a message at {line_of('recv of a rank')}" in verdict

    def test_is_whoever_waits_for_each_other(self) -> None:
        with hung("tests.hanging", "recv", dict(LOCAL)):
            verdict = verdict_of(miniray("stacks"))
        assert verdict.startswith(
            "The coordinator and ranks 0-3 wait for each other: it waits in recv"
        )
        assert line_of("recv of the coordinator") in verdict.partition(", and ")[0]
        assert line_of("recv of a rank") in verdict.partition(", and ")[2]

    def test_is_the_node_whose_server_is_gone(self) -> None:
        with Cluster([NodeConfig.local(2, host=name) for name in hanging.NODES]) as cluster:
            cluster.start("tests.work.echo")
            server = cluster.status()[1]["server"]["pid"]
            os.kill(server, signal.SIGSTOP)
            try:
                look = cluster.stacks()
            finally:
                os.kill(server, signal.SIGCONT)
            assert look.behind == ("rank 2", "rank 3")
            assert "cannot be asked" in look.verdict
            assert "did not finish the handshake" in look.verdict

    def test_is_a_coordinator_that_does_something_else(self) -> None:
        with Cluster([NodeConfig.local(2)]) as cluster:
            cluster.start("tests.work.echo")
            asked = threading.Event()
            looks: list[Any] = []
            thread = threading.Thread(target=lambda: (looks.append(cluster.stacks()), asked.set()))
            thread.start()
            asked.wait(T)
            thread.join()
        assert looks[0].behind == ("coordinator",)
        assert "The coordinator is behind: it waits at" in looks[0].verdict
        assert "asked.wait(T)" in str(looks[0])

    def test_is_nobody_known_if_it_is_the_coordinator_who_asks(self) -> None:
        with Cluster([NodeConfig.local(2)]) as cluster:
            cluster.start("tests.work.echo")
            look = cluster.stacks()
            assert look.behind == ()
            assert "it is the coordinator that asks" in look.verdict
            assert [one.name for one in look.ranks] == ["rank 0", "rank 1"]
            assert repr(look) == f"<Look: {look.verdict}>"
            assert "<b>Ranks 0-1 wait for a message" in look._repr_html_()

    def test_is_a_worker_of_a_server_that_was_started_by_hand(self) -> None:
        with serving("tests.work.obey") as server, server.worker() as worker:
            worker.send("hang")
            assert worker.recv(T) == "hanging"
            said = miniray("stacks", server.host, str(server.port))
        assert "Worker 1 waits at" in said
        assert "signal.pause()" in said


class TestALook:
    def test_lets_a_stopped_rank_get_no_further(self) -> None:
        with hung("tests.hanging", "stop", dict(LOCAL)) as ranks:
            culprit = ranks.pids[hanging.CULPRIT]
            poll.until(lambda: state_of(culprit) == "T", timeout_s=T)
            for _ in range(3):
                assert line_of("stop") in verdict_of(miniray("stacks"))
                assert state_of(culprit) == "T"
            (cluster,) = find_clusters()
            rank = look_at(cluster).ranks[hanging.CULPRIT]
            assert rank.facts["unread_bytes"] == 0
            sent_before = rank.facts["sent_bytes"]
            assert look_at(cluster).ranks[hanging.CULPRIT].facts["sent_bytes"] == sent_before
            os.kill(culprit, signal.SIGCONT)
            assert ranks.next_line() == "went on"
            # And once more, now that it has been held and let go.
            os.kill(culprit, signal.SIGSTOP)
            poll.until(lambda: state_of(culprit) == "T", timeout_s=T)
            assert line_of("recv of a rank") in verdict_of(miniray("stacks"))
            assert state_of(culprit) == "T"

    def test_leaves_a_stopped_rank_alone_if_it_is_to(self) -> None:
        with hung("tests.hanging", "stop", dict(LOCAL)) as ranks:
            poll.until(lambda: state_of(ranks.pids[hanging.CULPRIT]) == "T", timeout_s=T)
            verdict = verdict_of(miniray("stacks", "--no-wake"))
        assert verdict.startswith("Rank 2 is behind: it is stopped, while ranks 0-1, 3 wait")

    def test_does_not_end_a_rank_that_has_become_another_program(self) -> None:
        with Cluster([NodeConfig.local(2)]) as cluster:
            workers = cluster.start("tests.hanging.become_sleep")
            pid = workers[0].recv(T)
            poll.until(lambda: "sleep" in Path(f"/proc/{pid}/cmdline").read_text(), timeout_s=T)
            look = cluster.stacks()
            assert processes.is_running(pid)
            assert look.ranks[0].stacks == []
            assert "does not say where it is" in str(look)

    def test_does_not_touch_a_handler_of_the_user(self) -> None:
        with Cluster([NodeConfig.local(1)]) as cluster:
            (worker,) = cluster.start("tests.uses_signal.count_signals")
            assert worker.recv(T) == "ready"
            cluster.stacks()
            worker.send("how many?")
            assert worker.recv(T) == 0

    def test_of_two_at_once_both_see_all(self) -> None:
        with Cluster([NodeConfig.local(3)]) as cluster:
            cluster.start("tests.work.echo")
            looks: list[Any] = []
            threads = [
                threading.Thread(target=lambda: looks.append(cluster.stacks())) for _ in range(4)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        for look in looks:
            assert all(one.stacks and one.does.kind == "recv" for one in look.ranks)

    def test_tells_what_was_sent_and_received(self) -> None:
        with Cluster([NodeConfig.local(1)]) as cluster:
            (worker,) = cluster.start("tests.work.echo")
            worker.send(bytes(100_000))
            worker.recv(T)
            facts = cluster.stacks().ranks[0].facts
        assert 100_000 < facts["sent_bytes"] < 101_000
        assert 100_000 < facts["received_bytes"] < 101_000
        assert 0.0 <= facts["sent_s_ago"] < T
        assert facts["unread_bytes"] == 0

    def test_costs_busy_threads_nothing_but_time(self) -> None:
        """Stacks are walked while other threads change theirs: that must not end the process."""
        with Cluster([NodeConfig.local(1)]) as cluster:
            (worker,) = cluster.start("tests.hanging.be_busy_in_threads")
            pid = worker.recv(T)
            for _ in range(2000):
                os.kill(pid, window.LOOK_SIGNAL)
            worker.send("still there?")
            assert worker.recv(T) == "yes"


@pytest.mark.thorough
@pytest.mark.netns
class TestInACollective:
    """On two nodes with an sshd each, from another terminal, while the coordinator waits."""

    @pytest.mark.parametrize(
        ("how", "way"),
        [
            *((how, {}) for how in ("loop", "loop_in_c", "stop", "skip", "two_ranks_recv")),
            ("skip", {"tunnel": True}),
            ("loop", {"encrypt": True}),
        ],
        ids=str,
    )
    def test_who_is_not_in_it_is_named_with_its_line(
        self, netns_nodes: Nodes, how: str, way: dict[str, Any]
    ) -> None:
        options = {"ssh_options": netns_nodes.ssh_options, **way}
        with hung("tests.hanging_torch", how, options, netns_nodes) as ranks:
            ranks.wait_until_they_hang(how)
            verdict = verdict_of(miniray("stacks", nodes=netns_nodes))
        check_verdict(how, verdict)
        netns_nodes.wait_until_empty()


class TestANotice:
    def test_is_there_from_start_to_stop_for_its_user_alone(self, home: Path) -> None:
        assert find_clusters() == []
        with Cluster([NodeConfig.local(2, host="here")]) as cluster:
            cluster.start("tests.work.echo")
            (found,) = find_clusters()
            assert (found["work"], found["pid"]) == ("tests.work.echo", os.getpid())
            (path,) = (home / ".miniray" / "clusters").iterdir()
            assert path.stat().st_mode & 0o777 == 0o600
            assert path.parent.stat().st_mode & 0o777 == 0o700
            port = found["nodes"][0]["port"]
            cluster.restart([NodeConfig.local(2, host="here"), NodeConfig.local(1, host="there")])
            (found,) = find_clusters()
            assert [node["node"] for node in found["nodes"]] == ["here", "there"]
            assert found["nodes"][0]["port"] == port
        assert find_clusters() == []
        assert list(path.parent.iterdir()) == []

    def test_of_a_coordinator_that_was_killed_is_removed(self, home: Path) -> None:
        with hung("tests.hanging", "recv", dict(LOCAL)) as ranks:
            (path,) = (home / ".miniray" / "clusters").iterdir()
            assert len(find_clusters()) == 1
            ranks.process.kill()
            ranks.process.wait()
            assert path.exists()
            assert find_clusters() == []
            assert not path.exists()
            processes.wait_until_gone(ranks.pids, timeout_s=T)

    def test_of_another_machine_is_left_alone(self, home: Path) -> None:
        folder = home / ".miniray" / "clusters"
        folder.mkdir(parents=True)
        (folder / "0123.json").write_text(json.dumps({"host": "another", "posted": 0.0}))
        assert find_clusters() == []
        assert (folder / "0123.json").exists()

    def test_is_not_held_by_a_forked_child(self) -> None:
        cluster = Cluster([NodeConfig.local(1)])
        cluster.start("tests.work.echo")
        pid = os.fork()
        if pid == 0:
            signal.pause()
        try:
            cluster.stop()
            with Cluster([NodeConfig.local(1)]) as another:
                another.start("tests.work.echo")
                assert len(find_clusters()) == 1
                assert "miniray-window" not in " ".join(
                    os.readlink(f"/proc/{pid}/fd/{one}") for one in os.listdir(f"/proc/{pid}/fd")
                )
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def test_that_nobody_can_write_keeps_no_cluster_from_its_work(self, home: Path) -> None:
        (home / ".miniray").write_text("a file where the folder should be")
        with Cluster([NodeConfig.local(1)]) as cluster:
            (worker,) = cluster.start("tests.work.echo")
            worker.send(1)
            assert worker.recv(T) == 1


class TestATitle:
    def test_says_who_and_what(self) -> None:
        with Cluster([NodeConfig.local(1), NodeConfig.local(1)]) as cluster:
            workers = cluster.start("tests.work.echo")
            for rank, worker in enumerate(workers):
                command = Path(f"/proc/{worker.pid}/cmdline").read_bytes()
                assert (
                    command.rstrip(b"\0") == f"miniray rank {rank} of 2: tests.work.echo".encode()
                )
                name = Path(f"/proc/{worker.pid}/comm").read_text()
                assert name == f"miniray rank {rank}\n"

    def test_says_what_is_called(self) -> None:
        with Cluster([NodeConfig.local(2)]) as cluster:
            titles = cluster.run("tests.hanging.own_title")
        assert titles == [f"miniray rank {rank} of 2: tests.hanging.own_title" for rank in range(2)]

    def test_that_is_too_long_is_cut_and_harms_nothing(self) -> None:
        with serving("tests.hanging.tell_environment", max_workers=1) as server:
            with server.worker(title="x" * 3000) as worker:
                pid, environment = worker.recv(T)
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                ours = Path("/proc/self/cmdline").read_bytes()
                assert len(command) == len(ours)
                assert command.startswith(b"miniray xxx"[: len(ours) - 1])
                assert environment["MINIRAY_KEY_FILE"] == os.environ["MINIRAY_KEY_FILE"]


class TestStatus:
    def test_finds_what_runs_here(self) -> None:
        with hung("tests.hanging", "recv", dict(LOCAL)) as ranks:
            said = miniray("status")
        assert said.startswith(
            "tests.hanging.hang: 4 ranks (2 on node1, 2 on node2), coordinated by"
        )
        assert re.findall(r"(?m)^\d +(rank\d) +(\d+) +running", said) == [
            (f"rank{rank}", str(pid)) for rank, pid in enumerate(ranks.pids)
        ]

    @pytest.mark.parametrize("command", ["status", "stacks"])
    def test_says_so_if_nothing_does(self, command: str) -> None:
        argv = [sys.executable, "-m", "miniray", command]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=T)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"miniray {command}: no cluster runs on this machine\n"
