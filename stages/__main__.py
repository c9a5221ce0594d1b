"""Compare, read, test and change the stages: python -m stages

python -m stages [parts | show 1.2 | test 1.2 | diff 1 2 | carry 1 | table | additions]
"""

import argparse
import difflib
import fnmatch
import os
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import Any

from stages import capabilities, carry, parts, snapshots

README = Path(__file__).with_name("README.md")
ADDITIONS = Path(__file__).with_name("additions.toml")
ADDITIONS_PAGE = snapshots.REPOSITORY / "docs" / "from-stage5-to-miniray.md"
CARRY = """\
Take what you have changed in one stage into all later ones.

Each file that changed is merged into the next stage's, three ways: the file as it was, the file as
it is, and the next stage's, which keeps what is its own. Then that stage's change is merged into
the one after it, and so on. README.md, __init__.py and demo.py are each stage's own, and stay. In
the end the tables and pages that are made from the stages are written anew.

Where a change does not fit, it stops and says where: decide there, and go on with the command that
it shows. Running it again does no harm: what a stage has taken in is not carried twice.
"""
GREEN, RED, BOLD, PLAIN = "\x1b[32m", "\x1b[31m", "\x1b[1m", "\x1b[0m"


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m stages", description="Compare, read, test and change the stages."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("parts", help="what one learns at a sitting, stage by stage")
    shown = commands.add_parser("show", help="the code that is new in a part")
    shown.add_argument("part", help="1.1, 1.2, 2.1 ...")
    tested = commands.add_parser("test", help="run the tests of a part")
    tested.add_argument("part", help="1.1, 1.2, 2.1 ...")
    tested.add_argument(
        "--in",
        dest="folder",
        metavar="FOLDER",
        help="of your own copy: my_miniray, with stage1_uds_worker and so on in it",
    )
    diff = commands.add_parser("diff", help="what changes from one stage to another")
    diff.add_argument("before", help="1, 2, 3, 4 or 5")
    diff.add_argument("after", help="1, 2, 3, 4, 5 or miniray")
    diff.add_argument("--full", action="store_true", help="code with its comments and docstrings")
    diff.add_argument("--summary", action="store_true", help="files and names, without the code")
    diff.add_argument("--markdown", action="store_true", help="as a page of the site")
    carried = commands.add_parser(
        "carry",
        help="take what you have changed in a stage into all later ones",
        description=CARRY,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    carried.add_argument("stage", type=int, help="the stage that you have changed")
    carried.add_argument(
        "--since",
        metavar="REVISION",
        default="HEAD",
        help="what counts as changed: by default what is not committed yet",
    )
    carried.add_argument("--dry-run", action="store_true", help="write nothing, and say what would")
    for command, what in (
        ("table", "who has which capability, and how large each stage is"),
        ("additions", "what miniray adds to stage 5, and why"),
    ):
        table = commands.add_parser(command, help=what)
        table.add_argument("--write", action="store_true", help="into the file that shows it")
    arguments = parser.parse_args(argv)
    try:
        match arguments.command:
            case "parts":
                print(parts.make_list())
            case "show":
                print(parts.show(parts.find(arguments.part)), end="")
            case "test":
                return test(arguments.part, arguments.folder)
            case "diff":
                before, after = (snapshots.load(one) for one in (arguments.before, arguments.after))
                show = diff_as_markdown if arguments.markdown else diff_as_text
                code = "none" if arguments.summary else "full" if arguments.full else "code"
                print(show(before, after, code=code))
            case "carry":
                return carry.carry(
                    arguments.stage, since=arguments.since, dry_run=arguments.dry_run
                )
            case "table":
                text = fill(README.read_text(), "stages", make_tables())
                README.write_text(text) if arguments.write else print(make_tables())
            case "additions":
                page = make_additions_page()
                ADDITIONS_PAGE.write_text(page) if arguments.write else print(page)
            case _:
                print(list_stages())
                print("Compare two: python -m stages diff 1 2       More: python -m stages --help")
                print(
                    "Read one in parts: python -m stages parts    then: python -m stages show 1.1"
                )
    except ValueError as error:
        parser.error(str(error))
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def test(number: str, folder: str | None) -> int:
    """Run the tests of a part, on the stage or on the reader's own copy; return the status."""
    part = parts.find(number)
    package = f"stages.{part.package}"
    if folder:
        path = Path(folder).resolve()
        sys.path.insert(0, str(path.parent))
        package = f"{path.name}.{part.package}"
    return 0 if parts.run_tests(part, package) else 1


def list_stages() -> str:
    """Return a line for each stage."""
    lines = []
    for which in (*"12345", "miniray"):
        snapshot = snapshots.load(which)
        lines.append(f"  {which:8}{_count(snapshot):5} code lines   {snapshot.summary}")
    return "\n".join([*lines, ""])


def _count(snapshot: snapshots.Snapshot) -> int:
    return sum(len(snapshots.code_lines(text)) for text in snapshot.modules.values())


def diff_as_text(
    before: snapshots.Snapshot, after: snapshots.Snapshot, *, code: str = "code"
) -> str:
    """Return the changes for a terminal, in colour if standard output is one."""
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    green, red, bold, plain = (GREEN, RED, BOLD, PLAIN) if colour else ("", "", "", "")
    changes = snapshots.compare(before, after)
    lines = [f"{bold}{before.name} -> {after.name}{plain}: {after.summary}", ""]
    if not changes:
        return f"{before.name} and {after.name} have the same code"
    for one in changes:
        numbers = f"{green}{f'+{one.added}':5}{plain} {red}{f'-{one.deleted}':4}{plain}"
        lines.append(f"  {one.module + '.py':20} {numbers} {'' if one.before else 'new'}".rstrip())
        names = [name for name in one.names if not name.rpartition(".")[2].startswith("_")]
        says = "" if one.before else snapshots.first_line(one.texts[1])
        for words in (says, ", ".join(names)):
            lines += textwrap.wrap(words, 100, initial_indent=" " * 23, subsequent_indent=" " * 23)
    added, deleted = (sum(counts) for counts in _totals(changes))
    lines.append(f"  {'code lines':20} {green}{f'+{added}':5}{plain} {red}-{deleted}{plain}")
    if code != "none":
        if code == "code":
            lines += [
                "",
                "Below is code alone, with line numbers of its own; --full shows all text.",
            ]
        for one in changes:
            lines += ["", f"{bold}{one.module}.py{plain}"]
            for line in one.diff(context=2, full=code == "full"):
                shade = {"+": green, "-": red}.get(line[0], "")
                lines.append(f"{shade}{line}{plain if shade else ''}")
    return "\n".join(lines)


def _totals(changes: list[snapshots.Change]) -> tuple[list[int], list[int]]:
    return [one.added for one in changes], [one.deleted for one in changes]


def diff_as_markdown(
    before: snapshots.Snapshot, after: snapshots.Snapshot, *, code: str = "code"
) -> str:
    """Return the changes as a part of a page."""
    changes = snapshots.compare(before, after)
    lines = ["| file | added | deleted | new names |", "|---|---:|---:|---|"]
    for one in changes:
        names = [name for name in one.names if not name.rpartition(".")[2].startswith("_")]
        shown = ", ".join(f"`{name}`" for name in names)
        lines.append(f"| `{one.module}.py` | {one.added} | {one.deleted} | {shown} |")
    added, deleted = (sum(counts) for counts in _totals(changes))
    lines.append(f"| **code lines** | **{added}** | **{deleted}** | |")
    if code != "none":
        for one in changes:
            lines += ["", f'??? note "{one.module}.py"', "", "    ```diff"]
            lines += [f"    {line}".rstrip() for line in one.diff(context=2, full=code == "full")]
            lines += ["    ```"]
    return "\n".join(lines)


def make_tables() -> str:
    """Return the stages and their capabilities, in Markdown."""
    rows = ["| stage | code lines | added | deleted | what it is |", "|---|---:|---:|---:|---|"]
    for which in "12345":
        snapshot = snapshots.load(which)
        added, deleted = "", ""
        if which > "1":
            changes = snapshots.compare(snapshots.load(str(int(which) - 1)), snapshot)
            added, deleted = (str(sum(counts)) for counts in _totals(changes))
        words = snapshot.summary.partition(": ")[2]
        link = f"[{which}]({snapshot.name}/README.md)"
        rows.append(f"| {link} | {_count(snapshot)} | {added} | {deleted} | {words} |")
    return "\n".join([*rows, "", capabilities.make_table()])


def fill(text: str, name: str, content: str) -> str:
    """Return a text with the content between its two markers of that name."""
    before, begin, rest = text.partition(f"<!-- {name}:begin -->")
    _, end, after = rest.partition(f"<!-- {name}:end -->")
    if not (begin and end):
        raise ValueError(f"there is no <!-- {name}:begin --> and end; add both")
    return f"{before}{begin}\n{content}\n{end}{after}"


def make_additions_page() -> str:
    """Return the page of what miniray adds to stage 5, file by file, with reasons.

    A name with a star stands for whatever it matches that no other reason of the module names;
    "*" alone is for a new module. Raises ValueError for a name that has no reason, and for a
    reason whose name is not there.
    """
    reasons = tomllib.loads(ADDITIONS.read_text())
    changes = snapshots.compare(snapshots.load("5"), snapshots.load("miniray"))
    check_reasons(changes, reasons)
    lines = [reasons["introduction"].strip(), ""]
    for one in changes:
        entry = reasons[one.module]
        size = f"{len(one.before)} code lines in stage 5, " if one.before else "new, "
        lines += [f"## `{one.module}.py`", "", f"*{size}{len(one.after)} in miniray.*", ""]
        if "summary" in entry:
            lines += [entry["summary"].strip(), ""]
        for addition, found in zip(entry["addition"], _expand(one, entry), strict=True):
            reason = addition["reason"].strip()
            # A class is shown, and not all that it has; of a file that is new not even that.
            shown = [
                name for name in found if name.partition(".")[0] not in found or "." not in name
            ]
            names = ", ".join(f"`{name}`" for name in shown if addition["names"] != ["*"])
            lines.append(f"- {reason}\\\n  {names}" if names else f"- {reason}")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def check_reasons(changes: list[snapshots.Change], reasons: dict[str, Any]) -> None:
    """Raise ValueError unless every added name has exactly one reason."""
    for one in changes:
        entry = reasons.get(one.module)
        if not isinstance(entry, dict):
            raise ValueError(f"additions.toml has no [{one.module}], whose code differs; add it")
        given = [name for found in _expand(one, entry) for name in found]
        if sorted(given) != sorted(one.names):
            lines = difflib.unified_diff(sorted(given), sorted(one.names), n=0, lineterm="")
            wrong = " ".join(line for line in lines if not line.startswith(("---", "+++", "@@")))
            raise ValueError(
                f"additions.toml, {one.module}: + has no reason, - is not an addition: {wrong}"
            )


def _expand(change: snapshots.Change, entry: dict[str, Any]) -> list[list[str]]:
    """Return for each reason its names, and those that its patterns stand for."""
    given = [one["names"] for one in entry.get("addition", [])]
    taken = {name for names in given for name in names}
    expanded = []
    for names in given:
        found = []
        for pattern in names:
            meant = [pattern]
            if "*" in pattern and (pattern != "*" or not change.before):
                meant = [one for one in change.names if fnmatch.fnmatchcase(one, pattern)]
                meant = [one for one in meant if one not in taken] or [pattern]
                taken.update(meant)
            found += meant
        expanded.append(found)
    return expanded


if __name__ == "__main__":
    sys.exit(main())
