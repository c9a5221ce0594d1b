"""Turn a terminal's text with its colours, from stdin, into an SVG picture.

tmux capture-pane -p -e | python tools/terminal_picture.py "miniray demo" docs/images/demo.svg
"""

import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text


def main() -> None:
    """Read stdin, write the picture."""
    title, path = sys.argv[1:]
    lines = [Text.from_ansi(line) for line in sys.stdin.read().rstrip().split("\n")]
    width = max(line.cell_len for line in lines) + 1
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    for line in lines:
        console.print(line, no_wrap=True)
    svg = console.export_svg(title=title)
    # Rich would have the reader's browser fetch its font from elsewhere.
    Path(path).write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL))


if __name__ == "__main__":
    main()
