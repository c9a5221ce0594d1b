"""Which runs were detached to other hosts from here, so that `miniray attach` knows where to look.

A line of JSON each in ~/.miniray/elsewhere. How they are, only their hosts know.
"""

import contextlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

KEPT_LINES = 20


def remember(
    host: str, run_id: str, command: str, *, ssh_option: Sequence[str], python: str | None
) -> None:
    """Note that a run has gone to a host, with the options that reach that."""
    fact = {"host": host, "id": run_id, "began": time.time(), "command": command}
    how = {"ssh_option": ssh_option, "python": python}
    lines = [json.dumps(one) for one in [*recall(), {**fact, **how}]]
    file = _file()
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = file.with_name(f"{file.name}.new")
    new.touch(mode=0o600)
    new.write_text("".join(f"{line}\n" for line in lines[-KEPT_LINES:]))
    new.replace(file)


def recall() -> list[dict[str, Any]]:
    """Return what has been noted, the newest last."""
    facts = []
    with contextlib.suppress(FileNotFoundError):
        for line in _file().read_text().splitlines():
            with contextlib.suppress(ValueError):  # somebody has edited it; the others are whole
                facts.append(json.loads(line))
    return facts


def _file() -> Path:
    return Path("~/.miniray/elsewhere").expanduser()
