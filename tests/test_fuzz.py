"""What the fuzzer has found worth keeping goes on being harmless, and it finds no more."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from miniray.decoding import Decoder
from tests.fuzz.__main__ import CORPUS
from tests.fuzz.targets import TARGETS

pytest.importorskip("torch")  # which a frame may ask for
FUZZ_S = int(os.environ.get("FUZZ_S", "30"))


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_raises_nothing_but_protocol_errors(name: str) -> None:
    inputs = list((CORPUS / name).iterdir())
    frames = [TARGETS[name](path.read_bytes()) for path in inputs]
    assert sum(frames) > 3
    assert frames.count(0) > 3


def test_a_defect_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def next_frame(decoder: Decoder) -> None:
        raise KeyError("body")

    monkeypatch.setattr(Decoder, "_next_frame", next_frame)
    with pytest.raises(KeyError):
        TARGETS["after"](b"\xffMRY1")


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_a_while_of_fuzzing_finds_nothing(name: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", name, f"--seconds={FUZZ_S}"],
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        cwd=tmp_path,  # where a crash would leave its input
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=FUZZ_S + 60,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "number_of_executed_units" in done.stdout
    assert not list(tmp_path.iterdir())
