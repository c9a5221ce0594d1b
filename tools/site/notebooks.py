"""Run the example notebook in a real kernel, and write down what its cells print.

python -m tools.site.notebooks [--write]

What a page has between its two markers is that, and a test says whether it still is.
"""

import json
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tools.kernel import Kernel, Ran
from tools.site.blocks import DOCS, REPOSITORY

NOTEBOOK = REPOSITORY / "examples" / "notebook.ipynb"
PAGE = DOCS / "guides" / "notebooks.md"
BEGIN, END = "<!-- notebook:begin -->", "<!-- notebook:end -->"
INTERRUPT_AT = "interrupt me"


@dataclass(frozen=True)
class Cell:
    """A cell of a notebook's file."""

    kind: str
    text: str
    tags: tuple[str, ...]


def read(notebook: Path = NOTEBOOK) -> list[Cell]:
    """Return the cells of a notebook."""
    return [
        Cell(cell["cell_type"], "".join(cell["source"]), tuple(cell["metadata"].get("tags", ())))
        for cell in json.loads(notebook.read_text())["cells"]
    ]


def run(cells: list[Cell], kernel: Kernel) -> list[tuple[Cell, Ran]]:
    """Run a notebook's cells as somebody would who reads it, and interrupts where it says so."""
    done = []
    for cell in cells:
        if cell.kind == "code":
            ran = kernel.run(cell.text, interrupt_at=INTERRUPT_AT * ("interrupt" in cell.tags))
            done.append((cell, ran))
            if bool(ran.error) != ("raises-exception" in cell.tags):
                raise RuntimeError(f"this cell's error is {ran.error!r}:\n{cell.text}")
    return done


def as_markdown(cells: list[Cell], ran: list[tuple[Cell, Ran]]) -> str:
    """Return cells and what they print, but for the log on stderr, as part of a page."""
    outcomes, parts = iter(ran), list[str]()
    for cell in cells:
        if cell.kind != "code":
            parts.append(re.sub(r"(?m)^#", "##", cell.text))
            continue
        _, outcome = next(outcomes)
        parts.append(f"```py\n{cell.text}\n```")
        said = "\n".join(filter(None, (outcome.stdout.rstrip(), outcome.result, outcome.error)))
        if said:
            said = re.sub(r'"/\S*/miniray-\w+/', '".../', said.rstrip(": \n"))
            parts.append(f"```text\n{said}\n```")
    return "\n\n".join(parts)


def fill_in(page: str, text: str) -> str:
    """Return a page's text with what is between its markers replaced."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def shown(page: str) -> str:
    """Return what is between a page's markers."""
    return page.partition(BEGIN)[2].partition(END)[0].strip("\n")


def main() -> None:
    cells = read()[1:]  # the page has a beginning of its own
    with tempfile.TemporaryDirectory() as folder, Kernel(Path(folder)) as kernel:
        text = as_markdown(cells, run(cells, kernel))
    if "--write" in sys.argv:
        PAGE.write_text(fill_in(PAGE.read_text(), text))
    else:
        print(text)


if __name__ == "__main__":
    main()
