"""Notebooks, with a real kernel: what cells define, print and leave when they are interrupted."""

import json
import os
import signal
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import processes, ssh
from tools.kernel import Kernel, Ran
from tools.site import blocks, notebooks

pytest.importorskip("ipykernel")
pytest.importorskip("jupyter_client")

pytestmark = pytest.mark.thorough


class Notebook:
    """A kernel whose cells are written as a test's text is, and may not fail unless it says so."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def run(self, cell: str, *, interrupt_at: str = "") -> Ran:
        return self.kernel.run(textwrap.dedent(cell), interrupt_at=interrupt_at)

    def out(self, cell: str) -> str:
        """Return what a cell prints; it must not fail."""
        ran = self.run(cell)
        assert ran.error == "", ran
        return ran.stdout

    def error(self, cell: str) -> str:
        return self.run(cell).error


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    folder = tmp_path_factory.mktemp("kernel")
    (folder / "helper.py").write_text("def triple(number):\n    return 3 * number\n")
    with Kernel(folder) as kernel:
        yield kernel


CALL = "with Worker() as worker:\n    worker.call({})"
IMPORTS = "from miniray import Cluster, NodeConfig, Worker, wait, as_completed"


@pytest.fixture
def notebook(kernel: Kernel) -> Iterator[Notebook]:
    """A notebook in which nothing has been run but the imports; its cluster is not started yet.

    Its nodes work elsewhere, and find no file of the notebook's there.
    """
    notebook = Notebook(kernel)
    kernel.run("%reset -f")
    notebook.out(
        f"{IMPORTS}\ncluster = Cluster([NodeConfig.local(2, workdir='/')], start_timeout=60)"
    )
    yield notebook
    notebook.out("cluster.stop()")


class TestText:
    def test_a_cells_function_starts_on_a_cluster(self, notebook: Notebook) -> None:
        notebook.out("""
            import helper

            N = 2

            def scale(number):
                return helper.triple(number) * N

            def work(channel):
                for message in channel:
                    channel.send(scale(message))
        """)
        talk = """
            for worker in cluster.start({}):
                worker.send(7)
                print(worker.recv(20))
            cluster.stop()
        """
        assert notebook.out(talk.format("work")) == "42\n42\n"
        assert notebook.out(talk.format("'__main__.work'")) == "42\n42\n"
        notebook.out("def scale(number):\n    return number + N")
        assert notebook.out(talk.format("work")) == "9\n9\n"

    def test_what_a_call_names_goes_along_and_a_cell_that_is_run_again_is_what_runs(
        self, notebook: Notebook
    ) -> None:
        notebook.out("""
            import enum, math, functools
            import xml.etree.ElementTree
            from dataclasses import dataclass
            from math import floor as down
            from typing import NamedTuple

            LIMITS = (1.5, float("inf"), ("a", None))
            root = math.sqrt

            class Color(enum.Enum):
                RED = 1

            class Pair(NamedTuple):
                one: int
                other: int

            @dataclass
            class Config:
                rate: float = 0.5

                @property
                def double(self):
                    return Config(2 * self.rate)

            class Fine(Config):
                pass

            @functools.lru_cache
            def is_even(number):
                return number == 0 or is_odd(number - 1)

            def is_odd(number):
                return number != 0 and is_even(number - 1)

            if True:
                def inner():
                    return '''one
            other'''

            def everything(config: Config, pair=Pair(1, 2)):
                tree = xml.etree.ElementTree.fromstring("<a/>")
                assert isinstance(config, Config) and inner() == "one\\nother"
                names = [Color.RED, type(pair), type(Fine()).__mro__[1] is Config]
                numbers = [down(root(10)), is_even(4), [limit for limit in LIMITS], tree.tag]
                return config.double, names[0], names[2], numbers
        """)
        said = "[Config(rate=1.0), <Color.RED: 1>, True, [3, True, [1.5, inf, ('a', None)], 'a']]"
        assert notebook.out("print(list(cluster.run(everything, Config())[1]))") == f"{said}\n"
        # Another function, and a class that the nodes do not have yet.
        notebook.out("""
            @dataclass
            class Other:
                number: int

            def add(other: Other):
                return other.number + BIAS

            BIAS = 10
        """)
        assert notebook.out("print(cluster.run(add, Other(1)))") == "[11, 11]\n"
        assert notebook.out("BIAS = 20\nprint(cluster.run(add, Other(1)))") == "[21, 21]\n"
        assert (
            notebook.out("print(list(cluster.map(add, map(Other, range(3)))))") == "[20, 21, 22]\n"
        )
        notebook.out("""
            @dataclass
            class Other:
                number: int
                factor: int = 3

            def add(other: Other):
                return other.number * other.factor
        """)
        assert notebook.out("print(cluster.run(add, Other(2)))") == "[6, 6]\n"

    def test_a_function_that_was_written_after_the_worker_was_forked(
        self, notebook: Notebook
    ) -> None:
        notebook.out("def first():\n    pass\nworker, _ = Worker(), cluster.run(first)")
        notebook.out("from miniray.extras import aio\ndef double(number):\n    return 2 * number")
        try:
            assert notebook.out("print(worker.call(double, 1))") == "2\n"
            notebook.out("def triple(number):\n    return 3 * number")
            assert notebook.out("print(await aio.call(worker, triple, 2))") == "6\n"
        finally:
            notebook.out("worker.close()")
        assert notebook.out("print(list(cluster.map(triple, [3, 4])))") == "[9, 12]\n"

    def test_a_worker_keeps_what_its_function_keeps(self, notebook: Notebook) -> None:
        notebook.out("""
            seen = None

            def remember(number):
                global seen
                seen = (seen or ()) + (number,)
                return seen

            def another(number):
                return number
        """)
        calls = """
            with Worker() as worker:
                worker.call(remember, 1), worker.call(another, 1)
                print(worker.call(remember, 2))
        """
        assert notebook.out(calls) == "(1, 2)\n"

    def test_what_does_not_go_is_refused_by_its_name(self, notebook: Notebook) -> None:
        notebook.out("table, mark = {}, lambda function: function\ndef f():\n    return table")
        notebook.out("def g():\n    !ls")
        notebook.run("%%time\ndef h(): pass")
        notebook.out("import helper, importlib\nfrom helper import triple as k")
        notebook.out("importlib.reload(helper)\ndef i():\n    k")
        for name, said in {
            "f": "f, which names table: a dict stays here; pass it as an argument, send it, or",
            "g": "g, which names get_ipython: a method stays here; pass it",
            "h": "h: its text is not known: a call made it, or a plain prompt, a -c, or %%time's",
            "i": "i, which names k: it is not in helper any more; import or make it anew",
        }.items():
            for start in ("cluster.start({})", "cluster.run({})", CALL):
                error = notebook.error(start.format(name))
                assert error.startswith(f"TypeError: cannot send {said}")

    def test_constants_are_there_what_they_are_here(self, notebook: Notebook) -> None:
        pytest.importorskip("torch")
        notebook.out("""
            import re
            from functools import partial
            from pathlib import Path
            from typing import Generic, NamedTuple, TypeVar
            import numpy as np
            import torch

            T, Batch = TypeVar("T"), dict[str, torch.Tensor]
            class Box(Generic[T]):
                pass
            class Point(NamedTuple):
                x: int
                y: int
            DATA, WORD, ORIGIN = Path("data"), re.compile("a+"), Point(1, 2)
            device, dtype, FLOAT = torch.device("cpu"), torch.half, np.dtype("float32")
            ones = partial(torch.ones, 2, dtype=dtype)

            def f(batch: Batch) -> list[Path]:
                assert isinstance(DATA, Path) and Box.__parameters__ == (T,) and dtype is torch.half
                assert type(ORIGIN) is Point and FLOAT == np.float32
                assert device == torch.device("cpu")
                return [DATA / "a", WORD.findall("baa"), ORIGIN, ones(device=device), str(Batch)]
        """)
        there = notebook.out("print(cluster.run(f, {}))")
        assert there == notebook.out("print([f({})] * 2)")
        with_worker = "with Worker() as worker:\n    print([worker.call(f, {})] * 2)"
        assert notebook.out(with_worker) == there
        notebook.out("w = torch.ones(2)\ndef g():\n    return w")
        assert "g, which names w: a Tensor stays here; pass it" in notebook.error("cluster.run(g)")

    def test_what_is_refused_stops_nothing(self, notebook: Notebook) -> None:
        notebook.out("def f(number):\n    return number\ntable = {}\ndef g(number): table")
        notebook.out("cluster.run(f, 1)\npids = [worker.pid for worker in cluster.workers]")
        for call in ("cluster.run(g, 1)", "cluster.map(g, [1])", "cluster.as_completed(g, [1])"):
            assert "g, which names table: a dict stays here" in notebook.error(call)
        assert notebook.out("print(list(cluster.map(f, [1, 2])))") == "[1, 2]\n"
        assert notebook.out("print(pids == [worker.pid for worker in cluster.workers])") == "True\n"

    def test_a_module_that_is_new_is_missed_by_its_name(self, notebook: Notebook) -> None:
        notebook.out("def f():\n    pass\ncluster.run(f)")
        notebook.out("import helper\ndef g():\n    return helper.triple(1)")
        said = "ImportError: No module named 'helper'; modules go along when a cluster starts"
        assert said in notebook.error("cluster.run(g)")
        assert notebook.out("print(cluster.run(g))") == "[3, 3]\n"  # the error has stopped it

    def test_the_class_goes_that_a_cell_has_made(self, notebook: Notebook) -> None:
        """Python does not know which cell that is: it is asked of IPython, cell by cell."""
        cell = "{}\nfrom pathlib import Path\nclass Holds:\n    where = Path('{}')\n"
        notebook.out(f"%matplotlib --list\n{cell.format('', 'right')}")
        notebook.out("def f():\n    return str(Holds.where)")
        notebook.error(cell.format("1 / 0", "wrong"))
        notebook.error(cell.format("1 +", "wrong"))
        notebook.run(f"%%script true\n{cell.format('', 'wrong')}")
        notebook.run("def other():\n    class Holds:\n        where = 'wrong'")
        assert notebook.out("print(f(), cluster.run(f))") == "right ['right', 'right']\n"
        for one, magic in enumerate(["", "%%capture"]):
            notebook.out(f"{magic}\n{cell.format('', one)}")
            assert notebook.out("print(f(), cluster.run(f))") == f"{one} ['{one}', '{one}']\n"
        run = "print(f(), cluster.run(f))"
        assert notebook.out(f"{cell.format('', 'this')}\n{run}") == "this ['this', 'this']\n"

    def test_a_class_that_is_older_than_the_import(self, notebook: Notebook) -> None:
        cell = "class Older:\n    where = print if {} else None"
        notebook.out(cell.format(1))
        notebook.out("def f():\n    return Older.where is print")
        notebook.out("import importlib, miniray.definitions, miniray.cells")
        notebook.out("for one in miniray.definitions, miniray.cells:\n    importlib.reload(one)")
        notebook.out("worker = Worker()")
        assert notebook.out("print(worker.call(f))") == "True\n"
        notebook.error(f"1 / 0\n{cell.format(0)}")
        said = "TypeError: cannot send f, which names Older: more than one text defines it"
        assert notebook.error("worker.call(f)").startswith(said)
        again = f"{cell.format(0)}\nprint(worker.call(f))\nworker.close()"
        assert notebook.out(again) == "False\n"

    def test_a_traceback_shows_the_cell_and_the_line(self, notebook: Notebook) -> None:
        notebook.out("print(len(In) - 1)")
        number = int(notebook.out("print(len(In))"))
        notebook.out("# the cell\n\ndef fail():\n    # two lines above\n    raise ValueError(3)")
        trace = notebook.error("cluster.run(fail)")
        assert f'File "<In[{number}]>", line 5, in fail\n    raise ValueError(3)' in trace

    def test_an_annotation_that_is_not_evaluated(self, notebook: Notebook) -> None:
        notebook.out("from __future__ import annotations\ndef f() -> Later:\n    return 1")
        assert notebook.out("print(cluster.run(f))") == "[1, 1]\n"


ECHO = """
    import os, time

    def echo(channel):
        for message in channel:
            channel.send(message)
"""


class TestInterrupts:
    @pytest.mark.parametrize(
        "waits", ["worker.recv()", "ranks[1].recv()", "wait(ranks)", "cluster.gather()"]
    )
    def test_a_wait_is_broken_off_and_all_stays_usable(
        self, notebook: Notebook, waits: str
    ) -> None:
        notebook.out(ECHO)
        notebook.out("worker, ranks = Worker(echo), cluster.start(echo)")
        ran = notebook.run(f"print('waiting', flush=True)\n{waits}", interrupt_at="waiting")
        assert ran.error == "KeyboardInterrupt: "
        said = notebook.out("""
            for one in (worker, *ranks):
                one.send(1)
                print(one.recv(20))
            worker.close()
        """)
        assert said == "1\n1\n1\n"

    def test_a_call_on_all_ranks_ends_them_and_the_next_starts_them(
        self, notebook: Notebook
    ) -> None:
        notebook.out("""
            import time

            def sleep(seconds):
                print(f"asleep for {seconds} s")
                time.sleep(seconds)
        """)
        notebook.out("cluster.run(sleep, 0)\npids = [worker.pid for worker in cluster.workers]")
        # What a rank prints is on stderr, behind its name.
        ran = notebook.run("cluster.run(sleep, 100)", interrupt_at="asleep for 100 s")
        assert ran.error == "KeyboardInterrupt: "
        pids = notebook.out("print(*pids)").split()
        processes.wait_until_gone(map(int, pids), timeout_s=20.0)
        assert notebook.out("print(cluster.run(sleep, 0))") == "[None, None]\n"

    def test_a_start_that_is_interrupted_leaves_nothing(
        self, notebook: Notebook, tmp_path: Path
    ) -> None:
        (tmp_path / "slow.py").write_text(
            "import os, sys, time\nif 'MINIRAY_IMPORTING' in os.environ:\n"
            "    print('imports', file=sys.stderr, flush=True)\n    time.sleep(100)\n"
        )
        notebook.out(f"import sys\nsys.path.append({str(tmp_path)!r})\nimport slow")
        notebook.out("def work(channel):\n    slow\nimport psutil")
        ran = notebook.run("cluster.start(work)", interrupt_at="imports")
        assert ran.error == "KeyboardInterrupt: "
        assert notebook.out("print(psutil.Process().children(recursive=True))") == "[]\n"

    def test_a_worker_goes_on_and_can_be_closed(self, notebook: Notebook) -> None:
        notebook.out("def busy(channel):\n    channel.send(1)\n    while True:\n        pass")
        notebook.out("worker = Worker(busy)\nprint(worker.recv(20))")
        ran = notebook.run("print('waits', flush=True)\nworker.recv()", interrupt_at="waits")
        assert ran.error == "KeyboardInterrupt: "
        assert notebook.out("print(worker.is_alive())\nworker.close(1)") == "True\n"
        assert notebook.out("print(worker.how_it_ended().signal)") == "15\n"


class TestPrints:
    def test_what_workers_print_is_shown(self, notebook: Notebook) -> None:
        ran = notebook.run("""
            import logging, sys
            logging.basicConfig(level="INFO", force=True)

            def talk(channel):
                print("to stdout")
                print("to stderr", file=sys.stderr)
                logging.info("to a logger")
                sys.stdout.writelines(["a", " line\\n"])
                channel.send("done")

            with Worker(talk) as worker:
                worker.recv(20)
            rank = cluster.start(talk)[0]
            rank.recv(20), rank.wait(20)
        """)
        assert ran.error == ""
        # What a pipe brings is shown when the kernel's thread has read it: in this cell or later.
        later = notebook.run("cluster.stop()")
        stdout, stderr = ran.stdout + later.stdout, ran.stderr + later.stderr
        assert "to stdout\na line\n" in stdout
        assert "to stderr\nINFO:root:to a logger\n" in stderr
        assert "[local:rank0] to stdout\n" in stderr
        assert "[local:rank0] a line\n" in stderr

    def test_no_lock_of_the_kernels_is_in_the_way(self, notebook: Notebook) -> None:
        notebook.out("""
            import os, sys, threading, time

            def hold_the_lock():
                def hold():
                    with sys.stdout._buffer_lock:
                        has_it.set()
                        time.sleep(1)
                has_it = threading.Event()
                threading.Thread(target=hold).start()
                has_it.wait()

            os.register_at_fork(before=lambda: hold_the_lock() if holds else None)

            def talk(channel):
                print("talks", flush=True)
                channel.send("has talked")
        """)
        cell = """
            holds = True
            try:
                with Worker(talk) as worker:
                    print(worker.recv(20))
            finally:
                holds = False
        """
        assert "has talked" in notebook.out(cell)

    def test_a_worker_that_asks_has_nobody_to_ask(self, notebook: Notebook) -> None:
        notebook.out("def ask(channel):\n    channel.send(input('name? '))")
        error = notebook.error("with Worker(ask) as worker:\n    worker.recv(20)")
        assert "raised EOFError: a worker has nobody to ask; send what it needs" in error


class TestForks:
    def test_a_worker_multiplies_matrices_after_the_notebook_did(self, notebook: Notebook) -> None:
        pytest.importorskip("torch")
        notebook.out("""
            import torch
            torch.set_num_threads(2)
            a = torch.ones(1000, 1000)
            (a @ a).sum()

            def multiply(channel):
                channel.send((a @ a).sum().item())  # `a` is here: a fork has all that there was

            with Worker(multiply) as worker:
                total = worker.recv(20)
        """)
        assert notebook.out("print(total)") == "1000000000.0\n"

    def test_after_cuda_was_initialised_it_says_what_to_do(self, notebook: Notebook) -> None:
        pytest.importorskip("torch")
        notebook.out(ECHO)
        notebook.out("import torch\nis_initialized = torch.cuda.is_initialized")
        notebook.out("torch.cuda.is_initialized = lambda: True")
        error = notebook.error("Worker(echo)")
        assert error.startswith("RuntimeError: cannot fork: CUDA is initialised in this process")
        assert "restart the kernel" in error
        # As it says: a cluster's workers are not forked from the kernel.
        notebook.out("ranks = cluster.start(echo)\nranks[0].send(1)\nranks[0].recv(20)")
        notebook.out("torch.cuda.is_initialized = is_initialized")

    def test_asyncio_goes_on_while_workers_work(self, notebook: Notebook) -> None:
        notebook.out(ECHO)
        said = notebook.out("""
            import asyncio
            from miniray.extras import aio

            worker, ticks = Worker(echo), 0

            async def tick():
                global ticks
                while True:
                    ticks += 1
                    await asyncio.sleep(0)

            ticking = asyncio.create_task(tick())
            for number in range(3):
                answer, before = asyncio.create_task(aio.recv(worker, timeout=20)), ticks
                while ticks < before + 3:  # before there is anything to receive
                    await asyncio.sleep(0)
                worker.send(number)
                print(await answer)
            ticking.cancel()
            worker.close()
        """)
        assert said == "0\n1\n2\n"


@pytest.mark.ssh
class TestEnds:
    """What a kernel's end leaves: nothing, on no node, whatever way it goes."""

    @pytest.mark.parametrize("way", ["restart", "shut down", "SIGKILL"])
    def test_nothing_is_left(
        self, tmp_path: Path, loopback_sshd: ssh.LoopbackNodes, way: str
    ) -> None:
        with Kernel(tmp_path) as kernel:
            notebook = Notebook(kernel)
            notebook.out(f"{IMPORTS}\n{textwrap.dedent(ECHO)}")
            notebook.out("""
                def all_above(channel):
                    pids = [os.getpid()]
                    for _ in range(2):
                        stat = open(f"/proc/{pids[-1]}/stat").read()
                        pids.append(int(stat.rpartition(")")[2].split()[1]))
                    channel.send(pids)
                    time.sleep(100)
            """)
            started = f"""
                options = {loopback_sshd.ssh_options!r}
                node = NodeConfig("node1", 2, python={sys.executable!r}, ssh_options=options)
                cluster = Cluster([node], start_timeout=60)
                ranks = cluster.start(all_above)
                worker = Worker(all_above)
                there = [pid for rank in ranks for pid in rank.recv(20)]
                here = worker.recv(20)[:1]
                print(*there, *here)
            """
            pids = {*map(int, notebook.out(started).split())}
            assert len(pids) >= 5  # two ranks, their server, their keeper, the worker
            if way == "restart":
                kernel.restart()
                assert notebook.out("print(1)") == "1\n"
            elif way == "shut down":
                kernel.shut_down()
            else:
                os.kill(int(notebook.out("print(os.getpid())")), signal.SIGKILL)
            processes.wait_until_gone(pids, timeout_s=30.0)


class TestExample:
    @pytest.mark.timeout(300)  # three kernels, which share the machine with other tests
    def test_the_guide_shows_what_it_prints_also_after_a_restart(self, tmp_path: Path) -> None:
        cells = notebooks.read()[1:]
        shown = notebooks.shown(notebooks.PAGE.read_text()).splitlines()
        with Kernel(tmp_path) as kernel:
            for _ in range(2):
                text = notebooks.as_markdown(cells, notebooks.run(cells, kernel))
                again = "run: python -m tools.site.notebooks --write"
                assert blocks.agrees(shown, text.splitlines()), f"{again}\n\n{text}"
                kernel.restart()

    def test_it_is_kept_without_outputs(self) -> None:
        for cell in json.loads(notebooks.NOTEBOOK.read_text())["cells"]:
            assert not cell.get("outputs")
            assert cell.get("execution_count") is None
