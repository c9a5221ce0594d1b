"""Train on eight ranks through the reader's own code, and write a certificate of it."""

import html
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exercises import catalogue, mine
from exercises.mine import Bench
from exercises.progress import FOLDER, Progress
from stages import snapshots

STAGE = len(snapshots.NAMES)
SAME = 1e-5  # how far two losses may be apart: they add up the same numbers in another order
CERTIFICATE = FOLDER / "certificate.svg"
ENDING_S = 15.0
LOG_LINES_SHOWN = 6
TOLD_STEPS = 4
# How the certificate marks a function, and in which class of text.
MARKS = {"mine": ("\u2713", "y"), "written": ("\u25e6", "w"), "ours": ("\u00b7", "o")}
LEGEND = {
    MARKS["mine"]: "yours, in the code that ran",
    MARKS["written"]: "yours, for an earlier stage",
    MARKS["ours"]: "the stage's own",
}


@dataclass
class Run:
    """What a training has said."""

    text_bytes: int = 0
    torch: str = ""
    losses: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    held: list[int] = field(default_factory=list)  # bytes, by rank
    parameters: int = 0
    seconds: float = 0.0
    fault: str = ""

    @property
    def difference(self) -> float:
        """The largest difference of a step's loss, on eight ranks and in one process."""
        pairs = zip(self.losses, self.alone, strict=True)
        return max((abs(one - other) for one, other in pairs), default=0.0)


@dataclass(frozen=True)
class Owner:
    """Whose a function is that the ranks ran through."""

    exercise: str
    function: str
    mine: bool
    written: bool  # for an earlier stage, if it is not what runs
    fate: str  # what became of it since then: "" if it ran
    remark: str


def owners(progress: Progress) -> list[Owner]:
    """Return whose the exercises' functions are in the reader's copy of the last stage."""
    found = []
    for exercise in catalogue.load():
        for function in exercise.functions:
            yours = mine.is_mine(exercise, function, STAGE, progress)
            since = f"since stage {exercise.stage}" if exercise.stage < STAGE else ""
            written = not yours and exercise.name in progress.passed
            fate = fate_of(function, exercise.stage) if written else ""
            remark = since if yours else "not passed yet"
            if written:
                remark = f"you wrote stage {exercise.stage}'s; {fate}"
            found.append(Owner(exercise.name, function, yours, written, fate, remark))
    return found


def fate_of(function: str, stage: int) -> str:
    """Return what became of a stage's function on the way to the last one."""
    own = catalogue.own(stage, function)
    for later in range(stage + 1, STAGE + 1):
        if not catalogue.has(later, function):
            return f"dropped in stage {later}"
        if catalogue.own(later, function) != own:
            return f"changed in stage {later}"
    return "not brought along, or changed by you"


def written_and_ran(found: list[Owner]) -> str:
    """Return how many functions the reader has written, and how many of them ran, in words."""
    ran = sum(one.mine for one in found)
    written = ran + sum(one.written for one in found)
    if not written:
        return "no function was written by hand"
    words = f"{written} functions were written by hand"
    return f"{words}, and all of them ran" if ran == written else f"{words}, {ran} of them ran here"


def run(bench: Bench, steps: int, tell: Callable[[str], None]) -> Run:
    """Train on a copy of the last stage; each event is told in words as it comes."""
    script = Path(__file__).with_name("ranks.py")
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": ""}
    started, result = time.monotonic(), Run()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, str(script), bench.package, str(steps)],
            cwd=bench.root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # Ctrl-C is ours to handle
        )
        assert process.stdout
        try:
            with process.stdout as lines:
                for line in lines:
                    tell(_take(result, json.loads(line)))
            process.wait()
        finally:
            if process.poll() is None:
                _end(process)
        result.seconds = time.monotonic() - started
        if process.returncode != 0:
            log.seek(0)
            said = log.read().decode(errors="replace").strip().splitlines()
            result.fault = "\n".join(said[-LOG_LINES_SHOWN:]) or f"status {process.returncode}"
            result.fault = bench.translate(result.fault)
    return result


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ask for the end, which stops the cluster in an orderly way, and then insist."""
    import signal

    for number in (signal.SIGINT, signal.SIGKILL):
        process.send_signal(number)
        try:
            process.wait(ENDING_S)
            return
        except subprocess.TimeoutExpired:
            continue


def _take(result: Run, event: dict[str, Any]) -> str:
    """Note an event; return what to say of it."""
    match event["what"]:
        case "text":
            result.text_bytes, result.torch = event["nbytes"], event["torch"]
            return f"the text to learn: {event['files']} files, {event['nbytes']} bytes"
        case "ranks":
            rows: dict[str, list[str]] = {}
            for place in event["places"]:
                rows.setdefault(place["node"], []).append(f"rank {place['rank']}")
            said = "; ".join(f"{node}: {', '.join(ranks)}" for node, ranks in rows.items())
            return f"{len(event['places'])} processes have met: {said}"
        case "step":
            result.losses.append(event["loss"])
            result.held = event["held"]
            return _sometimes(event["step"], f"loss {event['loss']:.4f}")
        case "parameters":
            result.parameters = event["count"]
            return "the same again, in one process"
        case "alone":
            result.alone.append(event["loss"])
            beside = f"loss {event['loss']:.4f}, beside {result.losses[event['step']]:.4f}"
            return _sometimes(event["step"], beside)
    return "the cluster has stopped"


def _sometimes(step: int, words: str) -> str:
    """Return what to say of every fourth step."""
    return "" if step % TOLD_STEPS else f"  step {step:2}  {words}"


def certificate(result: Run, found: list[Owner], name: str) -> str:
    """Return a picture with the losses, and whose each function was."""
    yours = sum(one.mine for one in found)
    left, top, width, height = 60, 170, 680, 230
    highest, lowest = max(result.losses + result.alone), min(result.losses + result.alone)
    rows = (len(found) + 1) // 2
    tall = top + height + 150 + 22 * rows

    def point(step: int, loss: float) -> tuple[float, float]:
        x = left + width * step / max(len(result.losses) - 1, 1)
        return x, top + height * (highest - loss) / max(highest - lowest, 1e-9)

    line = " ".join("{:.1f},{:.1f}".format(*point(*one)) for one in enumerate(result.losses))
    dots = "".join(
        '<circle cx="{:.1f}" cy="{:.1f}" r="3.5"/>'.format(*point(*one))
        for one in enumerate(result.alone)
    )
    title = "MiniRay, by hand" if yours else "MiniRay"
    by = f"trained by {html.escape(name)}, " if name else ""
    day = time.strftime("%d %B %Y").lstrip("0")
    whole, held = 16 * result.parameters, max(result.held, default=0)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 {tall}" width="800" '
        f'height="{tall}" role="img" aria-label="Certificate: losses and functions">',
        "<style>text{font-family:Georgia,serif;fill:#22303c;font-size:14px}"
        ".h{font-size:30px}.s{font-size:13px;fill:#5b6b78}.m{font-family:monospace;font-size:13px}"
        ".y{fill:#14734a}.w{fill:#14734a;opacity:.65}.o{fill:#8a97a1}</style>",
        f'<rect width="800" height="{tall}" fill="#fdfcf8"/>',
        f'<rect x="14" y="14" width="772" height="{tall - 28}" fill="none" stroke="#c9b98a" '
        'stroke-width="2"/>',
        f'<text x="400" y="66" text-anchor="middle" class="h">{title}</text>',
        f'<text x="400" y="94" text-anchor="middle">{by}{day}</text>',
        f'<text x="400" y="120" text-anchor="middle">{result.parameters:,} parameters, on '
        f"{len(result.held)} ranks of 2 nodes; {written_and_ran(found)}</text>",
        f'<text x="{left}" y="{top - 14}" class="s">loss: the line is eight ranks, the rings are '
        f"one process; largest difference {result.difference:.0e}</text>",
        f'<line x1="{left}" y1="{top + height}" x2="{left + width}" y2="{top + height}" '
        'stroke="#c3ccd3"/>',
        f'<line x1="{left}" y1="{top}" x2="{left}" y2="{top + height}" stroke="#c3ccd3"/>',
        f'<text x="{left - 8}" y="{top + 5}" text-anchor="end" class="s">{highest:.1f}</text>',
        f'<text x="{left - 8}" y="{top + height + 5}" text-anchor="end" class="s">{lowest:.1f}'
        "</text>",
        f'<text x="{left + width}" y="{top + height + 20}" text-anchor="end" class="s">step '
        f"{len(result.losses)}</text>",
        f'<polyline points="{line}" fill="none" stroke="#2a6fb0" stroke-width="2.5"/>',
        f'<g fill="none" stroke="#d2622a" stroke-width="1.5">{dots}</g>',
        f'<text x="{left}" y="{top + height + 44}" class="s">Each rank held at most {held:,} of '
        f"{whole:,} bytes of parameters, gradients and optimizer.</text>",
        f'<text x="{left}" y="{top + height + 64}" class="s">What they learnt is this very code, '
        f"{result.text_bytes:,} bytes of it.</text>",
    ]
    for number, one in enumerate(found):
        x, y = left + 350 * (number // rows), top + height + 104 + 22 * (number % rows)
        mark, shade = MARKS["mine" if one.mine else "written" if one.written else "ours"]
        fate = f' <tspan class="s">{html.escape(one.fate)}</tspan>' if one.fate else ""
        lines.append(
            f'<text x="{x}" y="{y}" class="m {shade}">{mark} {html.escape(one.function)}{fate}'
            "</text>"
        )
    legend = "; ".join(f"{mark} {words}" for (mark, _), words in LEGEND.items())
    lines.append(f'<text x="{left}" y="{tall - 34}" class="s">{legend}</text>')
    lines.append("</svg>")
    return "\n".join(lines) + "\n"
