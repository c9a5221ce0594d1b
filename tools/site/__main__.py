"""Make what the site shows of the code: python -m tools.site [refresh]"""

import argparse
import json
import re
import shutil
import sys

from benchmarks import report as benchmarks
from benchmarks import vs
from exercises import catalogue
from stages import parts as stage_parts
from stages import snapshots
from stages.__main__ import diff_as_markdown, make_tables
from tools import count_lines
from tools.site import (
    beyond,
    blocks,
    charts,
    figures,
    frames,
    imports,
    mistakes,
    parts,
    snippets,
    times,
    traces,
)
from tools.site.drawings.sheets import DRAW
from tools.site.snippets import GENERATED

DRAWINGS = blocks.DOCS / "images" / "drawings"


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.site", description="Make what the site shows of the code."
    )
    parser.add_argument(
        "what",
        nargs="?",
        choices=("refresh",),
        help="run every console block, and keep what it prints",
    )
    if parser.parse_args().what == "refresh":
        for page in blocks.pages():
            print(f"{page.relative_to(blocks.DOCS)}: {blocks.refresh(page)} changed", flush=True)
        return 0
    generate()
    return 0


def generate() -> None:
    """Write docs/generated anew, and the drawings, which are kept with the pages."""
    shutil.rmtree(GENERATED, ignore_errors=True)
    GENERATED.mkdir()
    for name, draw in figures.FIGURES.items():
        _write(f"{name}.svg", draw().as_svg(name))
    for name, sheet in DRAW.items():
        (DRAWINGS / f"{name}.svg").write_text(sheet().as_svg())
    _write("imports.svg", imports.draw().as_svg("imports"))
    vectors = frames.make_vectors()
    for vector in vectors:
        _write(f"frame-{vector['name']}.html", frames.as_html(vector))
    _write("frames.json", json.dumps(vectors))
    for stage in range(1, len(snapshots.NAMES) + 1):
        run = traces.record(stage)
        _write(f"trace-{stage}.html", traces.as_html(run))
    for before in range(1, len(snapshots.NAMES)):
        after = before + 1
        code = diff_as_markdown(
            snapshots.load(str(before)), snapshots.load(str(after)), code="code"
        )
        _write(f"changes-{before}-{after}.md", code + "\n")
    tables = re.sub(r"\]\((stage\d)_\w+/README\.md\)", r"](tutorial/\1.md)", make_tables())
    sizes, capabilities = tables.split("\n\n")
    _write("stages.md", _what_first(sizes) + "\n")
    _write("capabilities.md", capabilities + "\n")
    _write("lines.md", _without_links(count_lines.make_table()))
    _write("path.md", _without_links(count_lines.make_reading_path()))
    results = benchmarks.read_results()
    for name, chart in charts.draw_all(results).items():
        _write(f"chart-{name}.svg", chart.as_svg(f"chart-{name}"))
    _write("beyond.md", beyond.as_markdown(results) + "\n")
    _write("benchmarks.md", benchmarks.as_markdown(results) + "\n")
    known = catalogue.load()
    count = sum(len(one.wrong_answers) for one in known)
    _write("vs.md", vs.as_markdown(vs.read_results()) + "\n")
    _write("mistakes.md", mistakes.as_markdown(known))
    _write("counts.md", f"{len(known)} exercises, and a companion that knows {count} mistakes\n")
    for page in blocks.pages():
        _write(times.name_of(page), times.as_markdown(parts.count_chapter(page)))
    for part in stage_parts.load():
        name = part.number.replace(".", "-")
        _write(f"part-{name}.md", parts.head(part))
        _write(f"point-{name}.md", parts.point(part))
    print(
        f"{snippets.write()} pieces of code, {len(vectors)} frames, {len(snapshots.NAMES)} runs",
        file=sys.stderr,
    )


def _without_links(table: str) -> str:
    """Return a table of modules whose files are no pages of the site."""
    return re.sub(r"\[(`\w+`)\]\(miniray/\w+\.py\)", r"\1", table) + "\n"


def _what_first(table: str) -> str:
    """Return a table with its last column second: on a phone it is the one that counts."""
    rows = [line.strip("|").split("|") for line in table.splitlines()]
    return "\n".join("|".join(["", row[0], row[-1], *row[1:-1], ""]) for row in rows)


def _write(name: str, text: str) -> None:
    (GENERATED / name).write_text(text)


if __name__ == "__main__":
    sys.exit(main())
