"""What the fuzzer has found worth keeping goes on being harmless, and it finds no more."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from miniray import values, wire
from miniray.decoding import Decoder
from tests.fuzz import costs
from tests.fuzz.__main__ import CORPUS, RESULTS
from tests.fuzz.costs import Costs
from tests.fuzz.targets import FRAMED, TARGETS

pytest.importorskip("torch")  # which a frame may ask for
FUZZ_S = int(os.environ.get("FUZZ_S", "15"))


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


def test_the_corpus_has_a_value_of_each_kind() -> None:
    known = b"".join(path.read_bytes() for path in (CORPUS / "after").iterdir())
    kinds = (*values.MARKS, "tuple", "dict", "buffer", "bytes", "bytearray", "numpy", "torch")
    assert [one for one in kinds if f'"{one}"'.encode() not in known] == []


def test_a_frame_that_is_made_to_measure_is_whole() -> None:
    header = b'{"body":{"$":"buffer","index":0},"buffers":[{"type":"bytes","dtype":null,'
    header += b'"shape":[2],"nbytes":2}]}'
    for how in FRAMED:
        assert TARGETS["after"](how + header + b"\0ab") == 1
        assert TARGETS["after"](how + b'{"body":3}') == 1
        assert TARGETS["after"](how + header + b"\0a") == 0


class TestCosts:
    """What would break the law is noticed, and nothing else."""

    def test_of_the_corpus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(costs, "MEASURED_EVERY", 1)
        for name, target in TARGETS.items():
            taken = Costs()
            for path in (CORPUS / name).iterdir():
                taken.take(target, path.read_bytes())
            assert taken.measured == taken.inputs == len(list((CORPUS / name).iterdir()))

    @pytest.mark.parametrize("piece", [b"[]", b"{}", b'{"a":1}', b'{"$":"tuple","items":[]}'])
    def test_of_the_dearest_values(self, piece: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(costs, "MEASURED_EVERY", 1)
        data = FRAMED[0] + b'{"body":[' + b",".join([piece] * 20_000) + b"]}"
        taken = Costs()
        taken.take(TARGETS["after"], data)
        assert taken.frames == 1
        monkeypatch.setattr(costs, "VALUE_BYTES_MAX", 24)
        with pytest.raises(AssertionError, match=r"bytes for .* with"):
            taken.take(TARGETS["after"], data)

    def test_of_memory_for_what_did_not_come(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(costs, "MEASURED_EVERY", 1)
        feed = Decoder.feed
        claims: list[bytes] = []

        def claim(decoder: Decoder, data: bytes, descriptors: Any) -> None:
            claims.append(bytes(wire.PRELUDE.unpack_from(data)[2]))
            feed(decoder, data, descriptors)

        data = b"\xff" + wire.PRELUDE.pack(wire.MAGIC, wire.MESSAGE, 500_000)
        Costs().take(TARGETS["after"], data)
        monkeypatch.setattr(Decoder, "feed", claim)
        with pytest.raises(AssertionError, match=r"5\d{5} bytes for 10 with 0 values"):
            Costs().take(TARGETS["after"], data)

    def test_of_time(self) -> None:
        def slow(data: bytes) -> int:
            until = time.thread_time() + 3 * costs.SECONDS_FREE
            while time.thread_time() < until:
                pass
            return 0

        with pytest.raises(AssertionError, match="s for 3 bytes"):
            Costs().take(slow, b"abc")

    def test_of_time_that_is_taken_once(self) -> None:
        imported = []

        def slow_at_first(data: bytes) -> int:
            until = time.thread_time() + (0.0 if imported else 3 * costs.SECONDS_FREE)
            while time.thread_time() < until:
                pass
            imported.append(data)
            return 0

        Costs().take(slow_at_first, b"abc")

    def test_a_file_of_results_keeps_the_others(self, tmp_path: Path) -> None:
        Costs(inputs=1).write(tmp_path / "results", "before")
        Costs(inputs=2).write(tmp_path / "results", "after")
        Costs(inputs=3).write(tmp_path / "results", "before")
        known = json.loads((tmp_path / "results").read_text())
        assert {name: one["inputs"] for name, one in known.items()} == {"before": 3, "after": 2}


@pytest.mark.parametrize("name", TARGETS)
def test_ten_million_inputs_have_been_through_it(name: str) -> None:
    assert json.loads(RESULTS.read_text())[name]["inputs"] >= 10_000_000


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_a_while_of_fuzzing_finds_nothing(name: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    crashes, work = tmp_path / "crashes", tmp_path / "work"
    crashes.mkdir()
    work.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", name, f"--seconds={FUZZ_S}"],
        env={**os.environ, "PYTHONPATH": str(Path.cwd()), "TMPDIR": str(work)},
        cwd=crashes,  # where a crash would leave its input
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=FUZZ_S + 60,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "number_of_executed_units" in done.stdout
    assert not [*crashes.iterdir(), *work.iterdir()]
