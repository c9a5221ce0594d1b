"""What arrives on the other side."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from exercises.checking import expect, expect_raises, note

# As ssh does: options, the host, and then words that it joins for the login shell over there,
# which has an environment of its own.
SSH = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do
    case $1 in -[FEIJLRWbceilmopw]) shift ;; esac
    shift
done
shift
[ "$1" != -- ] || shift
exec env -i PATH="$PATH" sh -c "$*"
"""


@contextlib.contextmanager
def _an_ssh() -> Iterator[None]:
    """Put an ssh first in the path that goes nowhere, and else does what ssh does."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "ssh")
        file.write_text(SSH)
        file.chmod(0o755)
        os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"
        yield


def _run(answer: ModuleType, argv: list[str], environment: dict[str, str]) -> str:
    with _an_ssh():
        command = answer.ssh_command("node1", argv, environment)
        note(f"it ran {command}")
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    return done.stdout.decode(errors="replace").rstrip("\n")


def _expect_words(answer: ModuleType, *words: str) -> None:
    """Have the words printed over there, each in brackets."""
    said = _run(answer, ["printf", "[%s]", *words], {})
    expected = "".join(f"[{word}]" for word in words)
    expect(said == expected, expected=f"over there: {expected}", happened=f"there: {said}")


def check_spaces(answer: ModuleType) -> None:
    """run a program with the words [two words] and [one]"""
    _expect_words(answer, "two words", "one")


def check_an_empty_word(answer: ModuleType) -> None:
    """run a program with the words [a], [] and [b]"""
    _expect_words(answer, "a", "", "b")


def check_a_dollar(answer: ModuleType) -> None:
    """run a program with the words [costs $HOME] and [`id -u`]"""
    _expect_words(answer, "costs $HOME", "`id -u`")


def check_an_apostrophe(answer: ModuleType) -> None:
    """run a program with the words [it's] and [don't; echo more]"""
    _expect_words(answer, "it's", "don't; echo more")


def check_environment(answer: ModuleType) -> None:
    """run a program that prints the variable NOTE, which is to be [rank 3; part 1]"""
    script = 'printf "[%s]" "$NOTE"'
    said = _run(answer, ["sh", "-c", script], {"LEVEL": "2", "NOTE": "rank 3; part 1"})
    expected = "[rank 3; part 1]"
    expect(said == expected, expected=f"over there: {expected}", happened=f"there: {said}")


def check_a_host_with_a_dash(answer: ModuleType) -> None:
    """ask for the host [-oProxyCommand=reboot]"""
    with expect_raises(ValueError, when="for a host that begins with a dash"):
        answer.ssh_command("-oProxyCommand=reboot", ["true"], {})
