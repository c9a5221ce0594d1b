"""Draw who imports whom in miniray, in layers: whoever imports stands above what is imported."""

from tools import import_graph
from tools.count_lines import READING_PATH
from tools.site.figures import Figure

LAYER_PX, BOX_PX, LETTER_PX, PADDING_PX, LINE_PX, GAP_PX, MARGIN_PX = 58, 28, 9, 12, 6, 12, 8
SWEEPS = 24

# A module in its layer, or where a line on its way down to that module passes through another.
Place = tuple[str, int]
Line = tuple[Place, Place]


def draw() -> Figure:
    """Return the picture of the imports as they are in the code.

    What a module also reaches through another that it imports has no line of its own.
    """
    direct = import_graph.find_direct(import_graph.read_graph())
    boxes = find_layers(direct)
    lines = find_lines(direct, boxes)
    rows = _order(boxes, lines)
    widths = {place: _width(place, boxes) for row in rows for place in row}
    row_widths = [sum(widths[one] + GAP_PX for one in row) - GAP_PX for row in rows]
    width = max(row_widths) + 2 * MARGIN_PX
    height = LAYER_PX * (len(rows) - 1) + BOX_PX + 2 * MARGIN_PX
    says = f"Who imports whom among the {len(direct)} modules of miniray, with cluster at the top"
    figure = Figure(width, height, says, kind="wide")
    left: dict[Place, int] = {}
    for row, row_width in zip(rows, row_widths, strict=True):
        x = (width - row_width) // 2
        for place in row:
            left[place] = x
            x += widths[place] + GAP_PX
    middle = {place: left[place] + widths[place] // 2 for place in left}
    for above, below in lines:
        top = MARGIN_PX + LAYER_PX * above[1] + BOX_PX
        figure.line(middle[above], top, middle[below], top - BOX_PX + LAYER_PX, "plain")
    for place, x in left.items():
        name, layer = place
        y = MARGIN_PX + LAYER_PX * layer
        if boxes[name] != layer:
            figure.line(middle[place], y, middle[place], y + BOX_PX, "plain")
        else:
            kind = "ours" if name in READING_PATH else ""
            figure.box(x, y, widths[place], BOX_PX, name, kind=kind)
    return figure


def find_layers(direct: dict[str, set[str]]) -> dict[str, int]:
    """Return the layer of each module, 0 at the top: right below the lowest that imports it.

    One that nobody imports is right above those that it imports itself.
    """
    layer_of: dict[str, int] = {}
    for layer in reversed(import_graph.find_layers(direct)):
        for name in layer:
            above = [layer_of[other] for other in direct if name in direct[other]]
            layer_of[name] = max(above, default=-1) + 1
    for name in set(direct).difference(*direct.values()):
        layer_of[name] = max(min((layer_of[other] for other in direct[name]), default=1) - 1, 0)
    return layer_of


def find_lines(direct: dict[str, set[str]], boxes: dict[str, int]) -> list[Line]:
    """Return the lines from each layer to the next; those to one module become one on the way."""
    lines: set[Line] = set()
    for name, imported in direct.items():
        for other in imported:
            above = (name, boxes[name])
            for layer in range(boxes[name] + 1, boxes[other] + 1):
                lines.add((above, (other, layer)))
                above = (other, layer)
    return sorted(lines)


def _order(boxes: dict[str, int], lines: list[Line]) -> list[list[Place]]:
    """Return each layer's places from left to right, near to those that they have lines to."""
    places = sorted({*boxes.items(), *(place for line in lines for place in line)})
    rows = [[one for one in places if one[1] == layer] for layer in range(1 + max(boxes.values()))]
    at = {place: (n + 0.5) / len(row) for row in rows for n, place in enumerate(row)}
    for sweep in range(SWEEPS):
        here, there = (1, 0) if sweep % 2 == 0 else (0, 1)  # down, and up again
        for row in rows[:: 1 if here else -1]:
            wanted = {}
            for place in row:
                near = [at[line[there]] for line in lines if line[here] == place] or [at[place]]
                wanted[place] = sum(near) / len(near), place
            row.sort(key=wanted.__getitem__)
            at.update({place: (n + 0.5) / len(row) for n, place in enumerate(row)})
    return rows


def _width(place: Place, boxes: dict[str, int]) -> int:
    name, layer = place
    return LETTER_PX * len(name) + PADDING_PX if boxes[name] == layer else LINE_PX
