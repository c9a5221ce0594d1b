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
from tools import count_lines

REPOSITORY = count_lines.REPOSITORY
PACKAGE = count_lines.PACKAGE
MODULES = sorted(PACKAGE.glob("*.py"))

# Direct imports, as the design's table has them. What those modules may import is allowed as well,
# so an import can only go downwards. `errors` may be imported anywhere.
MAY_IMPORT = {
    "errors": set[str](),
    "inherited": set[str](),
    "pool": {"inherited", "errors"},
    "shared_memory": {"inherited", "errors"},
    "header": {"errors"},
    "codec": {"header", "shared_tensor"},
    "wire": {"codec", "pool", "shared_memory"},
    "auth": {"errors"},
    "channel": {"wire"},
    "process": {"errors"},
    "shared_tensor": {"shared_memory"},
    "worker": {"channel", "process"},
    "remote_worker": {"channel", "auth"},
    "worker_server": {"channel", "process", "auth"},
    "bootstrap": {"worker_server"},
    "cluster": {"remote_worker", "process", "nccl"},
    "nccl": {"errors"},
}
# Leaves that a module may use besides: a tensor in a memfd is a value like any other.
LEAVES = {"errors", "inherited", "shared_tensor"}
ANYTHING = {"__init__", "__main__"}

PUBLIC = {
    *("Worker", "RemoteWorker", "WorkerServer", "Cluster", "NodeConfig", "Channel", "wait"),
    *("NCCLConfig", "create_nccl_configs", "process_group", "SharedTensor"),
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

    def test_the_package_keeps_its_budget(self, counts: dict[str, int]) -> None:
        assert sum(counts.values()) <= count_lines.PACKAGE_LINES_MAX, counts

    def test_readme_says_what_is_measured(self) -> None:
        readme = count_lines.README.read_text()
        expected = count_lines.replace_table(readme, count_lines.make_table())
        assert readme == expected, "run: python tools/count_lines.py --write"

    def test_readme_has_the_figures_of_the_last_benchmark(self) -> None:
        readme = count_lines.README.read_text()
        table = report.as_markdown(report.read_results())
        expected = count_lines.replace_table(readme, table, "benchmarks")
        assert readme == expected, "run: python -m benchmarks.report --write"


class TestImports:
    @pytest.mark.parametrize("path", MODULES, ids=module_name)
    def test_go_downwards_only(self, path: Path) -> None:
        if path.stem in ANYTHING:
            return
        assert path.stem in MAY_IMPORT, (
            f"{path.name}: name it in MAY_IMPORT and in the design's table"
        )
        allowed = _reachable(path.stem) | LEAVES
        imported = set(_sibling_imports(ast.parse(path.read_text())))
        assert imported <= allowed, f"{path.name} imports {sorted(imported - allowed)}"

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


class TestWords:
    def test_exports_are_the_documented_names(self) -> None:
        import miniray

        assert set(miniray.__all__) - {"__version__"} == PUBLIC
        assert all(hasattr(miniray, name) for name in PUBLIC)

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


def _sibling_imports(tree: ast.AST) -> Iterator[str]:
    """Yield each module of miniray that a module imports, at any level, but not as a program."""
    if isinstance(tree, ast.If) and ast.unparse(tree.test) == "__name__ == '__main__'":
        return
    if isinstance(tree, ast.Import):
        for name in tree.names:
            package, _, module = name.name.partition(".")
            if package == "miniray":
                yield module.partition(".")[0] or "__init__"
    elif isinstance(tree, ast.ImportFrom):
        source = tree.module or ""
        if tree.level == 0:
            package, _, source = source.partition(".")
            if package != "miniray":
                return
        if source:
            yield source.partition(".")[0]
        else:
            for name in tree.names:
                is_module = (PACKAGE / f"{name.name}.py").exists() or name.name == "cli"
                # The version is a constant that stands above everything the package imports.
                if name.name != "__version__":
                    yield name.name if is_module else "__init__"
    for child in ast.iter_child_nodes(tree):
        yield from _sibling_imports(child)


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
