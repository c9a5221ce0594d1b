"""What a chapter says of each part of its stage: how long it takes, and its commands."""

from pathlib import Path

from exercises import catalogue
from stages import parts
from tools.site import times
from tools.site.blocks import DOCS


def chapter_of(part: parts.Part) -> Path:
    """Return the page that a part is on."""
    return DOCS / "tutorial" / f"stage{part.stage}.md"


def text_of(part: parts.Part) -> str:
    """Return a part's own text in its chapter; raise ValueError if it has none."""
    heading = f"{part.number} {part.title}"
    found = times.sections(chapter_of(part)).get(heading)
    if found is None:
        raise ValueError(f"{chapter_of(part).relative_to(DOCS)} has no heading '## {heading}'")
    return found


def count(part: parts.Part) -> times.Counts:
    """Count what is in a part: its text, the rest of its code, and its test."""
    counts = times.count(text_of(part))
    counts.skimmed_lines = max(part.size - counts.code_lines, 0)
    counts.runs += 1
    mine = [one for one in catalogue.load() if one.name in part.exercises]
    counts.exercises, counts.exercise_minutes = len(mine), sum(one.minutes for one in mine)
    return counts


def count_chapter(page: Path) -> times.Counts:
    """Count what is on a page, and what its parts add to it."""
    counts = times.count(page.read_text())
    for part in parts.load():
        if chapter_of(part) == page:
            counts.skimmed_lines += count(part).skimmed_lines
            counts.runs += 1
    return counts


def head(part: parts.Part) -> str:
    """Return the line below a part's heading."""
    line = times.as_markdown(count(part)).rstrip().removesuffix(".</p>")
    return f"{line}. {part.size} lines of the stage are new with it.</p>\n"


def point(part: parts.Part) -> str:
    """Return a part's commands: its code, its tests, its exercises."""
    many = len(parts.test_ids(part))
    tests = f"{many} tests" if many > 1 else "its test"
    commands = {
        f"python -m exercises start {part.stage}": "your own copy; what is there stays",
        **dict.fromkeys((f"python -m exercises check {name}" for name in part.exercises), ""),
        f"python -m stages test {part.number} --in my_miniray": f"{tests}, on your copy",
        f"python -m stages test {part.number}": "the same, on our stage",
        f"python -m stages show {part.number}": "all of our code",
    }
    width = max(map(len, commands))
    lines = [
        f"{command:{width}}   # {says}" if says else command for command, says in commands.items()
    ]
    return "\n".join(["```sh", *lines, "```", ""])
