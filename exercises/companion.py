"""The command line: python -m exercises [COMMAND]"""

import argparse
import contextlib
import difflib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from exercises import catalogue, doctor, mine, report, runner, trace, train, trial
from exercises.catalogue import Exercise
from exercises.progress import Progress
from exercises.runner import HUNG, PASSED

OK, WRONG, SET_UP, STUCK = 0, 1, 2, 3
WATCH_S = 0.3
STEPS_MAX = 1000
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

    start = add(
        "start", start_stage, "make my_miniray/, your own copy, at a stage; nothing is lost"
    )
    start.add_argument("stage", type=int, nargs="?", choices=tuple(STAGES))
    check = add("check", check_answer, "check what you wrote; without a name, the next one")
    check.add_argument("name", nargs="?")
    check.add_argument(
        "--quick", action="store_true", help="without the stage's own tests, and off the record"
    )
    check.add_argument("--watch", action="store_true", help="check again whenever you save")
    hint = add("hint", show_hint, "show the next of three hints, or all that you have seen")
    hint.add_argument("name", nargs="?")
    solution = add("solution", show_solution, "show ours, once you have passed")
    solution.add_argument("name", nargs="?")
    solution.add_argument("--give-up", action="store_true", help="before you have passed, too")
    reset = add("reset", reset_answer, "begin one again; what you wrote is kept")
    reset.add_argument("name")
    demo = add("demo", run_demo, "run a stage's demo on your code")
    demo.add_argument("stage", type=int, nargs="?", choices=tuple(STAGES))
    trained = add("train", run_training, "train on eight ranks, on your code, with a certificate")
    trained.add_argument("--name", default="", help="whose name the certificate bears")
    trained.add_argument("--steps", type=_count, default=40, help="how many (default: 40)")
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


def _count(text: str) -> int:
    if not 1 <= int(text) <= STEPS_MAX:
        raise argparse.ArgumentTypeError(f"1 to {STEPS_MAX}, not {text}")
    return int(text)


def find(name: str | None) -> Exercise:
    """Return an exercise by its name, or the next that has not been passed."""
    exercises = catalogue.load()
    if name is None:
        return report.next_of(exercises, Progress.load()) or exercises[-1]
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


def start_stage(arguments: argparse.Namespace) -> int:
    """Make the reader's copy of a stage, if there is none; what is there stays."""
    progress = Progress.load()
    stage = arguments.stage or progress.stage
    fresh = not mine.is_there(stage)
    said = mine.prepare(stage, progress)
    if arguments.stage:
        progress.stage = stage
    progress.save()
    exercises = [one for one in catalogue.load() if one.stage == stage]
    print(report.started(stage, fresh, said, exercises, report.next_of(exercises, progress)))
    return OK


def check_answer(arguments: argparse.Namespace) -> int:
    """Check once, or again and again."""
    exercise = find(arguments.name)
    before = _stamp(exercise)
    status = _check(exercise, quick=arguments.quick)
    while arguments.watch:
        print(report.paint("\n  watching; save the file, or press Ctrl-C", "dim"), flush=True)
        before = _wait_for_change(exercise, before)
        if sys.stdout.isatty():
            print("\x1b[2J\x1b[H", end="")
        status = _check(exercise, quick=arguments.quick)
        if status == OK and (following := find(None)).name != exercise.name:
            mine.prepare(following.stage, Progress.load())
            exercise, before = following, _stamp(following)
    return status


Stamp = list[tuple[int, int]]


def _wait_for_change(exercise: Exercise, before: Stamp) -> Stamp:
    while (now := _stamp(exercise)) == before or (0, 0) in now:  # while an editor replaces it
        time.sleep(WATCH_S)
    return now


def _stamp(exercise: Exercise) -> Stamp:
    stamps = []
    for file in mine.files_of(exercise):
        stamp = (0, 0)
        with contextlib.suppress(OSError):  # an editor may be replacing it
            status = file.stat()
            stamp = (status.st_mtime_ns, status.st_size)
        stamps.append(stamp)
    return stamps


def _check(exercise: Exercise, *, quick: bool) -> int:
    progress = Progress.load()
    progress.last = exercise.name
    for line in mine.prepare(exercise.stage, progress):
        print(f"  {line}")
    progress.save()
    if not mine.is_started(exercise):
        print(report.not_started(exercise))
        return WRONG
    with mine.bench_for(exercise, progress) as bench:
        outcomes = runner.run(exercise, bench)
        last = outcomes[-1]
        if last.kind != PASSED:
            print(report.failure(exercise, last, runner.diagnose(exercise, last)))
            return STUCK if last.kind == HUNG else WRONG
        if quick and not exercise.is_side:
            print(report.not_on_record(exercise, outcomes))
            return OK
        tests = None
        if not exercise.is_side:
            print(report.now_its_tests(exercise, len(outcomes)), flush=True)
            with _counting(f"stage {exercise.stage}'s own tests, on your copy") as tell:
                tests = trial.run_tests(bench, tell)
            if tests.failures:
                print(report.tests_failed(exercise, outcomes, tests))
                return WRONG
    fresh = exercise.name not in progress.passed
    progress.passed += [exercise.name] if fresh else []
    said = mine.carry_on(exercise, progress)
    exercises = catalogue.load()
    following = report.next_of(exercises, progress)
    print(report.success(exercise, outcomes, tests, said, following))
    stage = [one for one in exercises if one.stage == exercise.stage and not one.is_side]
    if not exercise.is_side and all(one.name in progress.passed for one in stage):
        print(report.stage_done(exercise.stage))
    progress.save()
    return OK


@contextlib.contextmanager
def _counting(what: str) -> Iterator[Callable[[int], None]]:
    """Yield what shows, on a terminal, how far something that takes long has come."""
    shown = sys.stdout.isatty()

    def tell(count: int) -> None:
        if shown:
            print(f"\r  {what}: {count} ", end="", flush=True)

    tell(0)
    try:
        yield tell
    finally:
        if shown:
            print("\r\x1b[K", end="", flush=True)


def show_hint(arguments: argparse.Namespace) -> int:
    """Show the hints seen so far and one more."""
    progress = Progress.load()
    last = "" if progress.last in progress.passed else progress.last
    exercise = find(arguments.name or last or None)
    level = min(progress.hints.get(exercise.name, 0) + 1, len(exercise.hints))
    progress.hints[exercise.name] = level
    progress.save()
    for number, hint in enumerate(exercise.hints[:level], 1):
        print(report.paint(f"hint {number} of {len(exercise.hints)}", "bold"))
        print(report.show_hint(hint), "\n")
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
    progress = Progress.load()
    mine.prepare(exercise.stage, progress)
    if mine.is_started(exercise):
        for kept in mine.reset(exercise):
            print(f"your file is kept as {report.show_path(kept)}")
    progress.passed = [name for name in progress.passed if name != exercise.name]
    progress.hints.pop(exercise.name, None)
    progress.save()
    print(f"{exercise.name}: back at the start")
    return OK


def run_demo(arguments: argparse.Namespace) -> int:
    """Run the demo of a stage, by default of the last that the reader has begun."""
    progress = Progress.load()
    begun = [stage for stage in STAGES if mine.is_there(stage)]
    stage = arguments.stage or (begun[-1] if begun else progress.stage)
    if missing := trial.missing_for(stage):
        raise LookupError(missing)
    mine.prepare(stage, progress)
    progress.save()
    _expect_readable(stage)
    print(report.whose(stage, mine.open_names(stage, progress)), flush=True)
    with mine.bench(stage, progress.passed) as bench:
        return WRONG if trial.run_demo(bench, []) else OK


def _expect_readable(stage: int) -> None:
    if fault := mine.unreadable(stage):
        raise LookupError(f"Python cannot read your {fault}")


def run_training(arguments: argparse.Namespace) -> int:
    """Train on the reader's copy of the last stage, and write the certificate."""
    if missing := trial.missing_for(train.STAGE):
        raise LookupError(missing)
    progress = Progress.load()
    if not mine.is_there(train.STAGE):
        print(
            f"making {report.show_path(mine.folder_of(train.STAGE))}, your copy of the last stage"
        )
    for line in mine.prepare(train.STAGE, progress):
        print(f"  {line}")
    progress.save()
    _expect_readable(train.STAGE)
    found = train.owners(progress)
    print(report.owners(found), flush=True)
    with mine.bench(train.STAGE, progress.passed) as bench:
        result = train.run(bench, arguments.steps, _tell)
    if result.fault:
        print(report.training_failed(result), file=sys.stderr)
        return WRONG
    train.CERTIFICATE.write_text(train.certificate(result, found, arguments.name))
    print(report.trained(result, found, report.next_of(catalogue.load(), progress)))
    return OK if result.difference <= train.SAME else WRONG


def _tell(words: str) -> None:
    if words:
        print(f"  {words}", flush=True)


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
