"""The companion's words: every result has the same shape."""

import os
import shlex
import sys
import textwrap
from pathlib import Path

from exercises import catalogue, functions, mine
from exercises.catalogue import Exercise, WrongAnswer
from exercises.progress import Progress
from exercises.runner import HUNG, PASSED, RAISED, Outcome
from exercises.train import CERTIFICATE, SAME, STAGE, Owner, Run, written_and_ran
from exercises.trial import FAILURES_SHOWN_MAX, Report

WIDTH = 96
EXERCISES_HEAD = """# Exercises

What you write is what runs. You get a MiniRay of your own, `my_miniray/`: the stages as they are,
but for the functions that are yours to write. An exercise *is* one of them, or two that belong
together, with the name, the place and the tests that it has in the stage. In the clone, with
nothing but Python:

```sh
python -m exercises start      # makes my_miniray/, which git ignores
python -m exercises            # the map: where you are, and what is next
python -m exercises check      # check the next one; it says where to write
python -m exercises hint       # one more of three hints for what you have checked last
python -m exercises solution framing    # ours, once you have passed
python -m exercises reset framing       # begin again; what you wrote is kept
python -m exercises diff 1 2   # what changes from one stage to the next
python -m exercises demo 1     # stage 1's demo, on your code
python -m exercises train      # in the end: eight ranks, on your code
```

A check runs what you wrote in a process of its own, so it may hang, crash or fork: nothing is
left. What is wrong it finds within two seconds, and if your mistake is among the
[usual ones](mistakes.md), it says so. When nothing is wrong any more, the stage's own tests run on
your copy: that takes some seconds, and about a minute in stage 5 (`--quick` leaves them
out, and then nothing is on record).
What you have not written yet the stage lends you, so you may begin at any stage,
`python -m exercises start 4`, and leave out what you like.
What has passed goes along into the later stages by itself, wherever they have the same function
still.

Some ideas are no function of a stage; they are side exercises, each a file of its own in
`my_miniray/side/`. There are three hints for each, here and from `python -m exercises hint`; open
them one at a time.\
"""
NUMBERS = {3: "Three", 4: "Four", 5: "Five", 6: "Six"}
CODES = {"green": 32, "red": 31, "yellow": 33, "blue": 36, "bold": 1, "dim": 2}


def command(arguments: str) -> str:
    """Return what to type, with the Python that runs this: there may be none called python."""
    here = catalogue.ROOT.parent == Path.cwd().resolve()
    what = "-m exercises" if here else shlex.quote(str(catalogue.ROOT))
    return f"{Path(sys.executable).name} {what} {arguments}".rstrip()


def paint(text: str, colour: str) -> str:
    """Return a text in a colour, if standard output is a terminal that wants it."""
    wanted = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return f"\x1b[{CODES[colour]}m{text}\x1b[0m" if wanted else text


def wrap(text: str, indent: str) -> str:
    """Return a text in lines of WIDTH, each with the indent; empty lines divide paragraphs."""
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
    if outcome.happened.startswith("NotImplementedError"):
        return "one of its functions is not written yet"
    if outcome.happened.startswith(("NameError", "ImportError", "ModuleNotFoundError")):
        return "a name that is not there: is it misspelt, or not imported?"
    if "in the middle of the check" in outcome.happened or "SystemExit" in outcome.happened:
        return "something in your code ends the process, or closes what is not its own"
    return "not one that we know; the hints may help"


def show_path(file: Path) -> str:
    """Return a path as it is typed where we are."""
    here = Path.cwd()
    return str(file.relative_to(here)) if file.is_relative_to(here) else str(file)


def places(exercise: Exercise) -> list[str]:
    """Return where each function stands that the reader writes, as FILE:LINE NAME."""
    if exercise.is_side:
        return [show_path(mine.files_of(exercise)[0])]
    found = []
    for function in exercise.functions:
        module, _, name = function.partition(".")
        file = mine.folder_of(exercise.stage) / f"{module}.py"
        try:
            place = functions.find(file.read_text(), name)
        except (OSError, SyntaxError, ValueError):
            place = None
        at = f":{place.first}" if place else ""
        found.append(f"{show_path(file)}{at}  {name}")
    return found


def next_of(exercises: list[Exercise], progress: Progress) -> Exercise | None:
    """Return the first exercise that is not passed, from the stage on where the reader began."""
    todo = [one for one in exercises if one.name not in progress.passed]
    return next((one for one in todo if one.stage >= progress.stage), None)


def started(
    stage: int, fresh: bool, said: list[str], exercises: list[Exercise], following: Exercise | None
) -> str:
    """Return what to tell whoever begins at a stage."""
    folder = show_path(mine.folder_of(stage))
    if fresh:
        lines = [paint(f"{folder} is your own copy of stage {stage}", "green"), ""]
        written = [one for one in exercises if not one.is_side]
        count = sum(len(one.functions) for one in written)
        text = f"It is complete, but for {count} functions, which are yours to write in "
        text += f"{len(written)} exercises. Git ignores it, and nothing here overwrites it."
        lines.append(wrap(text, "  "))
        if stage > 1:
            text = (
                "What the earlier stages ask for is there: yours, if you have passed it, or ours."
            )
            lines.append(wrap(text, "  "))
    else:
        lines = [f"{folder} is there already, and stays as it is"]
    lines += ["", *(f"  {line}" for line in said)] if said else []
    if following:
        lines += ["", f"  first: {following.name}, {following.title}"]
        lines += [f"         {place}" for place in places(following)]
        lines += [f"  next: {paint(command(f'check {following.name}'), 'blue')}"]
    else:
        lines += [f"  next: {paint(command(f'demo {stage}'), 'blue')}"]
    return "\n".join(lines)


def not_started(exercise: Exercise) -> str:
    """Return what to tell somebody who has the starter."""
    label = "your file: " if exercise.is_side else "yours:     "
    where = places(exercise)
    side = " (a side exercise: no stage has a function of this kind)" if exercise.is_side else ""
    return "\n".join(
        [
            paint(f"{exercise.name}: not started yet, this is expected", "yellow"),
            "",
            paint(f"  {exercise.title}", "bold") + f", about {exercise.minutes} minutes{side}",
            "",
            wrap(exercise.task, "  "),
            "",
            *(f"  {label if n == 0 else ' ' * 11}{place}" for n, place in enumerate(where)),
            f"  next: write it, then {paint(command(f'check {exercise.name}'), 'blue')}",
        ]
    )


def success(
    exercise: Exercise,
    outcomes: list[Outcome],
    tests: Report | None,
    said: list[str],
    following: Exercise | None,
) -> str:
    """Return what to tell about an answer that passes."""
    lines = [paint(f"{exercise.name}: passed, {len(outcomes)} checks", "green"), ""]
    lines += [f"  {paint('ok', 'green')}  {one.did}" for one in outcomes]
    if tests:
        lines.append(f"  {paint('ok', 'green')}  {_tests(exercise, tests)}")
    lines += ["", *(f"  {line}" for line in said)] if said else []
    after = f"check {following.name}" if following else "train"
    lines += ["", f"  next: {paint(command(after), 'blue')}"]
    return "\n".join(lines)


def not_on_record(exercise: Exercise, outcomes: list[Outcome]) -> str:
    """Return what to tell about an answer that passes its checks, and was to be asked no more."""
    head = f"{exercise.name}: its {len(outcomes)} checks pass, and that is not on record"
    lines = [paint(head, "green"), ""]
    lines += [f"  {paint('ok', 'green')}  {one.did}" for one in outcomes]
    why = f"Whether stage {exercise.stage} works with it, its own tests say: leave --quick out."
    lines += ["", wrap(why, "  ")]
    lines += ["", f"  next: {paint(command(f'check {exercise.name}'), 'blue')}"]
    return "\n".join(lines)


def now_its_tests(exercise: Exercise, checks: int) -> str:
    """Return what to say before the stage's own tests, which take a while."""
    takes = "about a minute" if exercise.stage == STAGE else "some seconds"
    words = f"its {checks} checks pass; now stage {exercise.stage}'s own tests, on your copy"
    return paint(f"{exercise.name}: {words}, {takes}", "dim")


def _tests(exercise: Exercise, tests: Report) -> str:
    words = f"stage {exercise.stage}'s own {tests.count} tests, on your copy, {tests.seconds:.1f} s"
    if not tests.skipped:
        return words
    why = ", ".join(dict.fromkeys(tests.skipped))
    return f"{words}; {len(tests.skipped)} of them skipped: {why}"


def tests_failed(exercise: Exercise, outcomes: list[Outcome], tests: Report) -> str:
    """Return what to tell when the checks pass and the stage's own tests do not."""
    head = f"{exercise.name}: not yet, its {len(outcomes)} checks pass, and the stage does not work"
    lines = [paint(head, "red"), ""]
    count = len(tests.failures)
    if count <= tests.count:
        lines += [f"  {count} of {_tests(exercise, tests)} failed:"]
    else:
        lines += [f"  stage {exercise.stage}'s own tests, on your copy, could not be run:"]
    for one in tests.failures[:FAILURES_SHOWN_MAX]:
        lines += ["", f"  {paint(one.test, 'bold')}", f"    {one.happened[: WIDTH - 4]}"]
        lines += [f"    {where}" for where in one.where[-4:]]
        lines += ["    a process of yours had said:"] if one.said else []
        lines += [f"      {line[: WIDTH - 6]}" for line in one.said]
    folder = mine.folder_of(exercise.stage)
    again = f"cd {show_path(folder.parent)} && {Path(sys.executable).name} -m unittest discover "
    lines += ["", "  once nothing in it is open, they run by hand, too:"]
    lines += [f"    {again}-s {folder.name} -t ."]
    lines += ["", f"  next: {paint(command(f'hint {exercise.name}'), 'blue')}"]
    return "\n".join(lines)


def stage_done(stage: int) -> str:
    """Return what to tell when all of a stage's functions are the reader's."""
    demo = command(f"demo {stage}")
    words = paint(f"  stage {stage} runs on your code now:", "green")
    return f"{words} {paint(demo, 'blue')}"


def whose(stage: int, open_names: list[str]) -> str:
    """Return on whose code a stage's demo runs."""
    if not open_names:
        return paint(f"stage {stage}, on your code", "green") + "\n"
    words = f"stage {stage}; for {', '.join(open_names)} the stage's own functions stand in, until "
    return paint(wrap(words + "you have passed them", ""), "yellow") + "\n"


def owners(found: list[Owner]) -> str:
    """Return whose each function is that eight ranks will run through."""
    lines = [f"Eight ranks, on your code: of these, {written_and_ran(found)}.", ""]
    for one in found:
        mark = paint("yours", "green") if one.mine else paint("stage", "dim")
        remark = paint(one.remark, "dim")
        lines.append(f"  {mark}  {one.function:38} {one.exercise:16} {remark}".rstrip())
    return "\n".join([*lines, ""])


def trained(result: Run, found: list[Owner], following: Exercise | None) -> str:
    """Return what to tell of a training that went to its end."""
    same = result.difference <= SAME
    words = "the same training" if same else "not the same training: a rank has done something else"
    lines = [
        "",
        paint(f"  {words}", "green" if same else "red"),
        "",
        f"  {result.parameters} parameters, loss {result.losses[0]:.4f} to {result.losses[-1]:.4f}",
        f"  largest difference from one process: {result.difference:.1e}",
        f"  each rank held at most {max(result.held)} of {16 * result.parameters} bytes",
        f"  {written_and_ran(found)}; {result.seconds:.0f} s",
        "",
        f"  your certificate: {show_path(CERTIFICATE)} (a browser shows it)",
    ]
    if following:
        lines.append(f"  next: {paint(command(f'check {following.name}'), 'blue')}")
    return "\n".join(lines)


def training_failed(result: Run) -> str:
    """Return what to tell of a training that did not go to its end."""
    lines = [paint("the training did not go to its end; it said last:", "red"), ""]
    lines += [f"  {line}" for line in result.fault.splitlines()]
    lines += ["", f"  next: {command('check NAME')} for the function that is named there"]
    return "\n".join(lines)


def overview(exercises: list[Exercise], progress: Progress, stages: dict[int, str]) -> str:
    """Return the map: every stage with its exercises, and the next step."""
    lines = []
    done = sum(one.name in progress.passed for one in exercises)
    bar = "".join(paint("#", "green") if n < done else "." for n in range(len(exercises)))
    lines.append(f"{paint('MiniRay exercises', 'bold')}   [{bar}] {done} of {len(exercises)}")
    following = next_of(exercises, progress)
    for stage, words in stages.items():
        here = [one for one in exercises if one.stage == stage]
        passed = sum(one.name in progress.passed for one in here)
        count = paint(f"{passed} of {len(here)}", "green" if passed == len(here) else "dim")
        lines += ["", f"{paint(f'stage {stage}', 'bold')}  {words:34} {count}"]
        for one in here:
            side = paint(" (side)", "dim") if one.is_side else ""
            lines.append(f"  {_mark(one, progress, following)}  {one.name:22} {one.title}{side}")
    if not any(mine.is_there(stage) for stage in stages):
        step = "start"
    else:
        step = f"check {following.name}" if following else "train"
    lines += ["", f"next: {paint(command(step), 'blue')}"]
    return "\n".join(lines)


def _mark(exercise: Exercise, progress: Progress, following: Exercise | None) -> str:
    if exercise.name in progress.passed:
        return paint("passed ", "green")
    if mine.is_started(exercise):
        return paint("begun  ", "yellow")
    return paint("next   ", "blue") if exercise is following else paint("to do  ", "dim")


def show_hint(hint: str) -> str:
    """Return a hint within WIDTH; pieces of code stay as they are."""
    parts = []
    for number, part in enumerate(hint.split("```")):
        if number % 2:
            code = part.partition("\n")[2].rstrip()
            parts.append("\n".join(f"      {line}".rstrip() for line in code.splitlines()))
        elif part.strip():
            parts.append(wrap(part, "  "))
    return "\n\n".join(parts)


def exercises_as_markdown(exercises: list[Exercise], stages: dict[int, str]) -> str:
    """Return the exercises with their tasks and folded hints, for the site."""
    lines = [EXERCISES_HEAD]
    stage = 0
    for one in exercises:
        if one.stage != stage:
            stage = one.stage
            here = [each for each in exercises if each.stage == stage]
            minutes = sum(each.minutes for each in here)
            lines += ["", f"## Stage {stage}: [{stages[stage]}](tutorial/stage{stage}.md)", ""]
            count = NUMBERS[len(here)]
            lines += [f"{count} exercises, about {minutes} minutes in all."]
        what = f"You write {_functions(one)}."
        if one.is_side:
            what = "A side exercise: no stage has a function of this kind. "
            what += f"Yours is `side/{one.name}.py`."
        lines += ["", f"### {one.title}", ""]
        lines += [f"`python -m exercises check {one.name}`, about {one.minutes} minutes. {what}"]
        lines += ["", f"*{one.why}*", "", one.task]
        # Pieces of code: they have Python's colours, and are none of the blocks that run.
        lines += _folded("What you begin with", f"```py\n{one.starter.rstrip()}\n```")
        for level, hint in enumerate(one.hints, 1):
            lines += _folded(f"Hint {level}", hint.replace("```python", "```py"))
    return "\n".join(lines) + "\n"


def _functions(exercise: Exercise) -> str:
    """Return the functions of an exercise as a part of a sentence."""
    by_module: dict[str, list[str]] = {}
    for function in exercise.functions:
        module, _, name = function.partition(".")
        by_module.setdefault(module, []).append(f"`{name}`")
    parts = [f"{_and(names)} in `{module}.py`" for module, names in by_module.items()]
    return _and(parts)


def _and(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _folded(title: str, text: str) -> list[str]:
    indented = "\n".join(f"    {line}".rstrip() for line in text.splitlines())
    return ["", f'??? note "{title}"', "", indented]


__all__ = ["PASSED", "failure", "not_started", "overview", "paint", "success", "wrap"]
