"""The command line: python -m exercises [COMMAND]"""

import argparse
import contextlib
import difflib
import io
import json
import os
import shutil
import sys
import time
from pathlib import Path

from exercises import catalogue, doctor, report, runner, trace
from exercises.catalogue import Exercise
from exercises.progress import FOLDER, Progress
from exercises.runner import HUNG, PASSED

OK, WRONG, SET_UP, STUCK = 0, 1, 2, 3
WATCH_S = 0.3
STAGES = {
    1: "a worker behind a socketpair",
    2: "the same over TCP",
    3: "a server that forks",
    4: "a cluster over ssh",
    5: "tensors, process groups, FSDP",
}


def main(argv: list[str] | None = None) -> int:
    """Run the companion; return 0 if all is well, 1 if not yet, 2 for the set-up, 3 for a hang."""
    arguments = _make_parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may not know all letters
    try:
        status = int(arguments.run(arguments))
        sys.stdout.flush()  # here, where a reader that has left is no surprise
        return status
    except LookupError as error:
        print(error.args[0], file=sys.stderr)
        return SET_UP
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return OK
    except (OSError, UnicodeDecodeError) as error:
        print(f"cannot go on: {error}", file=sys.stderr)
        return SET_UP
    except KeyboardInterrupt:
        print()
        return 130


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=report.command(""),
        description="Your companion: it checks what you write, and knows the usual mistakes.",
        epilog="Exit status: 0 passed, 1 not yet, 2 something is missing here, 3 it hangs.",
    )
    parser.set_defaults(run=show_overview)
    commands = parser.add_subparsers(metavar="COMMAND")

    def add(name: str, run: object, help: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, description=help)
        command.set_defaults(run=run)
        return command

    check = add("check", check_answer, "check your answer; without a name, the next one")
    check.add_argument("name", nargs="?")
    check.add_argument("--watch", action="store_true", help="check again whenever you save")
    hint = add("hint", show_hint, "show the next of three hints, or all that you have seen")
    hint.add_argument("name", nargs="?")
    solution = add("solution", show_solution, "show ours, once you have passed")
    solution.add_argument("name", nargs="?")
    solution.add_argument("--give-up", action="store_true", help="before you have passed, too")
    reset = add("reset", reset_answer, "begin again; your file is kept beside the progress")
    reset.add_argument("name")
    diff = add("diff", show_diff, "what changes from one stage to another")
    diff.add_argument("before")
    diff.add_argument("after")
    lab = add("lab", run_lab, "break something, and see who notices")
    lab.add_argument("name", nargs="?")
    lab.add_argument("--yes", action="store_true", help="do not ask for your prediction")
    traced = add("trace", show_trace, "record a run of a stage: who did what, and when")
    traced.add_argument("stage", type=int, choices=tuple(STAGES))
    traced.add_argument("--json", action="store_true", help="the events, for a program")
    traced.add_argument("--chrome", metavar="FILE", help="write it for ui.perfetto.dev")
    add("pages", write_pages, "make the site's page of exercises")
    add("doctor", lambda arguments: doctor.main(), "see whether this machine has what you need")
    return parser


def find(name: str | None) -> Exercise:
    """Return an exercise by its name, or the next that has not been passed."""
    exercises = catalogue.load()
    if name is None:
        passed = Progress.load().passed
        return next((one for one in exercises if one.name not in passed), exercises[-1])
    for one in exercises:
        if one.name == name:
            return one
    near = difflib.get_close_matches(name, [one.name for one in exercises], 1)
    also = f"; did you mean {near[0]}?" if near else f"; {report.command('')} lists them"
    raise LookupError(f"there is no exercise {name!r}{also}")


def show_overview(arguments: argparse.Namespace) -> int:
    """Say where the reader is, and what is next."""
    print(report.overview(catalogue.load(), Progress.load(), STAGES))
    return OK


def check_answer(arguments: argparse.Namespace) -> int:
    """Check once, or again and again."""
    exercise = find(arguments.name)
    before = _stamp(exercise.answer)
    status = _check(exercise)
    while arguments.watch:
        print(report.paint("\n  watching; save the file, or press Ctrl-C", "dim"), flush=True)
        before = _wait_for_change(exercise.answer, before)
        if sys.stdout.isatty():
            print("\x1b[2J\x1b[H", end="")
        status = _check(exercise)
        if status == OK and (following := find(None)).name != exercise.name:
            exercise, before = following, _stamp(following.answer)
    return status


def _wait_for_change(file: Path, before: tuple[int, int]) -> tuple[int, int]:
    while (now := _stamp(file)) in (before, (0, 0)):  # the latter while an editor replaces it
        time.sleep(WATCH_S)
    return now


def _stamp(file: Path) -> tuple[int, int]:
    with contextlib.suppress(OSError):  # an editor may be replacing it
        status = file.stat()
        return status.st_mtime_ns, status.st_size
    return 0, 0


def _check(exercise: Exercise) -> int:
    if not exercise.answer.exists():
        exercise.answer.write_text(catalogue.make_starter(exercise.solution))
    if not exercise.is_started():
        print(report.not_started(exercise))
        return WRONG
    outcomes = runner.run(exercise, exercise.answer)
    last = outcomes[-1]
    progress = Progress.load()
    if last.kind != PASSED:
        print(report.failure(exercise, last, runner.diagnose(exercise, last)))
        return STUCK if last.kind == HUNG else WRONG
    fresh = exercise.name not in progress.passed
    progress.passed += [exercise.name] if fresh else []
    following = [one for one in catalogue.load() if one.name not in progress.passed]
    print(report.success(exercise, outcomes, following[0] if following else None))
    if fresh:
        progress.save()
    return OK


def show_hint(arguments: argparse.Namespace) -> int:
    """Show the hints seen so far and one more."""
    exercise = find(arguments.name)
    progress = Progress.load()
    level = min(progress.hints.get(exercise.name, 0) + 1, len(exercise.hints))
    progress.hints[exercise.name] = level
    progress.save()
    for number, hint in enumerate(exercise.hints[:level], 1):
        print(report.paint(f"hint {number} of {len(exercise.hints)}", "bold"))
        print("\n".join(f"  {line}".rstrip() for line in hint.splitlines()), "\n")
    more = "hint" if level < len(exercise.hints) else "solution --give-up"
    print(f"  next: {report.command(f'check {exercise.name}')}, or {more} {exercise.name}")
    return OK


def show_solution(arguments: argparse.Namespace) -> int:
    """Show our solution to whoever has one, or asks twice."""
    exercise = find(arguments.name)
    progress = Progress.load()
    if exercise.name not in progress.passed and not arguments.give_up:
        print(
            f"{exercise.name} is not passed yet. Ours is no secret, but yours teaches more: "
            f"{report.command(f'hint {exercise.name}')}, or add --give-up",
            file=sys.stderr,
        )
        return WRONG
    if exercise.name not in progress.passed and exercise.name not in progress.gave_up:
        progress.gave_up.append(exercise.name)
        progress.save()
    print(exercise.solution, end="")
    return OK


def reset_answer(arguments: argparse.Namespace) -> int:
    """Put the starter back."""
    exercise = find(arguments.name)
    if exercise.is_started():
        FOLDER.mkdir(exist_ok=True)
        kept = FOLDER / f"{exercise.name}.{time.strftime('%Y%m%d-%H%M%S')}.py"
        shutil.copy(exercise.answer, kept)
        print(f"your file is kept as {kept}")
    exercise.answer.write_text(catalogue.make_starter(exercise.solution))
    progress = Progress.load()
    progress.passed = [name for name in progress.passed if name != exercise.name]
    progress.hints.pop(exercise.name, None)
    progress.save()
    print(f"{exercise.name}: back at the start")
    return OK


def show_diff(arguments: argparse.Namespace) -> int:
    """Show how two stages differ."""
    from stages.__main__ import main as compare

    return compare(["diff", arguments.before, arguments.after])


def run_lab(arguments: argparse.Namespace) -> int:
    """Run a lab, or list them."""
    from exercises import labs

    return labs.main(arguments.name, ask=not arguments.yes and sys.stdin.isatty())


def show_trace(arguments: argparse.Namespace) -> int:
    """Run a stage, and show what its processes did."""
    events = trace.record(arguments.stage)
    if arguments.chrome:
        Path(arguments.chrome).write_text(trace.as_chrome_trace(events))
        print(f"written to {arguments.chrome}; open it at ui.perfetto.dev")
        return OK
    print(json.dumps(events) if arguments.json else trace.as_text(events))
    return OK


def write_pages(arguments: argparse.Namespace) -> int:
    """Write the page that the site has of these files."""
    docs = catalogue.ROOT.parent / "docs"
    exercises = catalogue.load()
    (docs / "exercises.md").write_text(report.exercises_as_markdown(exercises, STAGES))
    return OK
