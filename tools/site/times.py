"""How long a page takes: what is on it, counted, each kind at its pace.

The paces are assumptions, and tests/newcomer/times.toml has what they are checked against.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from exercises import catalogue
from tools.site import snippets
from tools.site.blocks import DOCS, FENCE

WORDS_A_MINUTE = 190  # prose that explains, read once
CODE_LINES_A_MINUTE = 12  # until one could say what each line is for
SHOWN_LINES_A_MINUTE = 40  # what a command prints: compared, not studied
RUN_MINUTES = 1.0  # type it, wait, look
PREDICTION_MINUTES = 0.75  # make up one's mind
LAB_MINUTES = 3.0
SKIMMED_LINES_A_MINUTE = 40  # code of a part that the page does not show

PIECE = snippets.REFERENCE
EXERCISE = re.compile(r"\(\.\./exercises\.md#([\w-]+)\)")
COMMAND = re.compile(r"^(\$ )?(\S+=\S+ )*(python|make|miniray|pytest) ")
PLAIN = {"", "text", "toml", "diff"}


@dataclass
class Counts:
    """What is on a page, or on a part of one."""

    words: int = 0
    code_lines: int = 0
    shown_lines: int = 0
    skimmed_lines: int = 0
    runs: int = 0
    predictions: int = 0
    labs: int = 0
    exercises: int = 0
    exercise_minutes: int = 0  # what the exercises say of themselves

    @property
    def minutes(self) -> int:
        """How long it takes without the exercises, in whole minutes, at least one."""
        exact = (
            self.words / WORDS_A_MINUTE
            + self.code_lines / CODE_LINES_A_MINUTE
            + self.shown_lines / SHOWN_LINES_A_MINUTE
            + self.skimmed_lines / SKIMMED_LINES_A_MINUTE
            + self.runs * RUN_MINUTES
            + self.predictions * PREDICTION_MINUTES
            + self.labs * LAB_MINUTES
        )
        return max(round(exact), 1)

    def __str__(self) -> str:
        named = {
            "word": self.words,
            "line of code": self.code_lines,
            "run": self.runs,
            "prediction": self.predictions,
            "lab": self.labs,
            "exercise": self.exercises,
        }
        many = [
            f"{count:,} {name.replace(' of', 's of') if ' of' in name else name + 's'}"
            if count > 1
            else f"1 {name}"
            for name, count in named.items()
            if count
        ]
        return ", ".join(many)


def count(text: str) -> Counts:
    """Count what is in a Markdown text; code that it includes counts as it is shown."""
    counts = Counts()
    if text.startswith("---\n"):
        text = text.split("---\n", 2)[2]
    fence, language = "", ""
    for line in text.splitlines():
        match = FENCE.match(line)
        if match and (not fence or match["fence"] == fence):
            fence, language = ("", "") if fence else (match["fence"], match["language"])
        elif fence:
            _count_code(line.strip(), language, counts)
        else:
            _count_prose(line, counts)
    anchors = {*EXERCISE.findall(text)}
    counts.exercises = len(anchors)
    counts.exercise_minutes = sum(
        one.minutes for one in catalogue.load() if anchor_of(one.title) in anchors
    )
    return counts


def anchor_of(title: str) -> str:
    """Return the anchor of an exercise's heading."""
    return title.lower().replace(" ", "-")


def _count_code(line: str, language: str, counts: Counts) -> None:
    if piece := PIECE.match(line):
        counts.code_lines += sum(
            bool(one.strip()) for one in snippets.cut(*piece.groups()).splitlines()
        )
    elif language in ("console", "sh"):
        if " exercises lab " in line:
            counts.labs += 1
        elif COMMAND.match(line) and " exercises " not in line:
            counts.runs += 1
        elif language == "console":
            counts.shown_lines += 1
    elif line and language not in PLAIN:
        counts.code_lines += 1
    else:
        counts.shown_lines += bool(line)


def _count_prose(line: str, counts: Counts) -> None:
    counts.predictions += line.startswith("??? predict")
    line = line.lstrip().removeprefix('<p class="names" markdown>').removesuffix("</p>")
    if not line.startswith(("--8<--", "<", "|--", "![")):
        counts.words += len(re.findall(r"[^\W_][^\s]*", line))


def sections(page: Path) -> dict[str, str]:
    """Return a page's text by its second headings; what is before the first is under ""."""
    first, *rest = re.split(r"(?m)^## ", page.read_text())
    return {"": first} | {part.partition("\n")[0]: part.partition("\n")[2] for part in rest}


def as_markdown(counts: Counts) -> str:
    """Return the line that says how long a page takes, and of what."""
    more = f" and {_long(counts.exercise_minutes)} of exercises" if counts.exercises else ""
    return f'<p class="time"><b>About {_long(counts.minutes)}</b>{more}: {counts}.</p>\n'


def _long(minutes: int) -> str:
    if minutes > 90:
        return f"{round(minutes / 30) / 2:g} hours"
    return f"{minutes} minute{'s' if minutes > 1 else ''}"


def name_of(page: Path) -> str:
    """Return the name of the file that says how long a page takes."""
    return "time-" + "-".join(page.relative_to(DOCS).with_suffix("").parts) + ".md"
