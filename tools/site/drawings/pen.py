"""A pen that draws as a steady hand does: nearly straight, nearly closed, never twice the same.

Nothing here has a colour of its own. Ink is the text's colour; what matters has the class
"accent", paper has "paper", and the site's style sheet says what they look like by day and night.
"""

import html
import math
import random
from dataclasses import dataclass, field

Point = tuple[float, float]
WIDTH = 460
LETTERS_PX = 15  # of 460, so that they are 11.6 on a phone that is 390 wide


@dataclass
class Sheet:
    """One drawing, with what it shows for those who do not see it."""

    name: str
    height: int
    title: str
    shows: str
    caption: str  # Markdown's `code` and *stress*, and nothing else of it
    top: int = 0  # where the paper begins
    parts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._hand = random.Random(self.name)

    def _shake(self, px: float) -> float:
        return self._hand.uniform(-px, px)

    # Strokes

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str = "") -> None:
        """Draw a line that bends a little."""
        self._add(self._stroke((x1, y1), (x2, y2)), kind)

    def curve(self, *points: Point, kind: str = "", exactly: bool = False) -> None:
        """Draw a smooth line through points."""
        self._add(self._smooth(points, 0 if exactly else 0.8), kind)

    def arrow(self, *points: Point, kind: str = "") -> None:
        """Draw a smooth line through points, with a tip at its end."""
        path = self._smooth(points, 0.6) if len(points) > 2 else self._stroke(*points)
        (x1, y1), (x2, y2) = points[-2:]
        self._add(path, kind)
        angle = math.atan2(y2 - y1, x2 - x1)
        sides = []
        for turn in (2.62, -2.62):
            length = 10 + self._shake(1)
            end = angle + turn + self._shake(0.06)
            sides.append((x2 + length * math.cos(end), y2 + length * math.sin(end)))
        tip = f"M{_at(sides[0])}L{_at((x2, y2))}L{_at(sides[1])}"
        self._add(tip, kind.replace("dashed", ""))

    def box(self, x: float, y: float, width: float, height: float, kind: str = "paper") -> None:
        """Draw a box whose corners do not quite meet."""
        corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
        self.fill(*corners, kind=kind)
        path = ""
        for (x1, y1), (x2, y2) in zip(corners, [*corners[1:], corners[0]], strict=True):
            over = 1.5 / math.hypot(x2 - x1, y2 - y1)
            ends = (
                (x1 - over * (x2 - x1), y1 - over * (y2 - y1)),
                (
                    x2 + over * (x2 - x1),
                    y2 + over * (y2 - y1),
                ),
            )
            path += self._stroke(*ends)
        self._add(path, kind)

    def ring(self, x: float, y: float, radius: float, kind: str = "", flat: float = 1.0) -> None:
        """Draw a circle, or an ellipse, that runs a little past its beginning."""
        start = self._shake(math.pi)
        points = []
        for step in range(11):
            angle = start + step * math.tau / 9.6
            r = radius + self._shake(min(0.7, radius / 14))
            points.append((x + r * math.cos(angle), y + r * flat * math.sin(angle)))
        if kind:
            self.parts.append(
                f'<ellipse class="{kind} fill" cx="{x:g}" cy="{y:g}" rx="{radius:g}" '
                f'ry="{radius * flat:g}"/>'
            )
        self._add(self._smooth(points, 0), kind)

    def dot(self, x: float, y: float, radius: float = 2.5, kind: str = "") -> None:
        """Draw a dot."""
        self.parts.append(
            f'<circle class="{_join("spot", kind)}" cx="{x:g}" cy="{y:g}" r="{radius:g}"/>'
        )

    def shape(self, *points: Point, kind: str = "paper") -> None:
        """Draw a smooth closed shape through points."""
        around = [*points[-2:], *points, *points[:2]]
        path = self._smooth(around, 0)
        pieces = path.split("C")
        first = pieces[2].split()[-1]
        path = f"M{first}C" + "C".join(pieces[3 : 3 + len(points)]) + "Z"
        self.parts.append(f'<path class="{_join(kind, "fill")}" d="{path}"/>')
        self._add(path, kind)

    def fill(self, *points: Point, kind: str) -> None:
        """Lay paper, or a wash, over what is below, without a stroke."""
        path = "L".join(_at(point) for point in points)
        self.parts.append(f'<path class="{_join(kind, "fill")}" d="M{path}Z"/>')

    def tear(self, x: float, y1: float, y2: float, kind: str = "accent") -> None:
        """Draw a torn edge, downwards."""
        points, side, y = [], 1, y1
        while y < y2:
            points.append((x + side * (3 + self._shake(1.2)), y))
            side, y = -side, y + 5.5 + self._shake(1)
        points.append((x, y2))
        self._add("M" + "L".join(map(_at, points)), kind)

    def cross(self, x: float, y: float, size: float = 8, kind: str = "accent") -> None:
        """Cross something out."""
        self.line(x - size, y - size, x + size, y + size, kind)
        self.line(x + size, y - size, x - size, y + size, kind)

    # Words

    def text(self, x: float, y: float, words: str, kind: str = "", anchor: str = "middle") -> None:
        """Write a line."""
        found = f' class="{kind}"' if kind else ""
        self.parts.append(
            f'<text{found} x="{x:g}" y="{y:g}" text-anchor="{anchor}">{html.escape(words)}</text>'
        )

    def group(self, kind: str, *inside: str) -> None:
        """Put what was drawn, as parts, into a group with a class."""
        self.parts.append(f'<g class="{kind}">{"".join(inside)}</g>')

    # What comes out

    def as_svg(self) -> str:
        """Return the drawing as a file; it takes the colours of the page that it is put into."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="sheet" '
            f'viewBox="0 {self.top} {WIDTH} {self.height - self.top}" role="img" '
            f'aria-labelledby="{self.name}-title {self.name}-desc" fill="none" '
            f'stroke="currentColor" stroke-width="2" stroke-linecap="round" '
            f'stroke-linejoin="round" font-size="{LETTERS_PX}" font-family="inherit">\n'
            f'<title id="{self.name}-title">{html.escape(self.title)}</title>\n'
            f'<desc id="{self.name}-desc">{html.escape(self.shows)}</desc>\n'
            f"{STYLE}\n" + "\n".join(self.parts) + "\n</svg>\n"
        )

    def _add(self, path: str, kind: str = "") -> None:
        found = f' class="{kind}"' if kind else ""
        self.parts.append(f'<path{found} d="{path}"/>')

    def _stroke(self, start: Point, end: Point) -> str:
        (x1, y1), (x2, y2) = start, end
        length = math.hypot(x2 - x1, y2 - y1) or 1.0
        bend = min(1.8, 0.25 + length / 110)
        nx, ny = -(y2 - y1) / length, (x2 - x1) / length
        near, far = self._shake(bend), self._shake(bend)
        controls = [
            (x1 + (x2 - x1) * part + nx * off, y1 + (y2 - y1) * part + ny * off)
            for part, off in ((0.3, near), (0.7, far))
        ]
        first = (x1 + self._shake(0.5), y1 + self._shake(0.5))
        last = (x2 + self._shake(0.5), y2 + self._shake(0.5))
        return f"M{_at(first)}C{_at(controls[0])} {_at(controls[1])} {_at(last)}"

    def _smooth(self, points: "tuple[Point, ...] | list[Point]", shake: float) -> str:
        moved = [(x + self._shake(shake), y + self._shake(shake)) for x, y in points]
        padded = [moved[0], *moved, moved[-1]]
        path = f"M{_at(moved[0])}"
        for before, here, there, after in zip(
            padded, padded[1:], padded[2:], padded[3:], strict=False
        ):
            one = (here[0] + (there[0] - before[0]) / 6, here[1] + (there[1] - before[1]) / 6)
            two = (there[0] - (after[0] - here[0]) / 6, there[1] - (after[1] - here[1]) / 6)
            path += f"C{_at(one)} {_at(two)} {_at(there)}"
        return path


# In the drawing itself, so that it can be looked at anywhere. Its second colour is the page's.
STYLE = (
    "<style>"
    ".sheet text{stroke:none;fill:currentColor}"
    ".sheet .bold{font-weight:700}"
    ".sheet .thin{stroke-width:1.3}"
    ".sheet .faint{stroke-width:1.3;opacity:.45}"
    ".sheet .dashed{stroke-dasharray:5 6}"
    ".sheet .accent{stroke:var(--ray-pen,currentColor);stroke-width:2.6}"
    ".sheet text.accent{stroke:none;fill:var(--ray-pen,currentColor)}"
    ".sheet .fill{stroke:none}"
    ".sheet .paper.fill{fill:var(--md-default-bg-color,Canvas)}"
    ".sheet .wash.fill{fill:var(--ray-pen,currentColor);opacity:.2}"
    ".sheet .full.fill{fill:currentColor}"
    ".sheet .ripe.fill{fill:var(--ray-pen,currentColor)}"
    ".sheet .spot{stroke:none;fill:currentColor}"
    "</style>"
)


def _at(point: Point) -> str:
    return f"{point[0]:.1f},{point[1]:.1f}"


def _join(*kinds: str) -> str:
    return " ".join(kind for kind in kinds if kind)
