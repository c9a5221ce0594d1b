"""The companion's words: every result has the same shape."""

import os
import sys
from pathlib import Path

from exercises.catalogue import Exercise, WrongAnswer
from exercises.progress import Progress
from exercises.runner import HUNG, PASSED, RAISED, Outcome

WIDTH = 96
EXERCISES_HEAD = """# Exercises

Each is a file to complete, and a check that answers within two seconds. In the clone, with
nothing but Python:

```sh
python -m exercises            # the map: where you are, and what is next
python -m exercises check      # the next one; it says which file is yours
python -m exercises check --watch
```

Write between the two marks in that file. A check runs it in a process of its own, so it may hang,
crash or fork: nothing is left. If your mistake is among the [usual ones](mistakes.md), it says so.
There are three hints for each, here and from `python -m exercises hint`; open them one at a time.\
"""
CODES = {"green": 32, "red": 31, "yellow": 33, "blue": 36, "bold": 1, "dim": 2}


def command(arguments: str) -> str:
    """Return what to type, with the Python that runs this: there may be none called python."""
    return f"{Path(sys.executable).name} -m exercises {arguments}".rstrip()


def paint(text: str, colour: str) -> str:
    """Return a text in a colour, if standard output is a terminal that wants it."""
    wanted = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return f"\x1b[{CODES[colour]}m{text}\x1b[0m" if wanted else text


def wrap(text: str, indent: str) -> str:
    """Return a text in lines of WIDTH, each with the indent; empty lines divide paragraphs."""
    import textwrap

    paragraphs = [" ".join(part.split()) for part in text.strip().split("\n\n")]
    fill = [
        textwrap.fill(one, WIDTH, initial_indent=indent, subsequent_indent=indent)
        for one in paragraphs
    ]
    return "\n\n".join(fill)


def failure(exercise: Exercise, outcome: Outcome, reason: WrongAnswer | None) -> str:
    """Return what to tell about a check that failed: always these parts, in this order."""
    titles = {HUNG: "it hangs", RAISED: "it raised an error"}
    head = f"{exercise.name}: not yet, {titles.get(outcome.kind, 'it does something else')}"
    lines = [paint(head, "red"), ""]
    rows = [("we did", outcome.did), ("we expected", outcome.expected or "no error")]
    rows.append(("what happened", outcome.happened))
    likely = reason.hint if reason else _guess(outcome)
    rows.append(("likely reason", likely))
    if outcome.where:
        rows.append(("where", outcome.where))
    for label, text in rows:
        lines.append(f"  {paint(f'{label:14}', 'bold')}{wrap(text, ' ' * 16).lstrip()}")
    if outcome.details:
        lines += ["", *(f"  {line}" for line in outcome.details)]
    lines += ["", f"  next: {paint(command(f'hint {exercise.name}'), 'blue')}"]
    return "\n".join(lines)


def _guess(outcome: Outcome) -> str:
    """Return what to say about a mistake that is not in the catalogue."""
    if outcome.happened.startswith(("SyntaxError", "IndentationError", "TabError")):
        return "Python cannot read your file: look at that line, and at the one above it"
    if outcome.happened.startswith(("NameError", "ImportError", "ModuleNotFoundError")):
        return "a name that is not there: is it misspelt, or not imported?"
    if "in the middle of the check" in outcome.happened or "SystemExit" in outcome.happened:
        return "something in your code ends the process, or closes what is not its own"
    return "not one that we know; the hints may help"


def not_started(exercise: Exercise) -> str:
    """Return what to tell somebody who has the starter."""
    return "\n".join(
        [
            paint(f"{exercise.name}: not started yet, this is expected", "yellow"),
            "",
            paint(f"  {exercise.title}", "bold"),
            "",
            wrap(exercise.task, "  "),
            "",
            f"  your file: {exercise.answer}",
            f"  next: write it, then {paint(command(f'check {exercise.name}'), 'blue')}",
        ]
    )


def success(exercise: Exercise, outcomes: list[Outcome], following: Exercise | None) -> str:
    """Return what to tell about an answer that passes."""
    lines = [paint(f"{exercise.name}: passed, {len(outcomes)} checks", "green"), ""]
    lines += [f"  {paint('ok', 'green')}  {one.did}" for one in outcomes]
    after = f"check {following.name}" if following else "lab"
    lines += ["", f"  next: {paint(command(after), 'blue')}"]
    return "\n".join(lines)


def overview(exercises: list[Exercise], progress: Progress, stages: dict[int, str]) -> str:
    """Return the map: every stage with its exercises, and the next step."""
    lines = []
    done = sum(one.name in progress.passed for one in exercises)
    bar = "".join(paint("#", "green") if n < done else "." for n in range(len(exercises)))
    lines.append(f"{paint('MiniRay exercises', 'bold')}   [{bar}] {done} of {len(exercises)}")
    following = next((one for one in exercises if one.name not in progress.passed), None)
    for stage, words in stages.items():
        here = [one for one in exercises if one.stage == stage]
        passed = sum(one.name in progress.passed for one in here)
        count = paint(f"{passed} of {len(here)}", "green" if passed == len(here) else "dim")
        lines += ["", f"{paint(f'stage {stage}', 'bold')}  {words:34} {count}"]
        for one in here:
            lines.append(f"  {_mark(one, progress, following)}  {one.name:22} {one.title}")
    step = f"check {following.name}" if following else "lab"
    lines += ["", f"next: {paint(command(step), 'blue')}"]
    return "\n".join(lines)


def _mark(exercise: Exercise, progress: Progress, following: Exercise | None) -> str:
    if exercise.name in progress.passed:
        return paint("passed ", "green")
    if exercise.is_started():
        return paint("begun  ", "yellow")
    return paint("next   ", "blue") if exercise is following else paint("to do  ", "dim")


def exercises_as_markdown(exercises: list[Exercise], stages: dict[int, str]) -> str:
    """Return the exercises with their tasks and folded hints, for the site."""
    lines = [EXERCISES_HEAD]
    stage = 0
    for one in exercises:
        if one.stage != stage:
            stage = one.stage
            lines += ["", f"## Stage {stage}: [{stages[stage]}](tutorial/stage{stage}.md)"]
        lines += ["", f"### {one.title}", "", f"`python -m exercises check {one.name}`"]
        lines += ["", one.task]
        for level, hint in enumerate(one.hints, 1):
            # A piece of code: it has Python's colours, and is none of the blocks that run.
            hint = hint.replace("```python", "```py")
            indented = "\n".join(f"    {line}".rstrip() for line in hint.splitlines())
            lines += ["", f'??? note "Hint {level}"', "", indented]
    return "\n".join(lines) + "\n"


__all__ = ["PASSED", "failure", "not_started", "overview", "paint", "success", "wrap"]
