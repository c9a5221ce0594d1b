"""What arrives on the other side."""

import contextlib
import io
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from exercises.checking import expect, note

# As ssh does: options, the host, and then words that it joins for the login shell over there,
# which has an environment of its own.
SSH = """#!/bin/sh
while [ "${1#-}" != "$1" ] && [ "$1" != -- ]; do
    case $1 in -[FEIJLRWbceilmopw]) shift ;; esac
    shift
done
[ "$1" != -- ] || shift
shift
cd /
exec env -i PATH="$PATH" LOGIN_SHELL="$LOGIN_SHELL" "${LOGIN_SHELL:-sh}" -c "$*"
"""
# A shell like no other. It knows what bash, zsh, fish and tcsh agree on: words, of which a first
# one may be exec, quotes, and a dollar or a backquote that is none within single ones.
FISH = """#!/usr/bin/env python3
import os, re, shlex, sys
bare = re.sub(r"'[^']*'|\\"'\\"|\\\\'", "", sys.argv[2])
if odd := re.search(r"[^\\w\\s/.,:@%+-]", bare):
    sys.exit(print(f"fish: Unsupported use of {odd[0]}"))
words = shlex.split(sys.argv[2])
words = words[words[0] == "exec" :]
try:
    os.execvp(words[0], words)
except OSError:
    print(f"fish: Unknown command: {words[0]}")
"""
# The Python over there: it says where it is, and what it got.
PYTHON = """#!/bin/sh
printf '[%s]' "$(pwd)" "$PYTHONPATH" "$@"
"""


@contextlib.contextmanager
def _machine(*names: str) -> Iterator[tuple[Path, Path, Path]]:
    """Yield a workdir, a Python and a place for the code, in folders of these names."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        kinds = zip(("work", "bin", "code"), names, strict=True)
        places = [root / f"{kind} {name}".strip() for kind, name in kinds]
        for place in places:
            place.mkdir()
        for file, text in ((root / "ssh", SSH), (root / "fish", FISH), (places[1] / "py", PYTHON)):
            file.write_text(text)
            file.chmod(0o755)
        os.environ["PATH"] = f"{root}:{os.environ['PATH']}"
        yield places[0], places[1] / "py", places[2]


def _command(answer: Any, workdir: Path, python: Path, code: Path, **options: Any) -> list[str]:
    answer.cluster.CODE_ROOT = code
    config = answer.cluster.NodeConfig("node1", workdir=str(workdir), python=str(python), **options)
    command = answer.cluster.Node(config, "node1", io.StringIO())._command()
    note(f"it ran {command}")
    return [*command]


def _run(command: list[str]) -> str:
    """Return what a command prints."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return done.stdout.decode(errors="replace").rstrip("\n")


def _expect_there(answer: Any, *names: str, **options: Any) -> None:
    """Have the Python over there say where it is, and what it got."""
    with _machine(*names) as places:
        command = _command(answer, *places, **options)
        said = _run(command)
        workdir, _, code = places
        package = answer.cluster.__package__
        expected = f"[{workdir}][{code}][-m][{package}.worker_server][--node]"
        root = str(workdir.parent)
    expect(
        said == expected,
        expected=f"over there: {expected.replace(root, '')}",
        happened=f"there: {said.replace(root, '')}",
    )


def check_plain(answer: Any) -> None:
    """start a server in a directory, with a Python and with code that have plain names"""
    _expect_there(answer, "", "", "")


def check_spaces(answer: Any) -> None:
    """start a server in the directory [work of two words]"""
    _expect_there(answer, "of two words", "", "")


def check_a_dollar(answer: Any) -> None:
    """start a server with the Python [bin costs $HOME `id -u`/py]"""
    _expect_there(answer, "", "costs $HOME `id -u`", "")


def check_an_apostrophe(answer: Any) -> None:
    """start a server in the directory [work it's], with the Python [bin don't; echo more/py]"""
    _expect_there(answer, "it's", "don't; echo more", "")


def check_environment(answer: Any) -> None:
    """start a server whose code lies in [code rank 3; part 1]"""
    _expect_there(answer, "", "", "rank 3; part 1")


def check_another_shell(answer: Any) -> None:
    """start a server where the login shell is one that knows only words and single quotes"""
    os.environ["LOGIN_SHELL"] = "fish"
    _expect_there(answer, "it's", "two words", "$HOME")


def check_our_own_directory(answer: Any) -> None:
    """start a server without a workdir: in our own directory, wherever the login is"""
    with _machine("", "", "") as (workdir, python, code):
        os.chdir(workdir)
        answer.cluster.CODE_ROOT = code
        config = answer.cluster.NodeConfig("node1", python=str(python))
        said = _run(answer.cluster.Node(config, "node1", io.StringIO())._command())
        there = said.partition("]")[0].lstrip("[")
        expect(
            there == str(workdir),
            expected="it to be in the directory that we are in",
            happened=f"it is in {there!r}",
        )


def check_no_such_directory(answer: Any) -> None:
    """start a server in a directory that is not there"""
    with _machine("", "", "") as (workdir, python, code):
        said = _run(_command(answer, workdir / "elsewhere", python, code))
    started = "--node" in said
    expect(not started, expected="no server", happened="it runs, in another directory")


def check_options(answer: Any) -> None:
    """start a server with the ssh_options -p 2222"""
    _expect_there(answer, "", "", "", ssh_options=("-p", "2222"))


def check_a_launcher(answer: Any) -> None:
    """start a server with the launcher /bin/sh -c"""
    _expect_there(answer, "it's", "", "", launcher=("/bin/sh", "-c"))
    with _machine("", "", "") as places:
        command = _command(answer, *places, launcher=("run", "there"))
    happened = repr(command[:3])[:60]
    right = command[:2] == ["run", "there"] and len(command) == 3
    expect(right, expected="the launcher's two words, and one more", happened=happened)
