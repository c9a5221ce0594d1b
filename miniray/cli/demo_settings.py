"""What the demo trains, and on what text; shared by its coordinator and its workers."""

import dataclasses
import sysconfig
from pathlib import Path

VOCABULARY = 256  # every byte is a token, so nobody has to agree on a tokenizer
RECENT = 4  # how many of the latest bytes the model sees at once, before any attention


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides what is trained; the sharded run and its reference get the same."""

    steps: int = 120
    seed: int = 0
    ranks: int = 8
    sequences_per_rank: int = 4
    context: int = 64  # bytes that a prediction may look back on
    width: int = 128
    heads: int = 4
    blocks: int = 2
    learning_rate: float = 4e-3
    warmup_steps: int = 10
    prompt: str = "\n    def "
    sample_bytes: int = 400
    temperature: float = 0.8

    @property
    def tokens_per_step(self) -> int:
        """How many bytes all ranks together learn from in a step."""
        return self.ranks * self.sequences_per_rank * self.context


def read_text() -> bytes:
    """Return the source of Python's standard library: real text that every machine has."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    return b"\n".join(file.read_bytes() for file in sorted(folder.glob("*.py")))


def cut_into_slices(text: bytes, count: int) -> list[bytes]:
    """Return `count` slices of equal length, one for each rank."""
    length = len(text) // count
    return [text[index * length : (index + 1) * length] for index in range(count)]
