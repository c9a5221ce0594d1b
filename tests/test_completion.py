"""`miniray completion`, in the shells themselves."""

import argparse
import functools
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from miniray.cli import completion, main

T = 20


@functools.cache
def script_for(shell: str) -> str:
    printed = subprocess.run(
        [sys.executable, "-m", "miniray", "completion", shell],
        capture_output=True,
        text=True,
        check=True,
        timeout=T,
    )
    return printed.stdout


def in_bash(line: str, script: str, folder: Path) -> list[str]:
    """Have bash's own machinery call the function that the script has named."""
    words = shlex.split(line) + ([""] if line.endswith(" ") else [])
    program = f"""{script}
        COMP_WORDS=({shlex.join(words)}) COMP_CWORD={len(words) - 1}
        _miniray; printf '%s\\n' "${{COMPREPLY[@]}}" """
    return ask([shutil.which("bash") or "bash", "--norc", "-c", program], folder)


def in_fish(line: str, script: str, folder: Path) -> list[str]:
    program = f"{script}\ncomplete -C {shlex.quote(line)}"
    lines = ask([shutil.which("fish") or "fish", "--no-config", "-c", program], folder)
    return [one.partition("\t")[0] for one in lines]


# What zsh does when Ctrl-T is pressed: complete, note every match, and say that it is done.
ZSH_WITHIN = r"""
PS1= LISTMAX=1000
autoload -Uz compinit
compinit -D
compadd() {
    local -a hits
    # Asked for an array, it is not offering anything yet.
    if [[ ${@[1,(i)(-|--)]} != *-(O|A|D)\ * ]]; then
        builtin compadd -A hits "$@"
        print -l -- $hits >>.hits
    fi
    builtin compadd "$@"
}
complete-and-tell() { zle complete-word; print DONE >$TTY }
zle -N complete-and-tell
bindkey ^T complete-and-tell
source ./.script
print READY
"""
ZSH_OUTSIDE = r"""
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell 'source ./.within'
zpty -r shell said '*READY*'
zpty -w -n shell "$1"$'\C-t'
zpty -r shell said '*DONE*'
zpty -d shell
"""


def in_zsh(line: str, script: str, folder: Path) -> list[str]:
    """Press a key in a terminal of zsh's."""
    for name, text in ((".script", script), (".within", ZSH_WITHIN), (".hits", "")):
        (folder / name).write_text(text)
    ask([shutil.which("zsh") or "zsh", "-f", "-c", ZSH_OUTSIDE, "zsh", line], folder)
    return (folder / ".hits").read_text().splitlines()


def ask(command: list[str], folder: Path) -> list[str]:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=T, check=False
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


SHELLS = {"bash": in_bash, "zsh": in_zsh, "fish": in_fish}


@pytest.mark.parametrize("shell", SHELLS)
class TestIn:
    @pytest.fixture(autouse=True)
    def needs_it(self, shell: str) -> None:
        if shutil.which(shell) is None:
            pytest.skip(f"there is no {shell} here")

    @pytest.mark.parametrize(
        ("line", "offered", "others"),
        [
            ("miniray ", ["demo", "serve", "status", "record", "completion"], ["--port"]),
            ("miniray se", ["serve"], ["status"]),
            ("miniray serve --", ["--work-fn", "--max-workers"], ["--tunnel"]),
            ("miniray serve --po", ["--port"], ["--host"]),
            ("miniray demo --output ", ["a folder/"], ["script.py"]),
            ("miniray record ", ["script.py"], []),
            ("miniray record s", ["script.py"], ["--output"]),
            ("miniray completion ", ["bash", "zsh", "fish"], ["demo"]),
        ],
    )
    def test(
        self, shell: str, line: str, offered: list[str], others: list[str], tmp_path: Path
    ) -> None:
        (tmp_path / "script.py").touch()
        (tmp_path / "a folder").mkdir()
        answers = {one.rstrip("/") for one in SHELLS[shell](line, script_for(shell), tmp_path)}
        assert {one.rstrip("/") for one in offered} <= answers
        assert answers.isdisjoint(others)

    def test_what_help_says_stays_text(self, shell: str, tmp_path: Path) -> None:
        odd = completion.Option(
            ["--odd"], "it's a [b]: \\ $(touch ran) `touch ran` %", "FILE", "files"
        )
        commands = [completion.Command("", "", []), completion.Command("do", odd.help, [odd])]
        script = completion.SHELLS[shell](commands)
        assert "do" in SHELLS[shell]("miniray ", script, tmp_path)
        assert "--odd" in SHELLS[shell]("miniray do --", script, tmp_path)
        assert not (tmp_path / "ran").exists()


def test_every_command_is_listed_with_all_that_its_parser_takes() -> None:
    parser = argparse.ArgumentParser(prog="miniray")
    commands = parser.add_subparsers()
    add = commands.add_parser("add", help="more")
    add.add_argument("-v", "--very", action="store_true", help="100%% of %(prog)s")
    add.add_argument("--to", metavar="DIR", default="x", help="not %(default)s")
    add.add_argument("--hidden", help=argparse.SUPPRESS)
    add.add_argument("what", choices=("a", "b"))
    _, found = completion.list_commands(parser)
    assert found == (
        "add",
        "more",
        [
            (["-h", "--help"], "show this help message and exit", "", ""),
            (["-v", "--very"], "100% of miniray add", "", ""),
            (["--to"], "not x", "DIR", "folders"),
            ([], "", "WHAT", "a b"),
        ],
    )


@pytest.mark.parametrize("command", ["demo", "serve", "status", "record", "completion"])
def test_help_teaches_by_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    _, header, examples = capsys.readouterr().out.partition("\nexamples:\n")
    assert header
    assert f"miniray {command}" in examples
    assert max(map(len, examples.splitlines())) <= 100


def test_an_unknown_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["completion", "tcsh"])
    assert caught.value.code == 2
    assert "invalid choice: 'tcsh' (choose from" in capsys.readouterr().err
