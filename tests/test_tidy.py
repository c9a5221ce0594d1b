"""Promises that no linter knows: line budgets, import directions, exports, forbidden words."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import report
from tools import count_lines, import_graph, private_names

REPOSITORY = count_lines.REPOSITORY
PACKAGE = count_lines.PACKAGE
MODULES = sorted(PACKAGE.glob("*.py"))

# What each module imports directly. What those modules import is allowed as well; each stands
# below the ones that it names, so an import can only go upwards on this page.
MAY_IMPORT = {
    "errors": set[str](),
    "inherited": set[str](),
    "waiting": set[str](),
    "turn": {"waiting"},
    "torch_fork": set[str](),
    "kernel_fork": set[str](),
    "child": {"kernel_fork", "torch_fork"},
    "process": {"child", "inherited", "torch_fork", "waiting"},
    "header": {"errors"},
    "pool": {"inherited", "errors"},
    "shared_memory": set[str](),
    "shared_tensor": {"shared_memory"},
    "loans": {"errors", "inherited", "shared_memory"},
    "refusals": set[str](),
    "classes": {"refusals"},
    "dtypes": {"header", "refusals"},
    "values": {"classes", "dtypes"},
    "codec": {"shared_tensor", "values"},
    "wire": {"codec", "loans"},
    "decoding": {"pool", "wire"},
    "frames": {"decoding", "waiting"},
    "endings": {"wire"},
    "bell": {"inherited"},
    "endpoint": {"bell", "endings", "frames", "turn"},
    "channel": {"endpoint"},
    "fan_out": {"channel"},
    "rendezvous": set[str](),
    "title": set[str](),
    "window": {"inherited"},
    "notice": {"window"},
    "torch_store": {"inherited"},
    "work_fn": set[str](),
    "definitions": set[str](),
    "constants": set[str](),
    "cells": {"constants", "definitions", "work_fn"},
    "calls": {"cells", "channel", "rendezvous", "title"},
    "any_worker": {"calls", "process"},
    "worker": {"any_worker"},
    "auth": {"errors"},
    "tls": {"errors"},
    "encrypted": {"auth", "frames", "tls"},
    "connection": {"channel", "encrypted"},
    "group": {"errors", "waiting"},
    "remote_worker": {"any_worker", "connection", "group"},
    "recovery": {"errors", "waiting"},
    "crew": {"calls", "fan_out", "recovery"},
    "poll_loop": {"inherited"},
    "worker_log": {"poll_loop", "title", "waiting", "window", "work_fn"},
    "worker_record": {"process", "worker_log"},
    "listening": {"poll_loop", "waiting"},
    "strangers": {"auth", "decoding", "worker_log"},
    "greeting": {"encrypted", "strangers"},
    "worker_server": {
        *("channel", "greeting", "listening", "torch_store", "work_fn", "worker_record"),
    },
    "bootstrap": set[str](),
    "node_server": {"bootstrap", "calls", "worker_server"},
    "node_config": set[str](),
    "pacemaker": set[str](),
    "node_log": {"waiting", "worker_log"},
    "faults": {"work_fn"},
    "session": {"faults", "node_config", "node_log", "pacemaker", "process"},
    "sources": set[str](),
    "folder_copy": {"bootstrap"},
    "sync": {"cells", "errors", "folder_copy", "inherited", "node_config", "sources"},
    "rsync": {"inherited", "node_config", "waiting"},
    "node": {"bootstrap", "remote_worker", "rsync", "session", "sync"},
    "holdings": set[str](),
    "fake_gpu": {"holdings", "window"},
    "nccl": {"fake_gpu", "rendezvous"},
    "nodes": {"node", "notice", "sources"},
    "cluster": {"crew", "nccl", "nodes"},
}

PUBLIC = {
    *("Worker", "RemoteWorker", "WorkerServer", "Cluster", "NodeConfig", "Channel", "wait"),
    *("NCCLConfig", "create_nccl_configs", "process_group", "SharedTensor", "broadcast"),
    *("answer_calls", "as_completed", "gather"),
    *("MiniRayError", "ProtocolError", "AuthenticationError", "ClusterError"),
    *("WorkerError", "WorkerExited", "WorkerFailed", "WorkerDied"),
}

IMPORT_MS_MAX = 60

# Written in pieces, so that this file does not hold what it looks for.
FORBIDDEN_TEXT = {
    "a path of one developer's machine": re.compile(r"(?<![\w.])/wor" + r"k/|/opt/py" + "pi"),
    "the address of a package index": re.compile(
        "--(extra-)?inde"
        + "x-url|--registr"
        + "y[= ]http|registry.npm"
        + r"js\.org|pythonhosted\."
        + "org"
    ),
}


def module_name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@pytest.fixture(scope="module")
def counts() -> dict[str, int]:
    return count_lines.count_package()


class TestLines:
    def test_blanks_comments_and_docstrings_do_not_count(self) -> None:
        module = '"""One.\n\nTwo."""\n\n# three\nvalue = """\nfour"""  # five\n\n'
        source = module + 'def function():\n    """Six."""\n'
        assert count_lines.count_code_lines(source) == 3

    def test_the_distributed_part_keeps_its_budget(self, counts: dict[str, int]) -> None:
        used = {name: counts[name] for name in count_lines.SYSTEM}
        assert sum(used.values()) <= count_lines.SYSTEM_LINES_MAX, used

    @pytest.mark.parametrize("name", count_lines.SYSTEM)
    def test_each_of_its_modules_does_as_well(self, name: str, counts: dict[str, int]) -> None:
        assert counts[name] <= count_lines.MODULE_LINES_MAX[name]

    def test_the_reading_path_is_short(self, counts: dict[str, int]) -> None:
        path = {name: counts[name] for name in count_lines.READING_PATH}
        assert sum(path.values()) <= count_lines.READING_PATH_LINES_MAX, path

    def test_the_package_keeps_its_budget(self, counts: dict[str, int]) -> None:
        assert sum(counts.values()) <= count_lines.PACKAGE_LINES_MAX, counts

    def test_no_class_is_too_long_to_read(self) -> None:
        classes = count_lines.count_class_lines()
        assert "channel.Channel" in classes
        too_long = {
            name: lines for name, lines in classes.items() if lines > count_lines.CLASS_LINES_MAX
        }
        assert not too_long

    def test_readme_says_what_is_measured(self) -> None:
        readme = count_lines.README.read_text()
        assert readme == count_lines.fill_in(readme), "run: python -m tools.count_lines --write"

    def test_the_table_names_every_module(self, counts: dict[str, int]) -> None:
        assert set(counts) - {"__init__"} == set(count_lines.TABLE_ORDER)

    def test_readme_has_the_figures_of_the_last_benchmark(self) -> None:
        readme = count_lines.README.read_text()
        table = report.as_markdown(report.read_results())
        expected = count_lines.replace_table(readme, table, "benchmarks")
        assert readme == expected, "run: python -m benchmarks.report --write"


class TestImports:
    @pytest.mark.parametrize("path", MODULES, ids=module_name)
    def test_go_downwards_only(self, path: Path) -> None:
        if path.stem in import_graph.ABOVE_ALL:
            return
        assert path.stem in MAY_IMPORT, f"{path.name}: give it a place in MAY_IMPORT"
        allowed = _reachable(path.stem)
        imported = import_graph.imports_of(path)
        assert imported <= allowed, f"{path.name} imports {sorted(imported - allowed)}"

    def test_the_table_is_in_order_and_has_no_more_than_there_is(self) -> None:
        above: set[str] = set()
        for name, direct in MAY_IMPORT.items():
            assert direct <= above, f"{name} stands above {sorted(direct - above)}"
            above.add(name)
        assert above == {path.stem for path in MODULES} - set(import_graph.ABOVE_ALL)

    def test_are_found_wherever_they_stand(self, tmp_path: Path) -> None:
        module = tmp_path / "module.py"
        module.write_text(
            "import os, miniray.wire\nfrom miniray import auth, Worker, __version__\n"
            "if TYPE_CHECKING:\n    from miniray.cluster import Cluster\n"
            "def function():\n    from miniray.channel import Channel\n    from . import pool\n"
            "def main():\n    from miniray import node_server\n"
            "if __name__ == '__main__':\n    from miniray.cli import serve\n"
        )
        assert import_graph.imports_of(module) == {
            *("wire", "auth", "__init__", "channel", "pool"),
        }

    def test_layers_refuse_a_circle(self) -> None:
        graph = {"a": set[str](), "b": {"a"}, "c": {"a", "b"}}
        assert import_graph.find_layers(graph) == [["a"], ["b"], ["c"]]
        assert import_graph.find_direct(graph)["c"] == {"b"}
        with pytest.raises(ValueError, match="circle"):
            import_graph.find_layers({"a": {"b"}, "b": {"a"}, "c": set()})

    def test_cli_is_imported_by_nobody_below_it(self) -> None:
        assert "cli" not in set().union(*MAY_IMPORT.values())

    def test_import_of_everything_public_needs_only_the_standard_library(self) -> None:
        script = """if True:
            import sys
            before = set(sys.modules)
            import miniray
            for name in miniray.__all__:
                getattr(miniray, name)
            print(*{name.partition(".")[0] for name in set(sys.modules) - before})
        """
        imported = set(_python("-c", script).split())
        assert imported - sys.stdlib_module_names == {"miniray"}

    def test_import_is_quick(self) -> None:
        """Take the quickest of several starts, which other work disturbed least."""
        script = (
            "import time; t = time.perf_counter(); import miniray; print(time.perf_counter() - t)"
        )
        quickest_ms = min(float(_python("-c", script)) * 1000 for _ in range(7))
        assert quickest_ms < IMPORT_MS_MAX


class TestPrivateNames:
    def test_are_used_nowhere_else(self) -> None:
        assert private_names.find_strays() == []

    @pytest.mark.parametrize(
        ("code", "stray"),
        [
            ("from miniray.base import _helper", "_helper"),
            ("import miniray.base as base\nbase._helper()", "base._helper"),
            ("def use(thing):\n    return thing._lock", "thing._lock"),
            ("def use(thing):\n    thing._lock = None", "thing._lock"),
            ("class Sub(Base):\n    def get(self):\n        return self._lock", "self._lock"),
            ("class Sub(Base):\n    def _step(self):\n        pass", "Sub has _step of Base"),
            ("import os\nclass Own:\n    _n = 1\n    def f(self):\n        os._exit(self._n)", ""),
        ],
    )
    def test_are_noticed(
        self, code: str, stray: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(private_names, "PACKAGE", tmp_path)
        (tmp_path / "base.py").write_text(
            "def _helper():\n    pass\n"
            "class Base:\n    def __init__(self):\n        self._lock = 1\n"
            "    def _step(self):\n        pass\n"
        )
        (tmp_path / "other.py").write_text(code)
        assert [one.rpartition(": ")[2] for one in private_names.find_strays()] == (
            [stray] if stray else []
        )


class TestWords:
    def test_exports_are_the_documented_names(self) -> None:
        import miniray

        assert set(miniray.__all__) - {"__version__"} == PUBLIC
        assert all(hasattr(miniray, name) for name in PUBLIC)

    def test_the_reference_has_every_export(self) -> None:
        page = (REPOSITORY / "docs" / "api.md").read_text()
        assert set(re.findall(r"(?m)^::: miniray\.(\w+)$", page)) == PUBLIC

    @pytest.mark.parametrize(
        "path",
        [*PACKAGE.rglob("*.py"), *(REPOSITORY / "tools").glob("*.py")],
        ids=module_name,
    )
    def test_module_docstring_begins_with_one_sentence(self, path: Path) -> None:
        docstring = ast.get_docstring(ast.parse(path.read_text()))
        assert docstring, f"{path} has no docstring"
        first = docstring.partition("\n")[0]
        assert re.fullmatch(r"[^\s].*[.]", first), f"{first!r} should end with a full stop"
        assert not re.search(r"[.!?] [A-Z]", first), f"{first!r} should be one sentence"

    def test_no_test_sleeps_to_synchronise(self) -> None:
        """A test polls with `tests.support.poll`; what should hang calls `signal.pause()`."""
        tests = [
            path for path in (REPOSITORY / "tests").rglob("*.py") if "support" not in path.parts
        ]
        sleeps = [f"{module_name(path)}:{line}" for path in tests for line in _sleeps(path)]
        assert not sleeps

    def test_no_file_names_this_machine_or_a_package_index(self) -> None:
        found = []
        for path in _project_files():
            try:
                lines = path.read_text().splitlines()
            except UnicodeDecodeError:  # a picture
                continue
            for number, line in enumerate(lines, start=1):
                for what, pattern in FORBIDDEN_TEXT.items():
                    if pattern.search(line):
                        found.append(f"{module_name(path)}:{number}: {what}")
        assert not found


def _reachable(module: str) -> set[str]:
    direct = MAY_IMPORT[module]
    return direct.union(*map(_reachable, direct))


def _sleeps(path: Path) -> Iterator[int]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("time.sleep", "sleep"):
            yield node.lineno


def _project_files() -> list[Path]:
    try:
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=REPOSITORY,
            capture_output=True,
            check=True,
            text=True,
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    paths = [REPOSITORY / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


def _python(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
