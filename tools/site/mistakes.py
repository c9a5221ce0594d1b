"""Group the wrong answers of the exercises by what one sees, for the site's page of mistakes.

It says what one sees and what one has believed, and not what to do: that is the exercise.
"""

import re
import tomllib
from pathlib import Path

from exercises.catalogue import Exercise, WrongAnswer

GROUPS = Path(__file__).with_suffix(".toml")
LAST = "Seen, and not yet sorted"


def as_markdown(exercises: list[Exercise]) -> str:
    """Return the groups, in Markdown."""
    known = _by_name(exercises)
    lines: list[str] = []
    for title, text, members in read_groups():
        lines += [f"## {title}", "", text, ""]
        for name in members:
            if name in known:
                lines += _entry(*known.pop(name))
    if known:
        lines += [f"## {LAST}", ""]
        for exercise, wrong in known.values():
            lines += _entry(exercise, wrong)
    return "\n".join(lines)


def read_groups() -> list[tuple[str, str, list[str]]]:
    """Return (title, text, names of its members) for each group."""
    groups = tomllib.loads(GROUPS.read_text())["group"]
    return [(one["title"], one["text"], one["members"].split()) for one in groups]


def find_misplaced(exercises: list[Exercise]) -> list[str]:
    """Return what is in no group, in two, or in one and nowhere else."""
    placed = [name for _, _, members in read_groups() for name in members]
    known = _by_name(exercises)
    return sorted(
        [f"{name} is in no group" for name in known if name not in placed]
        + [f"{name} is in two groups" for name in {*placed} if placed.count(name) > 1]
        + [f"{name} is no wrong answer" for name in placed if name not in known]
    )


def _by_name(exercises: list[Exercise]) -> dict[str, tuple[Exercise, WrongAnswer]]:
    return {
        f"{exercise.name}/{wrong.name}": (exercise, wrong)
        for exercise in exercises
        for wrong in exercise.wrong_answers
    }


def _entry(exercise: Exercise, wrong: WrongAnswer) -> list[str]:
    symptom = re.sub(r"<(\w+)>", r"`<\1>`", wrong.symptom).replace('"', "'")
    anchor = exercise.title.lower().replace(" ", "-")
    return [
        f'??? seen "{symptom}"',
        "",
        f"    One has believed: *{wrong.misconception}*",
        "",
        f"    [{exercise.title}](exercises.md#{anchor}), stage {exercise.stage}",
        "",
    ]
