"""Count the code lines of miniray's modules, and print or write the README's tables of them."""

import argparse
import ast
import io
import sys
import textwrap
import tokenize
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "miniray"
README = REPOSITORY / "README.md"

# What the announcement calls the system: the part that turns a socket into a cluster.
SYSTEM = ("remote_worker", "worker_server", "cluster", "nccl")
SYSTEM_LINES_MAX = 650
MODULE_LINES_MAX = {"remote_worker": 150, "worker_server": 200, "cluster": 200, "nccl": 100}
# The shortest way through the whole idea, from bytes to a cluster: these files can be understood
# without the others.
READING_PATH = (
    *("errors", "wire", "endpoint", "channel", "process", "worker"),
    *("remote_worker", "worker_server", "cluster"),
)
READING_PATH_LINES_MAX = 1000
PACKAGE_LINES_MAX = 6806
CLASS_LINES_MAX = 200
# The order of the table: each part of the package from what it offers down to what it stands on.
# What is not named here comes last.
TABLE_ORDER = (
    *READING_PATH,
    *("nccl", "rendezvous", "torch_store", "fake_gpu", "holdings"),
    *(
        "frames",
        "decoding",
        "header",
        "codec",
        "values",
        "classes",
        "dtypes",
        "refusals",
        "shared_tensor",
        "shared_memory",
        "loans",
        "pool",
        "fan_out",
        "calls",
        "cells",
        "constants",
        "definitions",
        "crew",
        "recovery",
    ),
    *("waiting", "turn", "bell", "endings", "inherited", "child", "torch_fork", "kernel_fork"),
    *("auth", "any_worker", "connection", "encrypted", "tls", "group"),
    *("listening", "strangers", "greeting", "worker_record", "worker_log", "window", "title"),
    *("poll_loop", "work_fn"),
    *("faults", "node_config", "nodes", "node", "session", "node_log", "pacemaker", "sources"),
    *("sync", "rsync", "bootstrap", "folder_copy", "node_server", "notice"),
)
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def count_code_lines(source: str) -> int:
    """Count the lines that hold code: no blank lines, no comments, no docstrings."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - _docstring_lines(ast.parse(source)))


def count_package() -> dict[str, int]:
    """Return the code lines of each module of miniray above `cli/`, in the table's order."""
    found = {path.stem: path for path in PACKAGE.glob("*.py") if path.stem != "__main__"}
    names = [name for name in TABLE_ORDER if name in found]
    names += sorted(set(found) - set(names))
    return {name: count_code_lines(found[name].read_text()) for name in names}


def count_class_lines() -> dict[str, int]:
    """Return the code lines of each class of miniray, by "module.Class"."""
    counts: dict[str, int] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        source = path.read_text()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                text = "\n".join(source.splitlines()[node.lineno - 1 : node.end_lineno])
                counts[f"{path.stem}.{node.name}"] = count_code_lines(textwrap.dedent(text))
    return counts


def make_table() -> str:
    """Return the README's table of modules, in Markdown."""
    counts = count_package()
    rows = ["| module | lines | what it is |", "|---|---:|---|"]
    rows += [f"| {_link(name)} | {lines} | {_summary(name)} |" for name, lines in counts.items()]
    for names in (READING_PATH, SYSTEM):
        lines = sum(counts[name] for name in names)
        rows.append(f"| {' + '.join(f'`{name}`' for name in names)} | **{lines}** | |")
    rows.append(f"| everything above `cli/` | **{sum(counts.values())}** | |")
    return "\n".join(rows)


def make_reading_path() -> str:
    """Return the reading path, in Markdown: what to read, in order, with lines so far."""
    counts = count_package()
    rows = ["| | read | lines | so far |", "|---:|---|---:|---:|"]
    so_far = 0
    for number, name in enumerate(READING_PATH, 1):
        so_far += counts[name]
        rows.append(f"| {number} | {_link(name)} | {counts[name]} | {so_far} |")
    return "\n".join(rows)


def _link(name: str) -> str:
    return f"[`{name}`](miniray/{name}.py)"


def _summary(name: str) -> str:
    docstring = ast.get_docstring(ast.parse((PACKAGE / f"{name}.py").read_text())) or ""
    return docstring.partition("\n")[0].replace("|", "\\|")


def fill_in(readme: str) -> str:
    """Return the README's text with its tables of lines as they are measured now."""
    readme = replace_table(readme, make_table())
    return replace_table(readme, make_reading_path(), "path")


def replace_table(readme: str, table: str, name: str = "lines") -> str:
    """Return the README's text with `table` between the two markers of that name."""
    before, begin, rest = readme.partition(f"<!-- {name}:begin -->")
    _, end, after = rest.partition(f"<!-- {name}:end -->")
    if not (begin and end):
        raise ValueError(f"README.md has no <!-- {name}:begin --> and end; add both")
    return f"{before}{begin}\n{table}\n{end}{after}"


def main() -> int:
    """Print the tables, or with --write put them into the README."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the tables into README.md")
    if not parser.parse_args().write:
        print(make_reading_path(), make_table(), sep="\n\n")
        return 0
    README.write_text(fill_in(README.read_text()))
    return 0


def _docstring_lines(tree: ast.Module) -> set[int]:
    lines: set[int] = set()
    for node in ast.walk(tree):
        # Also a string below an attribute: it documents as a docstring does, and runs as little.
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                lines.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


if __name__ == "__main__":
    sys.exit(main())
