"""Draw a recorded run of a stage as a space-time diagram: processes are lines, messages arrows."""

import html
import json
from typing import Any

from exercises import trace

LANE, STEP, LEFT, TOP, NAMES = 46, 17, 12, 26, 92

Event = dict[str, Any]


def record(stage: int) -> dict[str, Any]:
    """Run a stage's scenario; return {"stage", "processes", "events"} with names for pids."""
    recorded = trace.record(stage)
    names = trace.name_processes(recorded)
    start = recorded[0]["at_s"]
    events = []
    for one in recorded:
        if one["what"] == "is":
            continue
        text = one["text"]
        if one["what"] in ("forks", "begins"):
            text = names.get(int(text), "")
        at_ms = round((one["at_s"] - start) * 1000, 1)
        events.append(
            {"at_ms": at_ms, "process": names[one["pid"]], "what": one["what"], "text": text}
        )
    return {"stage": stage, "processes": list(names.values()), "events": events}


def find_arrows(events: list[Event]) -> list[tuple[int, int]]:
    """Return [(from, to), ...], indices of events: a message sent and received, a fork."""
    arrows, sent = [], []  # type: list[tuple[int, int]], list[int]
    for number, event in enumerate(events):
        if event["what"] == "sends":
            sent.append(number)
        elif event["what"] == "receives":
            for at in sent:
                same = events[at]["text"] == event["text"]
                if same and events[at]["process"] != event["process"]:
                    arrows.append((at, number))
                    sent.remove(at)
                    break
        elif event["what"] == "forks":
            begins = [
                at
                for at, other in enumerate(events)
                if other["what"] == "begins" and other["process"] == event["text"]
            ]
            arrows += [(number, at) for at in begins]
    return sorted(arrows)


def as_svg(run: dict[str, Any]) -> str:
    """Return the diagram; each part of it carries the number of the event that draws it."""
    events, processes, tip = run["events"], run["processes"], f"tip-{run['stage']}"
    lanes = {name: TOP + LANE * number for number, name in enumerate(processes)}
    width, height = LEFT + STEP * (len(events) + 1), TOP + LANE * len(processes)

    def at(number: int) -> tuple[int, int]:
        return LEFT + STEP * number, lanes[events[number]["process"]]

    parts = []
    for name, y in lanes.items():
        own = [number for number, event in enumerate(events) if event["process"] == name]
        first, last = at(own[0])[0], at(own[-1])[0]
        ends = any(events[n]["what"] in ("is killed", "ends") for n in own)
        stop = last if ends else width - STEP
        parts.append(f'<line class="life" x1="{first}" y1="{y}" x2="{stop}" y2="{y}"/>')
    for source, target in find_arrows(events):
        (x1, y1), (x2, y2) = at(source), at(target)
        kind = "fork" if events[source]["what"] == "forks" else "message"
        parts.append(
            f'<line class="{kind}" data-step="{max(source, target)}" marker-end="url(#{tip})" '
            f'x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'
        )
    for number, event in enumerate(events):
        x, y = at(number)
        title = f"<title>{html.escape(words(event))}</title>"
        if event["what"] == "is killed":
            cross = f"M{x - 6} {y - 6}L{x + 6} {y + 6}M{x - 6} {y + 6}L{x + 6} {y - 6}"
            parts.append(f'<path class="kill" data-step="{number}" d="{cross}">{title}</path>')
        else:
            style = f'class="event {event["what"].replace(" ", "-")}" data-step="{number}"'
            parts.append(f'<circle {style} cx="{x}" cy="{y}" r="4">{title}</circle>')
    marker = (
        f'<defs><marker id="{tip}" viewBox="0 0 8 8" refX="10" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z"/></marker></defs>'
    )
    label = f"A run of stage {run['stage']}: {', '.join(processes)}"
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{label}">{marker}{"".join(parts)}</svg>'
    )


def names_as_svg(processes: list[str]) -> str:
    """Return the names of the lanes, which stay where they are when the diagram scrolls."""
    x, first = NAMES - 6, TOP + 4
    names = "".join(
        f'<text class="name" x="{x}" y="{first + LANE * number}">{html.escape(name)}</text>'
        for number, name in enumerate(processes)
    )
    height = TOP + LANE * len(processes)
    return f'<svg class="names" width="{NAMES}" height="{height}" aria-hidden="true">{names}</svg>'


def words(event: Event) -> str:
    """Return an event as a sentence."""
    if event["what"] == "begins" and event["text"]:
        return f"{event['process']} begins, forked by {event['text']}"
    return f"{event['process']} {event['what']} {event['text']}".rstrip()


def as_html(run: dict[str, Any]) -> str:
    """Return the diagram with its table, which need no script, and the data for the player."""
    rows = "".join(
        f"<tr><td>{number + 1}</td><td>{event['at_ms']:.1f}</td>"
        f"<td>{html.escape(words(event))}</td></tr>"
        for number, event in enumerate(run["events"])
    )
    data = html.escape(json.dumps(run, separators=(",", ":")))
    return (
        f'<figure class="trace-player" data-trace="{data}">'
        f'<div class="lanes">{names_as_svg(run["processes"])}'
        f'<div class="diagram" tabindex="0">{as_svg(run)}</div></div>'
        f"<details><summary>The run as a table</summary><table><thead><tr><th>step</th><th>ms</th>"
        f"<th>what happens</th></tr></thead><tbody>{rows}</tbody></table></details></figure>\n"
    )
