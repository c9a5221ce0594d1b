"""The demo as its users run it: a command in a pipe, in a terminal, and interrupted."""

import csv
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from miniray.cli.demo_display import Run
from miniray.cli.demo_plot import sparkline
from miniray.cli.demo_settings import Settings, cut_into_slices, read_text
from tests.support import processes
from tests.support.ssh import LoopbackNodes

pytest.importorskip("torch")

DEMO = (sys.executable, "-m", "miniray", "demo")
DONE_S = 110.0
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "demo.svg"


def run_demo(*options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*DEMO, *options], capture_output=True, text=True, timeout=DONE_S, check=False
    )


def test_sparkline_is_as_wide_as_asked_and_tallest_at_the_highest_value() -> None:
    assert sparkline([]) == ""
    assert sparkline([2.0, 2.0]) == "▁▁"
    line = sparkline([float(value) for value in range(1000)], 40)
    assert len(line) == 40
    assert line[0] == "▁"
    assert line[-1] == "█"
    assert list(line) == sorted(line)


def test_slices_are_equal_in_length_and_in_order() -> None:
    assert cut_into_slices(b"abcdefghij", 3) == [b"abc", b"def", b"ghi"]
    text = read_text()
    assert len(text) > 1_000_000
    assert b"def " in cut_into_slices(text, 8)[7]


def test_progress_says_step_loss_rate_and_time_left() -> None:
    run = Run("sharded", steps=20, tokens_per_step=1000, losses=[3.0, 2.5], seconds=4.0)
    assert run.describe() == "step  2/20  loss 2.5000  500 tokens/s  36 s left"


def test_without_torch_the_demo_says_what_to_install(tmp_path: Path) -> None:
    program = (
        "import importlib.util as u; f = u.find_spec; u.find_spec = "
        "lambda name, *rest: None if name == 'torch' else f(name, *rest); "
        "from miniray.cli import main; raise SystemExit(main(['demo']))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False
    )
    assert ended.returncode == 1
    assert "pip install 'miniray[torch]'" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    "options",
    [("--steps", "0"), ("--workers-per-node", "x"), ("--hosts", "a,,b"), ("--seed", "z")],
)
def test_bad_options_are_refused_in_one_line(options: tuple[str, str]) -> None:
    ended = run_demo(*options)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("miniray demo: error: argument " + options[0])


def test_a_host_that_looks_like_an_option_is_refused() -> None:
    ended = run_demo("--hosts=-oProxyCommand=x")
    assert ended.returncode == 1
    assert ended.stderr.startswith("miniray demo: host '-oProxyCommand=x' is not a name")
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.slow
def test_short_run_in_a_pipe_ends_with_the_picture_and_the_check(tmp_path: Path) -> None:
    ended = run_demo("--steps", "5", "--output", str(tmp_path))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "\r" not in ended.stdout
    assert "\x1b" not in ended.stdout
    assert [line for line in ended.stdout.splitlines() if "OutOfMemoryError" in line]
    for rank in range(8):
        assert re.search(rf"^  rank {rank}  node{1 + rank // 4}  pid \d+", ended.stdout, re.M)
    assert "one alone would need 8.63 MiB, 8.0 times as much" in ended.stdout
    difference = re.search(r"^equal: over 5 steps .* by at most (\S+) ", ended.stdout, re.M)
    assert difference is not None
    assert float(difference[1]) <= 1e-5
    width, height = png_size((tmp_path / "loss.png").read_bytes())
    assert width >= 800
    assert height >= 500
    with (tmp_path / "losses.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5
    assert float(rows[-1]["sharded"]) < float(rows[0]["sharded"])


def png_size(data: bytes) -> tuple[int, int]:
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert data.endswith(b"IEND\xaeB`\x82")
    assert len(data) > 10_000
    width, height = struct.unpack(">II", data[16:24])
    return width, height


@pytest.mark.slow
@pytest.mark.parametrize("line", ["starting", "one fake GPU alone", "  step", "the same"])
def test_ctrl_c_leaves_no_process_at_any_moment(tmp_path: Path, line: str) -> None:
    demo = subprocess.Popen(
        [*DEMO, "--steps", "200" if line == "  step" else "4", "--output", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        for printed in demo.stdout:
            if printed.startswith(line):
                break
        demo.send_signal(signal.SIGINT)
        assert demo.wait(timeout=15.0) == 130
        last = demo.stderr.read().splitlines()[-1]
        assert last == "miniray: interrupted; nothing was left running"
    assert not processes.descendants()


@pytest.mark.slow
@pytest.mark.ssh
@pytest.mark.parametrize("tunnel", [(), ("--tunnel",)], ids=["direct", "tunnel"])
def test_over_ssh_it_is_the_same(
    loopback_sshd: LoopbackNodes, tmp_path: Path, tunnel: tuple[str, ...]
) -> None:
    options = [f"--ssh-option={option}" for option in loopback_sshd.ssh_options]
    ended = run_demo(
        *("--hosts", ",".join(loopback_sshd.hosts), "--workers-per-node", "2", "--steps", "3"),
        *("--python", sys.executable, "--output", str(tmp_path), *options, *tunnel),
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert re.search(r"^  rank 3  node2  pid \d+", ended.stdout, re.M)
    assert "equal: over 3 steps the losses of 4 ranks" in ended.stdout


@pytest.mark.slow
def test_in_a_terminal_the_display_is_live_and_the_sites_picture_is_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rich")
    from tools import terminal_picture

    monkeypatch.chdir(tmp_path)  # a path that is longer would need one more line
    status, printed = terminal_picture.run([*DEMO, "--steps", "3"])
    assert status == 0
    assert "\x1b[" in printed
    assert "equal: over 3 steps" in printed
    assert printed.rfind("\x1b[?25h") > printed.rfind("\x1b[?25l")  # the cursor is back
    drawn = terminal_picture.draw("miniray demo", terminal_picture.screen(printed))
    shown = without_what_it_learnt(terminal_picture.stable(PICTURE.read_text()))
    found = without_what_it_learnt(terminal_picture.stable(drawn))
    found = without_logs(found, ends=shown)
    command = 'python -m tools.terminal_picture "miniray demo" docs/images/demo.svg -- '
    assert shown == found, f"run: {command} .venv/bin/python -m miniray demo"


def without_what_it_learnt(lines: list[str]) -> list[str]:
    """Return a picture's lines without the model's text, and where the files are."""
    begin = lines.index("the model writes:")
    end = next(number for number, line in enumerate(lines) if line.startswith("picture: "))
    return [*lines[: begin + 1], *lines[end + 1 :]]


def without_logs(lines: list[str], *, ends: list[str]) -> list[str]:
    """Return the lines without what torch has to say: a log goes on until one of `ends`."""
    kept, in_log = [], False
    for line in lines:
        in_log = line.startswith("[node") or (in_log and line not in ends)
        kept += [] if in_log else [line]
    return kept


def test_defaults_do_not_fit_one_fake_gpu_and_fit_eight() -> None:
    from miniray.cli.demo import FAKE_GPU_MEMORY_MIB
    from miniray.cli.demo_model import make_model

    held = 16 * sum(parameter.numel() for parameter in make_model(Settings()).parameters())
    assert held / 8 < FAKE_GPU_MEMORY_MIB * 2**20 < held
