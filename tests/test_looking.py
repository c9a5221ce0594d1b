"""What is concluded from what was seen: stacks of every Python, and who is behind."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from miniray import Cluster, NodeConfig, RemoteWorker
from miniray.crew import Crew
from miniray.looking import gpus, look, show
from miniray.looking.activity import find_activity
from miniray.looking.clusters import RUN, describe, find_clusters
from miniray.looking.glance import duration, in_words
from miniray.looking.seen import Seen
from miniray.looking.stacks import is_complete, read
from miniray.looking.verdict import judge, names

OURS = "/tmp/miniray-abc/miniray"
TORCH = "/usr/lib/python3/dist-packages/torch/distributed"
SERVER = (
    f'  File "{OURS}/worker_server.py", line 198 in run\n  File "<string>", line 1 in <module>\n'
)
USER = "/tmp/miniray-abc/train.py"


def calls(*frames: tuple[str, int, str]) -> str:
    lines = [f'  File "{file}", line {line} in {function}\n' for file, line, function in frames]
    return "Current thread 0x00007f (most recent call first):\n" + "".join(lines) + SERVER


def in_torch(call: str, line: int) -> str:
    return calls(
        (f"{TORCH}/distributed_c10d.py", 3252, call),
        (f"{TORCH}/c10d_logger.py", 83, "wrapper"),
        (USER, line, "step"),
    )


LOOP = calls((USER, 31, "spin"), (USER, 12, "train"))
RECV = calls(
    (f"{OURS}/waiting.py", 106, "wait_until"),
    (f"{OURS}/channel.py", 145, "recv_frame"),
    (f"{OURS}/channel.py", 56, "recv"),
    (USER, 40, "train"),
)


def rank(number: int, stacks: str, state: str = "S", cpu: float = 0.0, **more: Any) -> Seen:
    facts = {"state": state, "stacks": stacks}
    row = {"state": "running", "look": facts, **more}
    seen = Seen(f"rank {number}", "node1", number, 100 + number, row=row, cpu_percent=cpu)
    seen.is_busy = cpu >= 50
    seen.conclude()
    return seen


def coordinator(stacks: str, cpu: float = 0.0) -> Seen:
    seen = rank(0, stacks, cpu=cpu)
    seen.name, seen.rank = "coordinator", None
    return seen


WAITS = [rank(number, in_torch("all_reduce", 40)) for number in (0, 1, 3)]
REST = "ranks 0-1, 3 wait in all_reduce at train.py:40 in step"


class TestStacks:
    def test_have_the_main_thread_first_and_the_innermost_call(self) -> None:
        text = (
            "Thread 0x00007f6d (most recent call first):\n"
            f'  File "{USER}", line 7 in feed\n'
            '  File "/usr/lib/python3.11/threading.py", line 982 in run\n\n' + LOOP
        )
        main, other = read(text)
        assert [str(frame) for frame in main if frame.is_users] == [
            *("train.py:31 in spin", "train.py:12 in train"),
        ]
        assert str(other[0]) == "train.py:7 in feed"

    @pytest.mark.parametrize(
        "head",
        [
            "Current thread 0x00007f6d [MainThread] (most recent call first):",  # of 3.14
            "Thread 0x00007f6d (most recent call first):",
            "Stack (most recent call first):",
        ],
    )
    def test_of_every_python_are_read(self, head: str) -> None:
        (stack,) = read(f"{head}\n  <no Python frame>\n  Garbage-collecting\n" + LOOP[50:])
        assert [frame.line for frame in stack if frame.is_users][-1] == 12

    def test_that_are_cut_off_are_read_as_far_as_they_go(self) -> None:
        for end in range(len(LOOP)):
            read(LOOP[:end])
        assert read(LOOP[: LOOP.index("line 12")])[0][0].line == 31
        assert is_complete(LOOP)
        assert not is_complete(LOOP[:-1])

    @pytest.mark.parametrize(
        ("file", "is_users", "short"),
        [
            (USER, True, "train.py"),
            ("/home/me/.cache/miniray/sync/0a1b-me/src/net.py", True, "src/net.py"),
            ("/home/me/project/net.py", True, "net.py"),
            ("/home/me/project/miniray/worker.py", True, "miniray/worker.py"),
            ("/home/me/project/miniray/examples/pool.py", True, "miniray/examples/pool.py"),
            ("/fast/miniray/sync/0a1b-me/src/net.py", True, "src/net.py"),
            ("/opt/lib/python3.13t/threading.py", False, "threading.py"),
            ("/home/me/project/.venv/bin/miniray", False, ".venv/bin/miniray"),
            ("/home/me/miniray/train.py", True, "/home/me/miniray/train.py"),
            ("/home/me/project/.venv/lib/python3.12/site-packages/a/b.py", False, "a/b.py"),
            ("/usr/lib/python3.11/threading.py", False, "threading.py"),
            (f"{OURS}/channel.py", False, "miniray/channel.py"),
            (f"{OURS}/cli/run_rank.py", False, "cli/run_rank.py"),
            ("<frozen runpy>", False, "<frozen runpy>"),
            ("/home/me/.venv/lib/python3.13t/threading.py", False, "threading.py"),
            ("/data/cache/miniray/sync/0a1b-me/src/net.py", True, "src/net.py"),
            ("/home/me/miniray/examples/pool.py", True, "/home/me/miniray/examples/pool.py"),
            ("<string>", False, "<string>"),
            ("<In[2]>", True, "In[2]"),
        ],
    )
    def test_tell_the_users_calls_from_others(self, file: str, is_users: bool, short: str) -> None:
        ((frame,),) = read(calls((file, 1, "f")).replace(SERVER, ""), "/home/me/project")[:1]
        assert (frame.is_users, frame.short_file) == (is_users, short)

    @pytest.mark.parametrize("root", ["/tmp", "/"])
    def test_of_ours_are_never_the_users_because_of_where_he_started(self, root: str) -> None:
        """Containers start in /, and below that is the code that was sent to a node, too."""
        sent = "/tmp/miniray-0a_b1c2d/miniray"
        for file in (f"{sent}/waiting.py", f"{sent}/cli/run_rank.py"):
            assert read(calls((file, 1, "f"), (USER, 2, "g")), root)[0][0].is_ours
        recv = calls(
            (f"{sent}/waiting.py", 9, "wait"), (f"{sent}/channel.py", 8, "recv"), (USER, 2, "g")
        )
        does = find_activity(read(recv, root), is_busy=False)
        assert (does.kind, str(does.place).rpartition("/")[2]) == ("recv", "train.py:2 in g")

    def test_know_where_the_rank_has_miniray_from(self) -> None:
        seen = rank(0, calls(("/home/me/project/miniray/worker.py", 3, "mine")))
        seen.facts["package"] = "/opt/lib/miniray"
        seen.conclude("/home/me/project")
        assert str(seen.does.place) == "miniray/worker.py:3 in mine"


class TestAVerdict:
    @pytest.mark.parametrize(
        ("culprit", "says"),
        [
            (
                rank(2, LOOP, "R", 99.0),
                f"rank 2 is behind: it runs at train.py:31 in spin, while {REST}",
            ),
            (
                rank(2, LOOP),
                "rank 2 is behind: it waits at train.py:31 in spin, and uses no CPU, while " + REST,
            ),
            (
                rank(2, RECV),
                f"rank 2 is behind: it waits for a message at train.py:40 in train, while {REST}",
            ),
            (
                rank(2, LOOP, "T"),
                f"rank 2 is behind: it is stopped at train.py:31 in spin, while {REST}",
            ),
            (
                rank(2, LOOP, "t"),
                "rank 2 is behind: it is traced by a debugger at train.py:31 in spin, while "
                + REST,
            ),
            (
                rank(2, "", "D"),
                "rank 2 is behind: it waits in the kernel, which no signal ends (for a disk, or a "
                f"file system's server), while {REST}",
            ),
            (
                rank(2, in_torch("barrier", 44)),
                "rank 2 is in another call than the others: it waits in barrier at train.py:44 in "
                f"step, while {REST}",
            ),
            (rank(2, "", exit_code=0), ""),
        ],
    )
    def test_names_who_is_not_where_the_others_wait(self, culprit: Seen, says: str) -> None:
        if not says:
            culprit.row["state"] = "ended"
            culprit.conclude()
            says = f"rank 2 is behind: it returned, while {REST}"
        verdict = judge([*WAITS[:2], culprit, WAITS[2]], None)
        assert verdict.text == says
        assert verdict.behind == ("rank 2",)

    def test_names_who_does_not_say_where_it_is_if_others_wait_for_it(self) -> None:
        silent = rank(2, "")
        silent.row["look"]["why_silent"] = "process 7 is debugging it"
        silent.conclude()
        says = "rank 2 is behind: it does not say where it is (process 7 is debugging it), while "
        assert judge([*WAITS, silent], None).text == says + REST
        waiting = [rank(one, RECV) for one in (0, 1)]
        wait = "ranks 0-1 wait for a message at train.py:40 in train"
        assert judge([*waiting, silent], coordinator(RECV)).text == says + wait
        assert judge([*waiting, silent], coordinator(LOOP, 99.0)).behind == ("coordinator",)
        assert judge([*WAITS, silent, rank(4, LOOP, "R", 99.0)], None).behind == (
            *("rank 4", "rank 2"),
        )

    def test_tells_the_end_of_each_and_begins_with_the_first(self) -> None:
        dead = [
            rank(one, "", exit_code=code, ended=how, ended_s_ago=ago)
            for one, code, how, ago in [
                (2, 3, "exited with status 3", 1.0),
                (5, -9, "was killed by SIGKILL", 2.0),
            ]
        ]
        for one in dead:
            one.row["state"] = "ended"
            one.conclude()
        assert judge([*WAITS, *dead], None).text == (
            f"rank 5 is behind: it was killed by SIGKILL; so is rank 2, while {REST}"
        )

    def test_begins_with_who_has_died(self) -> None:
        dead = rank(2, "", exit_code=-9, ended="was killed by SIGKILL")
        dead.row["state"] = "ended"
        dead.conclude()
        verdict = judge([*WAITS, dead, rank(4, LOOP, "R", 99.0)], None)
        assert verdict.text == f"rank 2 is behind: it was killed by SIGKILL, while {REST}"

    def test_of_two_ranks_that_wait_for_each_other_names_both(self) -> None:
        pair = [rank(4, in_torch("recv", 50)), rank(5, in_torch("recv", 52))]
        verdict = judge([*WAITS, *pair], None)
        assert verdict.text == (
            "ranks 4-5 wait in recv for each other, and nobody sends: "
            "rank 4 at train.py:50 in step, rank 5 at train.py:52 in step"
        )
        nowhere = "Current thread 0x00007f (most recent call first):\n"
        nowhere += f'  File "{TORCH}/distributed_c10d.py", line 1 in recv\n'
        assert judge([rank(4, nowhere + SERVER)], None).text.endswith(
            "nobody sends: rank 4 outside of the user's code"
        )
        sender = rank(6, in_torch("send", 60))
        assert "for each other" not in judge([*pair, sender], None).text
        # Somebody who runs may yet send.
        assert judge([*pair, rank(6, LOOP, "R", 99.0)], None).behind == ("rank 6",)

    def test_says_so_if_nobody_is_behind(self) -> None:
        verdict = judge(WAITS, None)
        assert verdict.text == f"{REST}: none is behind, as far as stacks tell"
        assert verdict.behind == ()
        loops = [rank(one, LOOP, "R", 99.0) for one in range(3)]
        assert (
            judge(loops, None).text
            == "ranks 0-2 run at train.py:31 in spin: none waits for another"
        )
        elsewhere = LOOP.replace("line 31", "line 35")
        others = [*loops, *(rank(one, elsewhere, "R", 99.0) for one in (3, 4, 5))]
        assert judge(others, None).text.endswith("run, each on its own: none waits for another")

    def test_names_who_is_elsewhere_if_nobody_is_seen_to_wait(self) -> None:
        """With NCCL a rank waits at whatever wants to see a result, and may keep a core busy."""
        item = calls((USER, 40, "step"))
        ranks = [rank(one, LOOP if one == 2 else item, "R", 99.0) for one in range(4)]
        verdict = judge(ranks, None)
        assert verdict.behind == ("rank 2",)
        assert verdict.text == (
            "rank 2 is elsewhere than the others: it runs at train.py:31 in spin, while "
            "ranks 0-1, 3 run at train.py:40 in step"
        )

    def test_looks_at_the_coordinator_if_all_wait_for_it(self) -> None:
        ranks = [rank(one, RECV) for one in range(2)]
        wait = "ranks 0-1 wait for a message at train.py:40 in train"
        assert judge(ranks, coordinator(RECV)).text == (
            "the coordinator and ranks 0-1 wait for each other: it waits in recv at train.py:40 in "
            f"train, and {wait}"
        )
        assert judge(ranks, coordinator(LOOP, 99.0)).text == (
            f"the coordinator is behind: it runs at train.py:31 in spin, while {wait}"
        )
        assert judge(ranks, None).text == f"{wait}; where the coordinator is, it does not say"

    def test_sees_a_collective_in_another_thread(self) -> None:
        """Gradients are reduced in a thread of autograd's, and the main thread waits for that."""
        engine = calls(
            (f"{TORCH}/../autograd/graph.py", 824, "_engine_run_backward"), (USER, 9, "f")
        )
        thread = (
            in_torch("all_gather_into_tensor", 30).replace(SERVER, "").replace("Current t", "T")
        )
        does = find_activity(read(f"{thread}\n{engine}"), is_busy=False)
        assert (does.kind, does.call) == ("collective", "all_gather_into_tensor")

    def test_sees_that_gradients_are_waited_for(self) -> None:
        """DDP reduces them in C++, so nothing else of Python's is there to be seen."""
        graph, wait = f"{TORCH}/../autograd/graph.py", (USER, 9, "step")
        backward = calls((graph, 824, "_engine_run_backward"), wait)
        does = find_activity(read(backward), is_busy=False)
        assert (does.kind, does.call) == ("collective", "backward")
        assert find_activity(read(backward), is_busy=True).kind == "busy"
        ahead = rank(2, in_torch("barrier", 40))
        verdict = judge([rank(0, backward), rank(1, backward), ahead], None)
        assert verdict.behind == ("rank 2",)
        assert "another call than the others: it waits in barrier at" in verdict.text
        assert "while ranks 0-1 wait in backward at train.py:9 in step" in verdict.text

    def test_counts_in_words(self) -> None:
        assert names([rank(one, LOOP) for one in (5, 0, 1, 2)]) == "ranks 0-2, 5"
        assert names([rank(7, LOOP)]) == "rank 7"


@pytest.mark.parametrize("width", [40, 80, 200])
def test_what_is_shown_keeps_to_the_terminals_width(width: int) -> None:
    everybody = [*WAITS, rank(2, LOOP * 1, "R", 99.0), coordinator(RECV)]
    text = show.as_text("Rank 2 is behind: " + "words " * 40, everybody, width)
    assert max(map(len, text.splitlines())) <= width
    assert "train.py:31 in spin" in text


@pytest.mark.parametrize("width", [40, 80])
def test_a_long_path_loses_its_beginning_and_never_the_line(width: int) -> None:
    file = "/home/me/experiments/language/2026-11-26/a-run-of-many-words/net/train.py"
    text = show.as_text("Rank 2 is behind.", [rank(2, calls((file, 31, "spin")))], width)
    assert "net/train.py:31 in spin" in text
    assert max(map(len, text.splitlines())) <= width


def test_into_a_file_go_whole_lines() -> None:
    file = "/home/me/" + "experiments/" * 20 + "train.py"
    code = (
        "from miniray.looking.look import Look\n"
        "from tests.test_looking import calls, rank\n"
        f"print(Look('', [rank(2, calls(({file!r}, 31, 'spin')))], None))"
    )
    environment = {name: text for name, text in os.environ.items() if name != "COLUMNS"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert f"{file}:31 in spin" in done.stdout


def test_an_html_page_takes_nothing_for_markup() -> None:
    seen = rank(2, calls(("/home/me/<b>.py", 1, "<lambda>")))
    page = show.as_html("<i>", [seen])
    assert "<i>" not in page
    assert "<lambda>" not in page
    assert "&lt;lambda&gt;" in page


def test_a_call_that_is_too_long_loses_its_folders_and_not_its_line() -> None:
    deep = f"experiments/{'language_models/' * 4}train.py"
    seen = rank(2, calls((f"/tmp/miniray-abc/{deep}", 36, "step_of_the_optimizer")))
    lines = show.as_text("", [seen], 40).splitlines()
    assert any(line.endswith("train.py:36 in step_of_the_optimizer") for line in lines)
    whole = show.as_text("", [seen], 40, show.NO_LIMIT)
    assert f"    {deep}:36 in step_of_the_optimizer\n" in f"{whole}\n"


def test_a_command_line_is_shown_without_the_values_of_variables() -> None:
    command = ["/x/miniray", "run", "--env", "TOKEN=t0p", "--env=KEY=t0p", "--env", "A", "a b\n.py"]
    nodes = [{"node": "local", "ranks": 1}]
    shown = describe({"work": RUN, "command": command, "nodes": nodes, "pid": 7})
    assert shown == (
        "miniray run --env TOKEN=... --env=KEY=... --env A 'a b?.py': 1 rank (1 on local), "
        "coordinated by pid 7"
    )


def test_the_title_of_a_partial_keeps_its_arguments_for_itself() -> None:
    program = (
        "import functools, statistics; from miniray.title import set_title\n"
        "set_title('me', functools.partial(statistics.mean, data='t0p'))\n"
        "print(open('/proc/self/cmdline').read().rstrip(chr(0)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "miniray me: statistics.mean\n", done.stderr


class TestGPUs:
    def test_are_found_by_process(self) -> None:
        text = "GPU-a, 0, 12, 81559\nGPU-b, 1, [N/A], [N/A]\n\nGPU-b, 17, 300\nGPU-a, 18, [N/A]\n"
        assert gpus.parse(text) == {
            17: {"index": "1", "percent": None, "total_mib": None, "used_mib": 300},
            18: {"index": "0", "percent": 12, "total_mib": 81559, "used_mib": None},
        }

    @pytest.mark.parametrize(
        "text",
        ["", "\n\n", "NVIDIA-SMI has failed because it couldn't communicate", "GPU-a\n\n1,2,3"],
    )
    def test_that_do_not_answer_are_none(self, text: str) -> None:
        assert gpus.parse(text) == {}


@pytest.mark.parametrize(
    ("nbytes", "words"),
    [(None, "-"), (0, "0 B"), (999, "999 B"), (1000, "1.0 KiB"), (312 << 20, "312 MiB")],
)
def test_bytes_are_written_as_people_do(nbytes: int | None, words: str) -> None:
    assert in_words(nbytes) == words


def test_durations_are_written_as_people_do() -> None:
    assert [duration(one) for one in (0.04, 8.25, 61, 130, 9000)] == [
        *("0.0 s", "8.2 s", "61 s", "2 min", "2 h"),
    ]


class TestReprs:
    @pytest.mark.parametrize(
        ("node", "shown"),
        [
            (NodeConfig("node1"), "NodeConfig(host='node1')"),
            (
                NodeConfig("node1", 4, tunnel=True, env={"TOKEN": "secret"}),
                "NodeConfig(host='node1', num_workers=4, env={'TOKEN': '...'}, tunnel=True)",
            ),
            (NodeConfig.local(2), "NodeConfig.local(num_workers=2)"),
        ],
    )
    def test_of_a_node_says_what_is_not_as_usual(self, node: NodeConfig, shown: str) -> None:
        assert repr(node) == shown

    def test_of_a_cluster_says_how_it_is(self) -> None:
        cluster = Cluster([NodeConfig.local(2, host="a"), NodeConfig.local(1, host="b")])
        assert repr(cluster) == "<Cluster of 3 ranks (2 on a, 1 on b): not started>"
        assert "<td>not started</td>" in cluster._repr_html_()
        with cluster:
            workers = cluster.start("tests.work.obey")
            assert repr(cluster).endswith(" (2 on a, 1 on b): running tests.work.obey>")
            assert f"<td>2</td><td>b</td><td>{workers[2].pid}</td>" in cluster._repr_html_()
            workers[1].send("return")
            workers[1].wait(30.0)
            with pytest.raises(Exception, match="work function returned"):
                workers[1].recv(30.0)
            assert "running tests.work.obey, but 1 ended, first rank 1 at a:" in repr(cluster)
        assert repr(cluster).endswith("not started>")

    def test_of_ranks_that_came_by_themselves_says_where_they_are(self) -> None:
        crew = Crew()
        assert repr(crew) == "<Crew of 0 ranks: not started>"
        crew.workers += [cast(RemoteWorker, SimpleNamespace(host="a", pid=1, ended=None))] * 2
        crew.workers[1] = cast(RemoteWorker, SimpleNamespace(host="b", pid=2, ended=TimeoutError()))
        assert repr(crew) == (
            "<Crew of 2 ranks (1 on a, 1 on b): running, but 1 ended, first TimeoutError>"
        )
        assert "<td>1</td><td>b</td><td>2</td><td>TimeoutError</td>" in crew._repr_html_()
        with pytest.raises(RuntimeError, match="another launcher keeps have no server to ask"):
            crew.stacks()


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (["--env", "TOKEN=secret", "train.py"], "miniray run --env TOKEN=... train.py"),
        (["--env=TOKEN=secret", "train.py"], "miniray run --env=TOKEN=... train.py"),
        (["train.py", "two words\n"], "miniray run train.py 'two words?'"),
    ],
)
def test_a_command_is_shown_without_its_variables(command: list[str], shown: str) -> None:
    node = {"node": "a", "ranks": 1}
    command = ["/usr/bin/miniray", "run", *command]
    cluster = {"work": RUN, "nodes": [node], "pid": 7, "command": command}
    assert describe(cluster) == f"{shown}: 1 rank (1 on a), coordinated by pid 7"


def test_without_a_home_no_cluster_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("miniray.looking.clusters.folder_of_notices", no_home)
    assert find_clusters() == []


def test_a_title_has_no_arguments_of_a_partials() -> None:
    code = (
        "from functools import partial\n"
        "from pathlib import Path\n"
        "from miniray.title import set_title\n"
        "set_title('worker 1', partial(print, token='secret'))\n"
        "print(Path('/proc/self/cmdline').read_bytes())"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("b'miniray worker 1: builtins.print\\x00")


def test_a_cell_of_this_process_is_called_as_ipython_calls_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled = SimpleNamespace(_filename_map={"/tmp/ipykernel_7/12.py": 3})
    shell = SimpleNamespace(compile=compiled)
    stand_in = SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", stand_in)
    assert look._name_of("/tmp/ipykernel_7/12.py") == "<In[3]>"
    assert look._name_of(__file__) == __file__
