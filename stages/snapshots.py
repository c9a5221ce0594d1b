"""Read the stages and miniray as text, and say what changed from one to the next."""

import ast
import difflib
import io
import tokenize
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
NAMES = (
    "stage1_uds_worker",
    "stage2_remote_worker",
    "stage3_worker_server",
    "stage4_ssh_cluster",
    "stage5_nccl_fsdp",
)
# The order in which a reader meets the modules; any other comes after them.
READING_ORDER = (
    *("errors", "inherited", "header", "codec", "values", "classes", "dtypes", "refusals"),
    *("shared_tensor", "shared_memory", "pool", "wire"),
    *("auth", "waiting", "turn", "frames", "endings", "channel", "torch_fork", "process", "work"),
    *("any_worker", "worker", "connection", "group", "remote_worker", "work_fn", "poll_loop"),
    *("listening", "strangers", "worker_record", "worker_log", "worker_server", "node_config"),
    *("pacemaker", "node_log", "session", "faults", "node", "cluster", "sources", "bootstrap"),
    *("node_server",),
    *("rendezvous", "torch_store", "fake_gpu", "nccl", "__init__"),
)
SCRIPTS = ("demo", "train", "__main__")
# What each stage says of itself; every other file is shared with the next stage.
OWN_FILES = ("README.md", "__init__.py", "demo.py")
NO_CODE = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
    *(tokenize.ENCODING, tokenize.ENDMARKER),
}


@dataclass
class Snapshot:
    """The modules of one stage, or of miniray; neither tests nor scripts count as modules."""

    name: str
    folder: Path
    modules: dict[str, str] = field(default_factory=dict)  # by name, in reading order
    others: dict[str, str] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """The first line of the package's docstring."""
        return first_line((self.folder / "__init__.py").read_text())


@dataclass
class Change:
    """What became of one module."""

    module: str
    before: list[str]  # its code lines: no blank lines, no comments, no docstrings
    after: list[str]
    names: list[str]
    texts: tuple[str, str]

    @property
    def added(self) -> int:
        """How many code lines are new."""
        return sum(line[0] == "+" for line in self.diff())

    @property
    def deleted(self) -> int:
        """How many code lines are gone."""
        return sum(line[0] == "-" for line in self.diff())

    def diff(self, *, context: int = 0, full: bool = False) -> list[str]:
        """Return the unified diff of the code lines, or of all lines, without its head."""
        old, new = [text.splitlines() for text in self.texts] if full else (self.before, self.after)
        lines = difflib.unified_diff(old, new, n=context, lineterm="")
        return [line for line in lines if not line.startswith(("---", "+++"))]


def load(which: str) -> Snapshot:
    """Return stage "1" to "5", or "miniray"; raise ValueError for anything else."""
    if which == "miniray":
        folder = REPOSITORY / "miniray"
    elif which in ("1", "2", "3", "4", "5"):
        folder = REPOSITORY / "stages" / NAMES[int(which) - 1]
    else:
        raise ValueError(f"there is no stage {which!r}; name 1, 2, 3, 4, 5 or miniray")
    snapshot = Snapshot(folder.name, folder)
    texts = {path.stem: path.read_text() for path in sorted(folder.glob("*.py"))}
    for name in sorted(texts, key=_place):
        is_module = name not in SCRIPTS and not name.startswith("test_")
        (snapshot.modules if is_module else snapshot.others)[name] = texts[name]
    return snapshot


def _place(name: str) -> tuple[int, str]:
    return READING_ORDER.index(name) if name in READING_ORDER else len(READING_ORDER), name


def compare(before: Snapshot, after: Snapshot) -> list[Change]:
    """Return a change for each module that differs, in reading order."""
    changes = []
    for module in sorted({*before.modules, *after.modules}, key=_place):
        texts = [one.modules.get(module, "") for one in (before, after)]
        old, new = (code_lines(text) for text in texts)
        if old != new:
            known = names_in(texts[0])
            names = [name for name in names_in(texts[1]) if name not in known]
            changes.append(Change(module, old, new, names, (texts[0], texts[1])))
    return changes


def differences(before: Snapshot, after: Snapshot) -> dict[str, list[str]]:
    """Return the pieces that both stages have, but not the same, by file; own files do not count.

    A file whose pieces are the same, but not what is between them, has the piece "(layout)".
    """
    found = {}
    for name, text in (before.modules | before.others).items():
        following = (after.modules | after.others).get(name, "")
        if text != following and f"{name}.py" not in OWN_FILES:
            old, new = pieces(text), pieces(following)
            changed = [piece for piece in old if old[piece] != new.get(piece)]
            if changed or old == new:
                found[name] = changed or ["(layout)"]
    return found


def code_lines(source: str) -> list[str]:
    """Return the lines that hold code: no blank lines, no comments, no docstrings."""
    lines = source.splitlines()
    numbers, comments = _find_code(source)
    return [lines[number - 1][: comments.get(number)].rstrip() for number in numbers]


def added_lines(before: str, after: str) -> list[int]:
    """Return the numbers of the code lines of a text that another one has not."""
    numbers = _find_code(after)[0]
    matcher = difflib.SequenceMatcher(None, code_lines(before), code_lines(after))
    return [
        numbers[index]
        for what, _, _, start, stop in matcher.get_opcodes()
        for index in range(start, stop)
        if what != "equal"
    ]


def _find_code(source: str) -> tuple[list[int], dict[int, int]]:
    """Return the numbers of the lines that hold code, and where in a line a comment begins."""
    with_code: set[int] = set()
    comments: dict[int, int] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.start[1]
        if token.type not in NO_CODE:
            with_code.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                with_code -= {*range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    return sorted(with_code), comments


def names_in(source: str) -> list[str]:
    """Return the classes, functions, methods and constants that a module defines, in its order."""
    found = []
    for node in ast.parse(source).body:
        match node:
            case ast.ClassDef():
                found.append(node.name)
                found += [
                    f"{node.name}.{one.name}"
                    for one in node.body
                    if isinstance(one, ast.FunctionDef)
                ]
            case ast.FunctionDef():
                found.append(node.name)
            case ast.Assign(targets=[ast.Name(id=name)]) if name.strip("_").isupper():
                found.append(name)
    return found


def pieces(source: str) -> dict[str, str]:
    """Return a module's text in pieces: each function and method, the rest of a class, the rest.

    A piece has the comments above it. The rest of a module is called "(module)".
    """
    found: dict[str, str] = {}
    _cut(source.splitlines(keepends=True), ast.parse(source), "", 0, found)
    return {name: text.strip() for name, text in found.items()}


def _cut(
    lines: list[str], node: ast.Module | ast.ClassDef, name: str, start: int, found: dict[str, str]
) -> None:
    """Cut what begins after line `start` into pieces; `name` is the class's, "" for the module."""
    rest = name or "(module)"
    found[rest] = ""
    for one in node.body:
        end = one.end_lineno or one.lineno
        match one:
            case ast.ClassDef():
                _cut(lines[:end], one, f"{name}.{one.name}".lstrip("."), start, found)
            case ast.FunctionDef():
                part = f"{name}.{one.name}".lstrip(".")
                found[part] = found.get(part, "") + "".join(lines[start:end])
            case _:
                found[rest] += "".join(lines[start:end])
        start = end
    found[rest] += "".join(lines[start:])


def first_line(source: str) -> str:
    """Return the first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
