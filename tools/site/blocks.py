"""Find the site's code blocks, execute them, and write down what commands print.

A page's `python` blocks run in their order, as one program; a block with a title is a file that
the program can import. A `console` block has commands, each after "$ ", and what they print; a
line "..." stands for any number of lines. A block that only includes a file of this repository is
not run here: that file is run, or tested, by itself.
"""

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
LIMIT_S = 240
FENCE = re.compile(r"^(?P<indent> *)(?P<fence>```+)(?P<language>[\w.+-]*)(?P<options>[^\n`]*)$")
TITLE = re.compile(r'title="([^"]+)"')
INCLUDE = '--8<-- "'


@dataclass
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    language: str
    title: str
    lines: list[str]  # without the page's indentation
    indent: str

    @property
    def text(self) -> str:
        return "".join(f"{line}\n" for line in self.lines)

    @property
    def is_included(self) -> bool:
        """Return whether it consists of nothing but files of this repository."""
        return all(line.startswith(INCLUDE) for line in self.lines if line.strip())

    def __str__(self) -> str:
        return f"{self.page.relative_to(DOCS)}:{self.line}"


def pages() -> list[Path]:
    """Return every page of the site."""
    generated = DOCS / "generated"
    return sorted(page for page in DOCS.rglob("*.md") if generated not in page.parents)


def find(page: Path, language: str | None = None) -> list[Block]:
    """Return a page's fenced blocks, in a language or in any."""
    blocks: list[Block] = []
    inside: tuple[Block, str] | None = None
    for number, line in enumerate(page.read_text().splitlines(), 1):
        match = FENCE.match(line)
        if inside is not None:
            block, fence = inside
            if match and match["fence"] == fence and not match["language"]:
                inside = None
            else:
                block.lines.append(line.removeprefix(block.indent))
        elif match:
            title = TITLE.search(match["options"])
            block = Block(
                page, number, match["language"], title[1] if title else "", [], match["indent"]
            )
            blocks.append(block)
            inside = block, match["fence"]
    return [one for one in blocks if language is None or one.language == language]


def run_python(page: Path) -> int:
    """Run a page's Python blocks; return how many. Raises RuntimeError with what went wrong."""
    blocks = [one for one in find(page, "python") if not one.is_included]
    if not blocks:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        program: list[str] = []
        for block in blocks:
            if block.title:
                Path(folder, block.title).write_text(block.text)
            else:
                program += [
                    "\n" * (block.line - sum(one.count("\n") for one in program)),
                    block.text,
                ]
        # As many lines above each as on the page, so that a traceback names the page's line.
        script = Path(folder, page.name.replace(".md", "_page.py"))
        script.write_text("".join(program))
        done = subprocess.run(
            [sys.executable, str(script)],
            cwd=folder,
            env=_environment() | {"PYTHONPATH": f"{folder}:{REPOSITORY}"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
    if done.returncode:
        raise RuntimeError(f"{page.name}: {done.stdout}{done.stderr}")
    return len(blocks)


def run_console(block: Block) -> list[str]:
    """Run a block's commands; return the lines that it should have.

    A reader's own copy of the stages is in another place meanwhile: none, at the beginning.
    """
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        mine = f"{folder}/my_miniray"
        own = {"MY_MINIRAY": mine}
        if any("--detach" in line for line in block.lines):
            own["HOME"] = folder  # where the reader's runs are
        for command, _ in commands(block):
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=REPOSITORY,
                env=_environment() | own,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=LIMIT_S,
            )
            printed = done.stdout.replace(mine, "my_miniray").replace(str(REPOSITORY), "miniray")
            lines += [f"$ {command}", *(line.rstrip() for line in printed.rstrip().splitlines())]
    return lines


def commands(block: Block) -> list[tuple[str, list[str]]]:
    """Return a console block's commands, each with what it is said to print."""
    found: list[tuple[str, list[str]]] = []
    for line in block.lines:
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif not found:
            raise ValueError(f"{block}: a console block begins with a command")
        else:
            found[-1][1].append(line)
    return found


def agrees(shown: list[str], printed: list[str]) -> bool:
    """Return whether a transcript says what was printed, but for what differs in each run."""
    parts = [[]]  # type: list[list[str]]
    for line in shown:
        if line.strip() == "...":
            parts.append([])
        else:
            parts[-1].append(normalise(line))
    pattern = r"(?:[^\n]*\n)*?".join(
        "".join(re.escape(f"{one}\n") for one in part) for part in parts
    )
    text = "".join(f"{normalise(line)}\n" for line in printed)
    return re.fullmatch(pattern, text) is not None


def normalise(line: str) -> str:
    """Return a line without numbers, times and the like, which differ in each run."""
    line = re.sub(r"\b[0-9a-f]{2}\b", "0", line.rstrip())  # bytes in hexadecimal
    line = re.sub(r"\d+(\.\d+)?(e-\d+)?", "0", line)
    return re.sub(r" {2,}", "  ", line)


def _environment() -> dict[str, str]:
    """Return an environment in which `python` is this one, and output is plain."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith("MINIRAY_DEMO")
    }
    folder = str(Path(sys.executable).parent)
    return kept | {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "COLUMNS": "100",
        "NO_COLOR": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def refresh(page: Path) -> int:
    """Write into a page's console blocks what the commands print now; return how many changed."""
    lines = page.read_text().splitlines()
    changed = 0
    for block in reversed(find(page, "console")):
        if block.is_included:
            continue
        printed = run_console(block)
        if agrees(block.lines, printed):
            continue
        changed += 1
        if "..." in [line.strip() for line in block.lines]:
            raise ValueError(
                f"{block}: what it shows in part is not printed any more:\n" + "\n".join(printed)
            )
        inner = [f"{block.indent}{line}".rstrip() for line in printed]
        lines[block.line : block.line + len(block.lines)] = inner
    page.write_text("\n".join(lines) + "\n")
    return changed
