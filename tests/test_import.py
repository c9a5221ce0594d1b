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


def test_plain_messages_need_neither_torch_nor_numpy() -> None:
    script = """if True:
        import sys
        from miniray import Worker
        def echo(channel):
            for message in channel:
                channel.send(message)
        with Worker(echo) as worker:
            worker.send({"a": [b"raw", (1, 2.5)]})
            assert worker.recv(20) == {"a": [b"raw", (1, 2.5)]}
        print(sorted({"torch", "numpy"} & set(sys.modules)))
    """
    ended = run("-c", script)
    assert ended.stdout == "[]\n", ended.stdout + ended.stderr


def test_importing_miniray_imports_little_and_nothing_foreign() -> None:
    ended = run("-X", "importtime", "-c", "import miniray")
    imported = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines()}
    assert "miniray" in imported
    assert not {name for name in imported if name.partition(".")[0] in ("torch", "numpy", "rich")}


def test_every_public_name_can_be_had_and_no_other() -> None:
    script = """if True:
        import miniray
        for name in miniray.__all__:
            assert getattr(miniray, name).__name__ == name
        try:
            miniray.nothing
        except AttributeError as error:
            print(error)
    """
    ended = run("-c", script)
    assert ended.stdout == "module 'miniray' has no attribute 'nothing'\n", ended.stderr
