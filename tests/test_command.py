"""The `miniray` command itself: what is wrong with a command line, and Ctrl-C at its beginning."""

import importlib
from typing import Any

import pytest

from miniray import cli
from miniray.cli import serve


@pytest.mark.parametrize(
    ("words", "usage", "text"),
    [
        ("run --locl 2 a.py", "usage: miniray run", "no --locl; did you mean --local?"),
        ("run --local=2 --stpes=5 a.py", "usage: miniray run", "no --stpes=5; the script's own"),
        (
            "run --local 2 --steps 5 a.py",
            "usage: miniray run",
            "no --steps; the script's own options come after it: SCRIPT --steps",
        ),
        ("record --steps a.py", "usage: miniray record", "come after it: SCRIPT --steps"),
        ("attach --lst", "usage: miniray attach", "no --lst; did you mean --list?"),
        ("status localhost 1 2", "usage: miniray status", "miniray status has no 2\n"),
        ("stacks 1", "usage: miniray stacks", "a server is HOST PORT; without both"),
        ("status 1", "usage: miniray status", "a server is HOST PORT; without both"),
        ("top 1", "usage: miniray top", "a server is HOST PORT; without both"),
        ("top --every 0", "usage: miniray top", "--every is a number of seconds above 0"),
    ],
)
def test_a_wrong_option_is_told_by_its_command(
    words: str, usage: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words.split())
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(usage)
    assert text in said


def test_ctrl_c_while_the_commands_are_imported_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def import_module(name: str, *more: Any) -> Any:
        if name == "miniray.cli.run":
            raise KeyboardInterrupt
        return known(name, *more)

    known = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", import_module)
    assert cli.main(["run", "--local", "2", "a.py"]) == 130
    assert capsys.readouterr().err == "miniray: interrupted; nothing was left running\n"


@pytest.mark.parametrize(
    ("words", "is_said"),
    [("--host 0.0.0.0", True), ("--host 0.0.0.0 --encrypt", False), ("--host ::1", False)],
)
def test_a_server_on_the_network_says_that_it_speaks_in_clear(
    words: str,
    is_said: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("miniray.worker_server.WorkerServer.serve_forever", lambda self: None)
    monkeypatch.setattr("gc.freeze", lambda: None)
    made = []
    known = serve._make_server
    monkeypatch.setattr(
        serve, "_make_server", lambda options: made.append(known(options)) or made[-1]
    )
    try:
        assert cli.main(["serve", "--work-fn", "tests.work.echo", *words.split()]) == 0
    finally:
        for server in made:
            server.__exit__()
    assert (serve.IN_CLEAR in capsys.readouterr().err) == is_said
