"""What importing costs."""

import subprocess
import sys

LIST_MODULES = """
import sys
before = set(sys.modules)
import miniray
{more}
new = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(sorted(new - sys.stdlib_module_names - {{"miniray"}}))
"""


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60)


def test_importing_everything_imports_nothing_but_the_standard_library() -> None:
    for more in ("", "from miniray import *"):
        ended = run("-c", LIST_MODULES.format(more=more))
        assert ended.stdout == "[]\n", ended.stdout + ended.stderr


def test_import_miniray_alone_imports_no_module_of_it() -> None:
    script = "import sys, miniray; print([m for m in sys.modules if m.startswith('miniray.')])"
    assert run("-c", script).stdout == "[]\n"


def test_the_server_runs_as_a_module_without_a_warning() -> None:
    ended = run("-W", "error", "-m", "miniray.worker_server", "--help")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    assert "--work-fn" in ended.stdout
