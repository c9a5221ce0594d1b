"""Ranks that hang are seen from elsewhere: where they are, who is behind, and without harm."""

import argparse
import contextlib
import fcntl
import gc
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from miniray import Cluster, MiniRayError, NodeConfig, auth, wait, window
from miniray.cli import afar, elsewhere, top
from miniray.connection import server_status
from miniray.looking import clusters
from miniray.looking.clusters import find_clusters, source_of
from miniray.looking.look import look_at
from miniray.looking.process import send, why_silent
from miniray.notice import Notice
from tests import hanging
from tests.support import poll, processes, ssh
from tests.support.hung import check_verdict, hung, line_of, miniray, state_of, verdict_of
from tests.support.namespaces import Nodes
from tests.support.proxy import Proxy
from tests.support.servers import serving

T = 60.0
LOCAL = {"local": True}
LOOKS = 2000

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="macOS cannot tell")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def all_receive(cluster: Cluster) -> bool:
    """Return whether all ranks have come so far; a start does not wait for that."""
    return all(one.does.kind == "recv" for one in cluster.stacks().ranks)


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
        with hung("tests.hanging", how, dict(LOCAL)):
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

    def test_is_whoever_does_not_say_where_it_is_if_the_others_wait(self) -> None:
        with hung("tests.hanging", "block", dict(LOCAL)):
            verdict = verdict_of(miniray("stacks"))
        silent = "Rank 2 is behind: it does not say where it is (it blocks the signal), while "
        assert verdict.startswith(f"{silent}ranks 0-1, 3 wait for a message at ")

    def test_is_seen_in_a_rank_that_coordinates_too(self) -> None:
        with Cluster([NodeConfig.local(1)]) as cluster:
            (worker,) = cluster.start("tests.hanging.coordinate")
            assert worker.recv(T) == "coordinating"
            assert line_of("recv of a coordinating rank") in cluster.stacks().verdict
            (inner,) = [one for one in find_clusters() if one["pid"] == worker.pid]
            assert line_of("recv of a coordinating rank") in str(look_at(inner))
            worker.send("enough")
            assert worker.recv(T) == "done"
            poll.until(lambda: all_receive(cluster), timeout_s=T)

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
            poll.until(lambda: all_receive(cluster), timeout_s=T)
            look = cluster.stacks()
            assert look.behind == ()
            assert "it is the coordinator that asks" in look.verdict
            assert [one.name for one in look.ranks] == ["rank 0", "rank 1"]
            assert repr(look) == f"<Look: {look.verdict}>"
            assert "<b>Ranks 0-1 wait for a message" in look._repr_html_()

    def test_is_none_of_those_before_a_restart(self) -> None:
        with Cluster([NodeConfig.local(2, host="a"), NodeConfig.local(2, host="b")]) as cluster:
            workers = cluster.start("tests.work.echo")
            os.kill(workers[3].pid, signal.SIGKILL)
            workers[3].how_it_ended()
            poll.until(lambda: cluster.stacks().behind == ("rank 3",), timeout_s=T)
            cluster.restart([NodeConfig.local(2, host="b"), NodeConfig.local(1, host="a")])
            look = cluster.stacks()
            assert [(one.name, one.node) for one in look.ranks] == [
                *(("rank 0", "b"), ("rank 1", "b"), ("rank 2", "a")),
            ]
            poll.until(lambda: all_receive(cluster), timeout_s=T)

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
            for _ in range(3):
                assert line_of("stop") in verdict_of(miniray("stacks"))
                assert state_of(culprit) == "T"
            os.kill(culprit, signal.SIGCONT)
            assert ranks.next_line() == "went on"
            # And once more, now that it has been held and let go.
            os.kill(culprit, signal.SIGSTOP)
            poll.until(lambda: state_of(culprit) == "T", timeout_s=T)
            assert line_of("recv of a rank") in verdict_of(miniray("stacks"))
            assert state_of(culprit) == "T"

    def test_of_a_stopped_rank_lets_it_execute_nothing(self, tmp_path: Path) -> None:
        counter = tmp_path / "counter"
        counter.write_bytes(bytes(8))
        with Cluster([NodeConfig.local(1)]) as cluster:
            (worker,) = cluster.start("tests.hanging.stop_and_count")
            worker.send(str(counter))
            pid = worker.recv(T)
            poll.until(lambda: state_of(pid) == "T", timeout_s=T)
            for _ in range(3):
                assert cluster.stacks().ranks[0].stacks
                assert counter.read_bytes() == bytes(8)
            os.kill(pid, signal.SIGCONT)
            poll.until(lambda: counter.read_bytes() != bytes(8), timeout_s=T)

    def test_leaves_a_stopped_rank_alone_if_it_is_to(self) -> None:
        with hung("tests.hanging", "stop", dict(LOCAL)):
            verdict = verdict_of(miniray("stacks", "--no-wake"))
            assert re.findall(r"(rank\d) +\d+ +stopped", miniray("status")) == ["rank2"]
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

    def test_of_one_that_answers_just_now_is_not_given_up(self) -> None:
        """While the handler runs the signal is blocked, as it is where nobody will ever answer."""
        ours = window.Window()
        ours.open()
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, {window.LOOK_SIGNAL})
            assert why_silent(os.getpid(), ours.descriptor) == ""
            send(os.getpid(), window.LOOK_SIGNAL)
            assert why_silent(os.getpid(), ours.descriptor) == "it blocks the signal"
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {window.LOOK_SIGNAL})
            assert why_silent(os.getpid(), ours.descriptor) == ""
            assert "test_of_one_that_answers" in window.read_stacks(ours.descriptor)
        finally:
            ours.shut()
            ours.close()

    def test_of_two_at_once_both_see_all(self) -> None:
        with Cluster([NodeConfig.local(3)]) as cluster:
            cluster.start("tests.work.echo")
            poll.until(lambda: all_receive(cluster), timeout_s=T)
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

    def test_that_comes_at_any_moment_harms_no_thread(self) -> None:
        """Many looks while calls come and go: reading all threads' stacks has ended it here."""
        with Cluster([NodeConfig.local(1)]) as cluster:
            (worker,) = cluster.start("tests.hanging.be_busy_in_threads")
            pid = worker.recv(T)
            worker.send("go")
            for _ in range(LOOKS):
                send(pid, window.LOOK_SIGNAL)
                wait([worker], timeout=0.0005)
            assert worker.recv(T) == "still here"
            assert len(cluster.stacks().ranks[0].stacks) == 1  # of five threads


@pytest.mark.thorough
@pytest.mark.netns
class TestInACollective:
    """On two nodes with an sshd each, from another terminal, while the coordinator waits."""

    @pytest.mark.parametrize(
        ("way", "hows"),
        [
            ({}, ("loop", "loop_in_c", "stop", "skip", "two_ranks_recv")),
            ({"tunnel": True}, ("skip",)),
            ({"encrypt": True}, ("loop",)),
        ],
        ids=str,
    )
    def test_who_is_not_in_it_is_named_with_its_line(
        self, netns_nodes: Nodes, way: dict[str, Any], hows: Sequence[str]
    ) -> None:
        options = {"ssh_options": netns_nodes.ssh_options, **way}
        with hung("tests.hanging_torch", hows[0], options, netns_nodes) as ranks:
            for how in hows:
                if how != hows[0]:
                    ranks.hang(how)
                check_verdict(how, verdict_of(miniray("stacks", nodes=netns_nodes)))
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
        assert list(path.parent.iterdir()) == []
        assert find_clusters() == []

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

    def test_that_is_replaced_while_somebody_reads_it_stays(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Cluster([NodeConfig.local(1)]) as cluster:
            cluster.start("tests.work.echo")
            read, restarted = clusters._read, list[Any]()

            def restart_and_read(data: bytes) -> dict[str, Any] | None:
                if not restarted:
                    restarted.append(cluster.restart())
                return read(data)

            with monkeypatch.context() as context:
                context.setattr(clusters, "_read", restart_and_read)
                assert len(find_clusters()) == 1
            assert len(find_clusters()) == 1

    @pytest.mark.parametrize("text", ["", "{}", '{"host', '{"host": 1, "nodes": 2}', "[]"])
    def test_that_says_something_else_is_passed_over(self, home: Path, text: str) -> None:
        folder = home / ".miniray" / "clusters"
        folder.mkdir(parents=True)
        with open(folder / "0123.json", "w") as file:
            file.write(text)
            file.flush()
            fcntl.flock(file, fcntl.LOCK_EX)
            assert find_clusters() == []
            assert (folder / "0123.json").exists()
        os.utime(folder / "0123.json", (0, 0))
        assert find_clusters() == []
        assert not (folder / "0123.json").exists()

    def test_is_not_looked_for_by_a_user_without_a_home(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def homeless() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(clusters, "folder_of_notices", homeless)
        assert find_clusters() == []

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

    def test_goes_with_a_cluster_that_nobody_has_any_more(self) -> None:
        """In a notebook a cell that makes one is run again."""
        notice = Notice()
        notice.post({"work": "a.b", "nodes": [], "began": 0.0})
        assert len(find_clusters()) == 1
        del notice
        gc.collect()
        assert find_clusters() == []

    def test_that_nobody_can_remove_keeps_no_cluster_from_its_end(self, home: Path) -> None:
        cluster = Cluster([NodeConfig.local(1)])
        (worker,) = cluster.start("tests.work.echo")
        shutil.rmtree(home / ".miniray")
        (home / ".miniray").write_text("a file where the folder should be")
        cluster.stop()
        assert not processes.is_running(worker.pid)

    def test_needs_no_folder_to_be_in(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        gone = home / "gone"
        gone.mkdir()
        monkeypatch.chdir(gone)
        with Cluster([NodeConfig.local(1)]) as cluster:
            cluster.start("tests.work.echo")
            gone.rmdir()
            (worker,) = cluster.restart()
            worker.send(1)
            assert worker.recv(T) == 1

    def test_tells_no_line_of_a_file_that_was_edited_since_the_first_start(
        self, tmp_path: Path
    ) -> None:
        """Servers that live through a restart keep what they have imported."""
        with Cluster([NodeConfig.local(1)]) as cluster:
            cluster.start("tests.work.echo")
            began = cluster.whereabouts()["began"]
            cluster.restart()
            (found,) = find_clusters()
            assert (cluster.whereabouts()["began"], found["began"]) == (began, began)
        (tmp_path / "train.py").write_text("new = 1\n")
        here = {**found, "folder": str(tmp_path)}  # on the node it is somewhere else
        assert source_of("/there/train.py", "train.py", 1, here) == ""
        os.utime(tmp_path / "train.py", (began - 60, began - 60))
        assert source_of("/there/train.py", "train.py", 1, here) == "new = 1"


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
            assert repr(cluster) == "<Cluster of 2 ranks (2 on local): ready for calls>"
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

    @pytest.mark.parametrize("command", ["status", "stacks", "top"])
    def test_says_so_if_nothing_does(self, command: str) -> None:
        argv = [sys.executable, "-m", "miniray", command]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=T)
        assert (done.returncode, done.stdout) == (1, "")
        nobody = "no cluster runs on this machine, or it still starts"
        said, *_ = done.stderr.splitlines()  # others' ranks may be there, which it then names
        assert said == f"miniray {command}: {nobody}"


class TestWhatGoesOverTheNetwork:
    def test_is_encrypted_where_the_ranks_are(self) -> None:
        heard: list[bytes] = []

        def listen(is_up: bool, chunk: bytes) -> bytes:
            heard.append(chunk)
            return chunk

        with serving("tests.work.obey", encrypt=True) as server:
            with Proxy((server.host, server.port), edit=listen) as proxy:
                with server.worker(encrypt=True) as worker:
                    worker.send("hang")
                    assert worker.recv(T) == "hanging"
                    said = miniray("stacks", "--encrypt", "127.0.0.1", str(proxy.port))
        assert "tests/work.py" in said
        assert b"welcome" not in b"".join(heard)
        assert b"proof" in b"".join(heard)
        assert b"work.py" not in b"".join(heard)

    def test_is_refused_in_clear_by_a_server_that_encrypts(self) -> None:
        with serving("tests.work.obey", encrypt=True) as server:
            argv = [sys.executable, "-m", "miniray", "stacks", server.host, str(server.port)]
            done = subprocess.run(argv, capture_output=True, text=True, timeout=T)
            assert (done.returncode, done.stdout) == (1, "")
            assert "it has been started with encrypt=True; connect with the same" in done.stderr
            assert server.status()["workers"] == []  # what is no secret, it tells as ever

    def test_is_for_nobody_who_sits_in_between(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Such a one shakes hands by passing on, and cannot prove that both have seen the same."""
        ours = auth.prove_same_view

        def wrong(*args: Any, **options: Any) -> tuple[bytes, bytes]:
            proof, theirs = ours(*args, **options)
            return bytes(len(proof)), theirs

        with serving("tests.work.obey", encrypt=True) as server:
            monkeypatch.setattr(auth, "prove_same_view", wrong)
            with pytest.raises((OSError, EOFError, MiniRayError)):
                server_status(server.host, server.port, look="read", encrypt=1)
            monkeypatch.undo()
            assert server_status(server.host, server.port, look="read", encrypt=1)

    @pytest.mark.parametrize("cut", [1, 200, 1500])
    def test_that_ends_in_the_midst_costs_the_server_nothing(self, cut: int) -> None:
        with serving("tests.work.obey", encrypt=True) as server:
            with server.worker(encrypt=True) as worker:
                for _ in range(3):
                    with Proxy((server.host, server.port), down_bytes_max=cut) as proxy:
                        with pytest.raises((OSError, MiniRayError)):
                            server_status(server.host, proxy.port, look="read", encrypt=1)
                worker.send("pid")
                assert worker.recv(T) == worker.pid
                status = server_status(server.host, server.port, look="read", encrypt=1)
                assert status["workers"][0]["look"]["state"] in "RS"


class TestTop:
    def test_is_one_table_where_nobody_sits_in_front_of_it(self) -> None:
        with hung("tests.hanging", "loop", dict(LOCAL)) as ranks:
            lines = miniray("top").splitlines()
        assert lines[0].startswith("tests.hanging.hang: 4 ranks (2 on node1, 2 on node2), ")
        assert lines[1].split() == ["rank", "node", "pid", "state", "CPU", "memory", "GPU", *ENDS]
        rows = [line.split() for line in lines[2:]]
        assert [row[:4] for row in rows] == [
            [str(rank), f"node{1 + rank // 2}", str(pid), "runs" if rank == 2 else "waits"]
            for rank, pid in enumerate(ranks.pids)
        ]

    @pytest.mark.parametrize("way_out", [b"q", b"\x03", signal.SIGTERM])
    def test_leaves_a_terminal_that_was_resized_as_it_was(self, way_out: bytes | int) -> None:
        with hung("tests.hanging", "recv", dict(LOCAL)), terminal(80, 20) as (ours, theirs):
            before = termios.tcgetattr(theirs)
            with in_front_of(theirs, "top", "--every", "600") as process:
                read_until(ours, b"node2")
                assert termios.tcgetattr(theirs)[3] & termios.ICANON == 0
                read_until(ours, b"0%", b"\x1b[J")  # the second look; the next is in ten minutes
                drawn = b""
                for columns in (30, 50, 40):
                    set_size(ours, columns, 4)
                    drawn += read_until(ours, b"\x1b[H", b"\x1b[J")
                assert drawn.count(b"\x1b[H") < 10  # it does not draw for ever
                assert b"received" not in drawn  # which is beyond column 50
                assert b"node2" not in drawn.replace(b"on node2", b"")  # and this below row 4
                if isinstance(way_out, int):
                    process.send_signal(way_out)
                else:
                    os.write(ours, way_out)
                seen = read_until(ours, b"\x1b[?1049l")
                assert process.wait(T) == 0
                assert b"\x1b[?25h" in seen
                assert b"Traceback" not in seen
                assert termios.tcgetattr(theirs) == before

    def test_gives_the_terminal_back_while_it_is_stopped(self) -> None:
        with hung("tests.hanging", "recv", dict(LOCAL)), terminal(0, 0) as (ours, theirs):
            before = termios.tcgetattr(theirs)
            with in_front_of(theirs, "top", "--every", "600") as process:
                read_until(ours, b"0%", b"\x1b[J")  # also where the terminal has no size
                process.send_signal(signal.SIGTSTP)
                seen = read_until(ours, b"\x1b[?1049l")
                poll.until(lambda: state_of(process.pid) == "T", timeout_s=T)
                assert b"\x1b[?25h" in seen
                assert termios.tcgetattr(theirs) == before
                process.send_signal(signal.SIGCONT)
                assert b"node2" in read_until(ours, b"0%", b"\x1b[J")
                os.write(ours, b"q")
                read_until(ours, b"\x1b[?1049l")
                assert process.wait(T) == 0

    def test_goes_on_through_restarts_and_tells_clusters_of_one_script_apart(self) -> None:
        view = top.View(argparse.Namespace(host=None, port=None, encrypt=False, on=None))
        with Cluster([NodeConfig.local(1)]) as one, Cluster([NodeConfig.local(1)]) as other:
            one.start("tests.work.echo")
            other.start("tests.work.echo")
            view.look()
            assert sum("coordinated by" in line for line in view.lines()) == 2
            os.kill(one.status()[0]["server"]["pid"], signal.SIGKILL)
            poll.until(lambda: one.workers[0].how_it_ended(), timeout_s=T)
            view.look()
            assert sum(" lost " in line for line in view.lines()) == 1
            one.restart([NodeConfig.local(1), NodeConfig.local(1)])
            for _ in range(2):
                view.look()
                assert " lost " not in "\n".join(view.lines())
            assert sum("%" in line for line in view.lines()) == 3

    def test_of_a_server_that_is_not_there_says_so(self) -> None:
        argv = [sys.executable, "-m", "miniray", "top", "localhost", "9"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=T)
        assert (done.returncode, done.stdout) == (1, "")
        assert "cannot connect to localhost:9" in done.stderr

    def test_leaves_no_nvidia_smi_behind_that_does_not_end(self, home: Path) -> None:
        smi = home / "nvidia-smi"
        smi.write_text(
            f"#!/bin/sh\necho $$ > {home}/pid.new\nmv {home}/pid.new {home}/pid\n{FOREVER}"
        )
        smi.chmod(0o700)
        program = (
            "import os, sys, time; from miniray.looking import gpus; gpus.of_process(1)\n"
            f"while not os.path.exists('{home}/pid'): time.sleep(0.01)"
        )
        env = {**os.environ, "PATH": f"{home}:{os.environ['PATH']}"}
        subprocess.run([sys.executable, "-c", program], env=env, timeout=T, check=True)
        processes.wait_until_gone([int((home / "pid").read_text())], timeout_s=T)

    def test_shows_what_a_fake_gpu_holds(self) -> None:
        with Cluster([NodeConfig.local(1)], fake_gpus=True) as cluster:
            (worker,) = cluster.start("tests.hanging.hold_memory")
            assert worker.recv(T) == "holding"
            assert "fake: 3.0 MiB of 64 MiB" in miniray("top")

    def test_shows_what_nvidia_smi_says(self, tmp_path: Path) -> None:
        """A stand-in for it answers, as slowly as it does, and names its parent's children."""
        smi = tmp_path / "bin" / "nvidia-smi"
        smi.parent.mkdir()
        smi.write_text(NVIDIA_SMI.format(python=sys.executable))
        smi.chmod(0o700)
        path = f"{smi.parent}:{os.environ['PATH']}"
        with Cluster([NodeConfig.local(1, env={"PATH": path})]) as cluster:
            (worker,) = cluster.start("tests.work.echo")
            (tmp_path / "pid").write_text(str(worker.pid))

            def shown() -> bool:
                return "1: 93% 1.2 GiB of 80 GiB" in miniray("top")

            poll.until(shown, timeout_s=T)


ENDS = ("sent", "received")
FOREVER = "while true; do sleep 1000; done\n"
NVIDIA_SMI = """#!{python}
import pathlib, sys
if "--query-gpu" in sys.argv[1]:
    print("GPU-aa, 0, 12, 81559\\nGPU-bb, 1, 93, 81559")
else:
    pid = pathlib.Path(sys.argv[0]).parent.with_name("pid").read_text()
    print(f"GPU-bb, {{pid}}, 1262\\nGPU-cc, 1, [N/A]")
"""


@contextlib.contextmanager
def terminal(columns: int, rows: int) -> Iterator[tuple[int, int]]:
    """Yield the two ends of a terminal of a size: ours, and that of the program in it."""
    ours, theirs = pty.openpty()
    set_size(ours, columns, rows)
    try:
        yield ours, theirs
    finally:
        os.close(ours)
        os.close(theirs)


@contextlib.contextmanager
def in_front_of(theirs: int, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command of ours in a terminal."""
    with subprocess.Popen(
        [sys.executable, "-m", "miniray", *words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        preexec_fn=lambda: fcntl.ioctl(theirs, termios.TIOCSCTTY, 0),
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def set_size(ours: int, columns: int, rows: int) -> None:
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))


def read_until(ours: int, what: bytes, end: bytes = b"") -> bytes:
    """Return what a program has written until something is in it, and all up to an end."""
    seen = b""
    while what not in seen or not seen.endswith(end):
        ready, _, _ = select.select([ours], [], [], T)
        assert ready, seen
        seen += os.read(ours, 1 << 16)
    return seen


@pytest.fixture
def way_there(
    home: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[str]]:
    """Yield the words that look on node1, where that home is; from now on we are in another."""
    if reason := ssh.missing():
        pytest.skip(reason)
    force = f'cd {home}; exec env HOME={home} /bin/sh -c "$SSH_ORIGINAL_COMMAND"'
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    with ssh.loopback_nodes(elsewhere, force_command=force) as nodes:
        monkeypatch.setenv("HOME", str(elsewhere))
        yield [*(f"--ssh-option={one}" for one in nodes.ssh_options), "--python", sys.executable]


@pytest.mark.ssh
class TestOnAnotherHost:
    def test_is_seen_what_that_coordinates(
        self, home: Path, way_there: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here = os.environ["HOME"]
        monkeypatch.setenv("HOME", str(home))
        with hung("tests.hanging", "sleep", dict(LOCAL)) as ranks:
            monkeypatch.setenv("HOME", here)
            assert find_clusters() == []
            on_node1 = ["-H", "node1", *way_there]
            verdict = verdict_of(miniray("stacks", *on_node1))
            assert verdict.startswith(f"Rank 2 is behind: it waits at {line_of('sleep')}")
            pids = re.findall(r"(?m)^\d +rank\d +(\d+) +running", miniray("status", *on_node1))
            assert pids == [str(pid) for pid in ranks.pids]
            table = miniray("top", *on_node1).splitlines()
            assert [line.split()[2] for line in table[2:]] == pids
            elsewhere.remember(
                "node1",
                "1",
                "train.py",
                ssh_option=[one.partition("=")[2] for one in way_there[:-2]],
                python=sys.executable,
            )
            with terminal(80, 20) as (ours, theirs):  # which says by now how it is reached
                with in_front_of(theirs, "top", "-H", "node1") as process:
                    read_until(ours, str(ranks.pids[3]).encode())
                    read_until(ours, b"0%")  # the second look
                    os.write(ours, b"q")
                    read_until(ours, b"\x1b[?1049l")
                    assert process.wait(T) == 0

    def test_is_said_if_nothing_runs_there_or_nobody_gets_there(self, way_there: list[str]) -> None:
        for words, said in [
            (["-H", "node1", *way_there], "node1: no cluster runs there"),
            (["-H", "nowhere.invalid"], "nowhere.invalid: ssh exited with status 255"),
        ]:
            for command in ("stacks", "status", "top"):
                argv = [sys.executable, "-m", "miniray", command, *words]
                done = subprocess.run(argv, capture_output=True, text=True, timeout=T)
                assert (done.returncode, done.stdout) == (1, "")
                assert f"miniray {command}: {said}" in done.stderr

    def test_is_where_to_look_if_runs_have_gone_there(self) -> None:
        elsewhere.remember("node1", "1", "train.py", ssh_option=[], python=None)
        options = argparse.Namespace(on=None)
        assert afar.nobody("top", options).endswith(": miniray top -H node1")


class TestARunOfAScript:
    def test_is_found_and_named_by_its_command_line(self, tmp_path: Path) -> None:
        script = tmp_path / "wait.py"
        script.write_text("import time\nprint('waiting', flush=True)\ntime.sleep(600)\n")
        words = [sys.executable, "-m", "miniray", "run", "--local", "2", str(script)]
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            for _ in range(2):
                assert "waiting" in process.stdout.readline()
            poll.until(lambda: "\nRanks 0-1 wait at" in miniray("stacks"), timeout_s=T)
            said = miniray("stacks").splitlines()
            pids = re.findall(r"rank\d +(\d+)", miniray("status"))
            titles = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids]
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=T)
        assert said[0].startswith(f"miniray run --local 2 {script}: 2 ranks (2 on local), ")
        assert said[1].startswith(f"Ranks 0-1 wait at {script}:3 in <module>: `time.sleep(600)`, ")
        expected = [f"miniray rank {rank} of 2: {script}".encode() for rank in range(2)]
        for title, whole in zip(titles, expected, strict=True):
            assert title.rstrip(b"\0") == whole[: len(title) - 1]
