"""What the reader has done so far; it lies in my_miniray/, with what the reader has written."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "my_miniray"
if elsewhere := os.environ.get("MY_MINIRAY"):  # whoever wants to keep it in another place
    FOLDER = Path(elsewhere).expanduser().resolve()


@dataclass
class Progress:
    """Exercises passed, hints seen, solutions given away, and what was carried to which stage."""

    stage: int = 1  # where the reader has begun
    passed: list[str] = field(default_factory=list)
    hints: dict[str, int] = field(default_factory=dict)
    gave_up: list[str] = field(default_factory=list)
    carried: dict[str, str] = field(default_factory=dict)  # text, by "STAGE/FUNCTION"
    last: str = ""  # what was checked last

    @classmethod
    def load(cls) -> "Progress":
        """Return what is on record; a record that cannot be read is an empty one."""
        try:
            found = cls(**json.loads((FOLDER / ".progress.json").read_text()))
        except (OSError, ValueError, TypeError):
            return cls()
        same = [type(value) for value in asdict(found).values()] == [
            int,
            list,
            dict,
            list,
            dict,
            str,
        ]
        return found if same else cls()

    def save(self) -> None:
        """Put it on record, whole or not at all."""
        FOLDER.mkdir(parents=True, exist_ok=True)
        draft = FOLDER / ".progress.json.new"
        draft.write_text(json.dumps(asdict(self), indent=1) + "\n")
        draft.replace(FOLDER / ".progress.json")
