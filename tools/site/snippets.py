"""Cut functions and classes out of the code, for the pages that show them.

A page includes `generated/code/PACKAGE/MODULE/NAME.py`; this writes that file from NAME, which is
`function`, `Class` or `Class.method`, in the module. Or it includes `generated/pieces/NAME.py`,
which is a few lines of a function, from one that PIECES names to another.
"""

import ast
import re
import textwrap
from pathlib import Path

from tools.site.blocks import DOCS, REPOSITORY, pages

GENERATED = DOCS / "generated"
REFERENCE = re.compile(r'--8<-- "generated/code/([\w/]+)/([\w.]+)\.py"')
PIECE = re.compile(r'--8<-- "generated/pieces/([\w-]+)\.py"')
LINES_MAX = 28
# File, beginning of the first line, beginning of the last line. The first is in the file once.
PIECES = {
    "thinking-before": (
        "stages/stage5_nccl_fsdp/channel.py",
        "def detect_lost_peer(",
        "            sock.setsockopt(socket.IPPROTO_TCP, getattr(",
    ),
    "thinking-after": ("miniray/waiting.py", "def link_is_lost(", "    return unanswered >= "),
    "asleep-before": (
        "stages/stage5_nccl_fsdp/worker_server.py",
        "    server = process.fork(lambda: serve_node(",
        "    server.stop(",
    ),
    "asleep-after": (
        "miniray/pacemaker.py",
        "        ready = dict(poller.poll(BEAT_S",
        "            data = data[os.write(",
    ),
    "copy-before": ("stages/stage5_nccl_fsdp/channel.py", "def close_inherited(", "        one."),
    "copy-after": ("miniray/inherited.py", "def _abandon_all(", ")"),
    "bytes-before": (
        "stages/stage5_nccl_fsdp/channel.py",
        "            while frame is None:",
        "                frame = self._decoder.advance(",
    ),
    "bytes-after": (
        "miniray/frames.py",
        "        self.in_kernel = True",
        "            arrived.extend(map(self.sock.recv, nbytes",
    ),
    "culprit-before": (
        "stages/stage5_nccl_fsdp/demo.py",
        "        for step in range(STEPS):",
        "            losses.append(",
    ),
    "culprit-after": ("miniray/group.py", "def _explains(", "    return OWN_FAILURE if "),
}


def references() -> list[tuple[Path, str, str]]:
    """Return (page, module's path without .py, name) for everything that a page includes."""
    return [
        (page, match[1], match[2])
        for page in pages()
        for match in REFERENCE.finditer(page.read_text())
    ]


def cut(module: str, name: str) -> str:
    """Return the source of a function, class or constant of a module, without indentation."""
    file = _find(module)
    source = file.read_text()
    body: list[ast.stmt] = ast.parse(source).body
    node: ast.stmt | None = None
    for part in name.split("."):
        node = next((one for one in body if _name(one) == part), None)
        if node is None:
            raise ValueError(f"{file.relative_to(REPOSITORY)} has no {name}")
        body = getattr(node, "body", [])
    assert node is not None
    first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
    lines = source.splitlines()[first - 1 : node.end_lineno]
    return textwrap.dedent("\n".join(lines)) + "\n"


def cut_piece(name: str) -> str:
    """Return the lines of a piece, without indentation."""
    file, first, last = PIECES[name]
    lines = (REPOSITORY / file).read_text().splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith(first)]
    if len(starts) != 1:
        raise ValueError(f"{file} has {len(starts)} lines that begin with {first!r}")
    for number in range(starts[0] + 1, len(lines)):
        if lines[number].startswith(last):
            return textwrap.dedent("\n".join(lines[starts[0] : number + 1])) + "\n"
    raise ValueError(f"{file} has no line that begins with {last!r} after {first!r}")


def _find(module: str) -> Path:
    for folder in ("stages", ""):
        file = REPOSITORY / folder / f"{module}.py"
        if file.exists():
            return file
    raise ValueError(f"there is no module {module}")


def _name(node: ast.stmt) -> str | None:
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    return getattr(node, "name", None)


def write() -> int:
    """Write every file that is included; return how many."""
    for _, module, name in references():
        file = GENERATED / "code" / module / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(cut(module, name))
    (GENERATED / "pieces").mkdir()
    for name in PIECES:
        (GENERATED / "pieces" / f"{name}.py").write_text(cut_piece(name))
    return len(references()) + len(PIECES)
