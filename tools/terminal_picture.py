"""Run a command in a terminal of its own, and draw its last screen as an SVG picture.

python -m tools.terminal_picture "miniray demo" docs/images/demo.svg -- python -m miniray demo
"""

import html
import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

COLUMNS = 120
TOKEN = re.compile(
    r"(?P<up>\x1b\[(?P<rows>\d*)A)|(?P<erase>\x1b\[2K)|(?P<colour>\x1b\[[\d;]*m)"
    r"|(?P<other>\x1b\[[?\d;]*[A-Za-z])|(?P<newline>\n)|(?P<start>\r)|(?P<text>[^\x1b\n\r]+)"
)
NUMBERS = re.compile(r"\d[\d.,]*(e[-+]\d+)?")
BARS = re.compile(r"[━╸╺]+|[▁▂▃▄▅▆▇█]+")
WORDS = re.compile(r'<text[^>]*\bx="([\d.]+)" y="([\d.]+)"[^>]*>(.*?)</text>')


def main() -> None:
    """Run the command, write the picture."""
    title, path, _, *command = sys.argv[1:]
    status, printed = run(command)
    if status:
        sys.exit(f"{command}: status {status}\n{printed}")
    Path(path).write_text(draw(title, screen(printed)))


def run(command: list[str]) -> tuple[int, str]:
    """Run a command in a pseudo-terminal; return its status and what it printed."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS)},
        start_new_session=True,
    )
    os.close(theirs)
    printed = b""
    try:
        while data := os.read(ours, 1 << 16):
            printed += data
    except OSError:  # Linux says EIO when the other side is closed
        pass
    finally:
        os.close(ours)
    return process.wait(), printed.decode()


def screen(printed: str) -> list[str]:
    """Return the lines, with their colours, that stand there in the end.

    It knows what rich does: it goes up, erases whole lines, and writes them anew.
    """
    lines, row = [""], 0
    for token in TOKEN.finditer(printed):
        if token["up"]:
            row = max(row - int(token["rows"] or 1), 0)
        elif token["erase"]:
            lines[row] = ""
        elif token["newline"]:
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif token["colour"] or token["text"]:
            lines[row] += token[0]
    return lines


def draw(title: str, lines: list[str]) -> str:
    """Return an SVG picture of a terminal with these lines."""
    texts = [Text.from_ansi(line) for line in "\n".join(lines).rstrip().split("\n")]
    width = max(line.cell_len for line in texts) + 1
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    for line in texts:
        console.print(line, no_wrap=True)
    svg = console.export_svg(title=title, unique_id="terminal")
    # Rich would have the reader's browser fetch its font from elsewhere.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    return "".join(f"{line.rstrip()}\n" for line in svg.splitlines())


def stable(svg: str) -> list[str]:
    """Return a picture's lines as they are in every run: no numbers, no lengths of bars."""
    rows: dict[float, list[tuple[float, str]]] = {}
    for x, y, words in WORDS.findall(svg):
        rows.setdefault(float(y), []).append((float(x), html.unescape(words)))
    lines = [" ".join(words for _, words in sorted(rows[y])) for y in sorted(rows)]
    return [" ".join(BARS.sub("|", NUMBERS.sub("N", line)).split()) for line in lines]


if __name__ == "__main__":
    main()
