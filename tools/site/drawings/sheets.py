"""The drawings: each says one thing that takes a paragraph to say."""

import math
from collections.abc import Callable

from tools.site.drawings.pen import Sheet


def descriptors_before_fork() -> Sheet:
    sheet = Sheet(
        "descriptors-before-fork",
        410,
        "Who holds which end, before and after a fork",
        "Before the fork one process, the parent, holds both ends of a socketpair, as "
        "descriptors 3 and 4. After it there are two processes and still one socketpair: the "
        "parent holds 3 and 4, and so does the child. Two of the four holds, the parent's 4 "
        "and the child's 3, are dashed: those are to be closed.",
        "A fork copies the numbers, not the socket. An end is closed when *nobody* holds it "
        "any more. So until the dashed ones are let go, either side can die and the other "
        "will wait.",
    )
    _tube(sheet, 130, 330, 150, "one socketpair")
    _process(sheet, 150, 34, 160, "parent")
    _held(sheet, (189, 94), (131, 136))
    _held(sheet, (271, 94), (329, 136))
    _slots(sheet, 176, 74, 82)
    sheet.text(14, 30, "before", "bold", "start")

    sheet.text(14, 206, "after", "bold", "start")
    _tube(sheet, 110, 350, 352, "still one")
    _process(sheet, 36, 220, 160, "parent")
    _process(sheet, 264, 220, 160, "child")
    _held(sheet, (75, 280), (110, 338))
    _held(sheet, (385, 280), (350, 338))
    _held(sheet, (157, 280), (344, 340), "accent dashed")
    _held(sheet, (303, 280), (116, 340), "accent dashed")
    _slots(sheet, 62, 260, 82)
    _slots(sheet, 290, 260, 82)
    sheet.text(230, 400, "each end is held twice: no end of file", "accent bold")
    return sheet


def _process(sheet: Sheet, x: float, y: float, width: float, name: str) -> None:
    sheet.box(x, y, width, 52)
    sheet.text(x + width / 2, y + 27, name, "bold")


def _slots(sheet: Sheet, x: float, y: float, apart: float) -> None:
    for number in range(2):
        sheet.box(x + apart * number, y, 26, 24)
        sheet.text(x + apart * number + 13, y + 17.5, str(3 + number))


def _tube(sheet: Sheet, left: float, right: float, y: float, words: str) -> None:
    sheet.line(left, y - 14, right, y - 14)
    sheet.line(left, y + 14, right, y + 14)
    sheet.ring(left, y, 7, "paper", flat=2)
    sheet.ring(right, y, 7, "paper", flat=2)
    sheet.text((left + right) / 2, y + 5, words)


def _held(
    sheet: Sheet, start: tuple[float, float], end: tuple[float, float], kind: str = ""
) -> None:
    middle = ((start[0] + end[0]) / 2 + (start[0] - end[0]) * 0.1, (start[1] + end[1]) / 2 + 3)
    sheet.curve(start, middle, end, kind=kind)
    sheet.ring(end[0], end[1], 4.5, _solid(kind) + " paper")


def _solid(kind: str) -> str:
    return kind.replace("dashed", "").strip()


def zombie() -> Sheet:
    sheet = Sheet(
        "zombie",
        308,
        "A zombie waits for its parent",
        "A process table with three rows: 1, init; 412, your program; 413, and on that row "
        "sits a small ghost that holds up a slip with its status, 9. Its memory, files and "
        "sockets are dotted outlines: they have been given back. A dashed arrow, wait(), "
        "would lead from the parent, which is row 412, to the ghost; the parent is busy and "
        "looks elsewhere.",
        "What is left of a process that has ended is one row: a number, and a slip of paper. "
        "Only its parent can take the slip, with `waitpid`, and then the row is free.",
    )
    sheet.box(18, 46, 250, 178)
    for y in (90, 134, 180):
        sheet.line(18, y, 268, y, "thin")
    sheet.line(76, 46, 76, 224, "thin")
    sheet.text(143, 32, "the process table", "bold")
    for y, number, name in ((74, "1", "init"), (118, "412", "your program"), (163, "413", "")):
        sheet.text(64, y, number, anchor="end")
        sheet.text(90, y, name, anchor="start")
    sheet.text(90, 163, "status 9", anchor="start")
    _ghost(sheet, 226, 152)
    # The slip
    sheet.curve((246, 150), (266, 146), (284, 134), kind="")
    sheet.box(276, 106, 30, 30, "accent paper")
    sheet.text(291, 127, "9", "bold")
    # The parent
    sheet.box(350, 44, 98, 62)
    sheet.text(398, 65, "412, busy", "bold")
    for x in (384, 412):
        sheet.ring(x, 85, 7)
        sheet.dot(x + 4, 84, 2.6)
    sheet.arrow((384, 112), (362, 138), (316, 128), kind="accent dashed")
    sheet.text(398, 152, "wait()", "accent bold")
    sheet.text(398, 171, "not yet")
    # What it had
    for x, width, name in ((18, 96, "memory"), (126, 76, "files"), (214, 92, "sockets")):
        _dotted(sheet, x, 258, width, 34)
        sheet.text(x + width / 2, 280, name)
    sheet.text(382, 280, "given back")
    return sheet


def _dotted(sheet: Sheet, x: float, y: float, width: float, height: float) -> None:
    for x1, y1, x2, y2 in (
        (x, y, x + width, y), (x + width, y, x + width, y + height),
        (x + width, y + height, x, y + height), (x, y + height, x, y),
    ):  # fmt: skip
        sheet.line(x1, y1, x2, y2, "faint dashed")


def _ghost(sheet: Sheet, x: float, y: float) -> None:
    left, right, top, foot = x - 27, x + 25, y - 46, y + 42
    sheet.shape(
        (left, foot), (left - 1, y), (left + 5, top + 14), (x - 2, top), (right - 6, top + 12),
        (right, y), (right + 3, foot - 2), (x + 16, foot - 10), (x + 8, foot + 2),
        (x - 2, foot - 10), (x - 13, foot + 2), (x - 21, foot - 9),
    )  # fmt: skip
    sheet.dot(x - 6, y - 18, 3.4)
    sheet.dot(x + 11, y - 19, 3.4)
    sheet.curve((x - 3, y - 4), (x + 3, y - 6), (x + 9, y - 4), kind="thin")


def half_a_frame() -> Sheet:
    sheet = Sheet(
        "half-a-frame",
        330,
        "Three frames are sent, and three pieces arrive, which are not the same three",
        "Above, three frames as they were sent, each a length and so many letters: 5 hello, 4 "
        "ping, 3 bye. Below, the same bytes as three calls of recv return them: 5 hello 4 p; "
        "then i n g 3; then b y e. Both edges between the pieces are torn, and neither is "
        "where a frame ends.",
        "Nothing is lost and nothing is wrong: the network cuts where it likes. Half a frame "
        "is not an error. It is what one keeps until the rest has come.",
    )
    cell = 26
    above, starts = 29.0, []
    for frame in ("5hello", "4ping", "3bye"):
        starts.append((above, above + cell * len(frame)))
        _cells(sheet, above, 46, frame, torn=False)
        above += cell * len(frame) + 6
    sheet.text(29, 30, "sent: three frames", "bold", "start")
    below = [11 + cell * place + 26 * piece for place, piece in
             ((0, 0), (6, 0), (6, 0), (11, 1), (11, 1), (15, 2))]  # fmt: skip
    for at, (start, stop) in enumerate(starts):
        sheet.line(start, 78, below[2 * at], 184, "faint")
        sheet.line(stop, 78, below[2 * at + 1], 184, "faint")
    x = 11.0
    for number, piece in enumerate(("5hello4p", "ing3", "bye")):
        _cells(sheet, x, 188, piece, torn=True)
        width = cell * len(piece)
        if number:
            sheet.tear(x, 178, 228)
        if number < 2:
            sheet.tear(x + width, 178, 228)
        sheet.text(x + width / 2, 246, f"recv {number + 1}")
        x += width + 26
    sheet.text(11, 276, "received: three pieces", "bold", "start")
    sheet.text(230, 314, "half a frame: keep it, and ask for the rest", "accent bold")
    return sheet


def _cells(sheet: Sheet, x: float, y: float, letters: str, *, torn: bool) -> None:
    width, height = 26 * len(letters), 30
    for number, letter in enumerate(letters):
        left = x + 26 * number
        if letter.isdigit():
            corners = ((left, y), (left + 26, y), (left + 26, y + height), (left, y + height))
            sheet.fill(*corners, kind="wash")
        if number:
            sheet.line(left, y, left, y + height, "faint")
        sheet.text(left + 13, y + 20.5, letter, "bold" if letter.isdigit() else "")
    if not torn:
        sheet.box(x, y, width, height, "")
        return
    sheet.line(x, y, x + width, y)
    sheet.line(x, y + height, x + width, y + height)
    if letters.startswith("5"):
        sheet.line(x, y, x, y + height)
    if letters.endswith("e"):
        sheet.line(x + width, y, x + width, y + height)


def proof() -> Sheet:
    sheet = Sheet(
        "proof",
        384,
        "A proof is not the secret, and saying one back proves nothing",
        "Above, a client and a server, each with the same key in its house. The client asks "
        "with a fresh number, 81; the server answers with a seal on 81. The keys stay at "
        "home. Below, the client asks with another number, 82, and this time a parrot sits at "
        "the other end. It says back the seal on 81 that it has heard, and that is crossed "
        "out.",
        "What travels is a number, new each time, and a seal that only the key can press on "
        "it. A parrot can say back everything that it has ever heard, even your own words, "
        "and has nothing.",
    )
    _house(sheet, 14, 26, "client")
    _house(sheet, 332, 26, "server")
    sheet.arrow((136, 54), (324, 54))
    sheet.text(230, 44, "seal 81, please")
    sheet.arrow((324, 104), (136, 104), kind="")
    _seal(sheet, 230, 103, "81", "accent")
    sheet.line(20, 178, 440, 178, "faint dashed")
    _house(sheet, 14, 214, "client")
    sheet.arrow((136, 242), (324, 242))
    sheet.text(230, 232, "seal 82, please")
    sheet.arrow((324, 292), (140, 292))
    _seal(sheet, 244, 291, "81", "")
    sheet.cross(164, 292, 11)
    _parrot(sheet, 382, 262)
    sheet.text(230, 352, "heard yesterday, said back", "accent bold")
    return sheet


def handshake() -> Sheet:
    sheet = Sheet(
        "handshake",
        430,
        "Three messages, and who knows what after each",
        "A client on the left, a server on the right, and time goes down. First an arrow to the "
        "right, hello: the client's number, 81. Then one to the left, challenge: the server's "
        "number, 17, with a seal of the server's on both numbers; now the client knows that the "
        "server has the key. Then one to the right, response: what the client wants, with a seal "
        "of the client's on both numbers and on that; now the server knows it, too. Below that a "
        "fork.",
        "Each seal covers all that was said before it, and the two are of different stamps. "
        "Whoever is the first to prove something is the server.",
    )
    for x, name in ((78, "client"), (382, "server")):
        sheet.box(x - 50, 14, 100, 36)
        sheet.text(x, 37, name, "bold")
        sheet.line(x, 52, x, 412, "faint")
    sheet.arrow((84, 84), (376, 98))
    sheet.text(230, 76, "hello: 81")
    sheet.arrow((376, 176), (84, 190))
    sheet.text(230, 132, "challenge: 17")
    _seal(sheet, 200, 182, "S", "accent")
    sheet.text(228, 170, "on 81, 17", anchor="start")
    sheet.text(70, 220, "it has the key", "accent bold")
    sheet.arrow((84, 290), (376, 304))
    sheet.text(230, 246, "response: a worker, please")
    _seal(sheet, 200, 297, "C", "")
    sheet.text(228, 286, "on all of it", anchor="start")
    sheet.text(390, 334, "so has it", "accent bold")
    sheet.arrow((382, 352), (382, 400), kind="accent")
    sheet.text(368, 382, "fork", "bold", "end")
    return sheet


def _house(sheet: Sheet, x: float, y: float, name: str) -> None:
    sheet.box(x, y, 114, 108)
    sheet.text(x + 57, y + 28, name, "bold")
    cx, cy = x + 36, y + 70
    sheet.ring(cx, cy, 13)
    sheet.ring(cx - 2, cy, 3.6)
    sheet.line(cx + 13, cy, cx + 50, cy)
    sheet.line(cx + 38, cy, cx + 38, cy + 10)
    sheet.line(cx + 48, cy, cx + 48, cy + 13)


def _seal(sheet: Sheet, x: float, y: float, words: str, kind: str) -> None:
    bumps = [
        (x + (21 if n % 2 else 17.5) * math.cos(n * math.tau / 24),
         y + (21 if n % 2 else 17.5) * math.sin(n * math.tau / 24))
        for n in range(24)
    ]  # fmt: skip
    sheet.shape(*bumps, kind=f"{kind} paper".strip())
    sheet.ring(x, y, 13.5, f"{kind} thin".strip())
    sheet.text(x, y + 5.5, words, "bold")


def _parrot(sheet: Sheet, x: float, y: float) -> None:
    sheet.line(x - 44, y + 62, x + 58, y + 58)
    # Tail, body, head
    sheet.shape(
        (x + 16, y + 40), (x + 30, y + 74), (x + 38, y + 104), (x + 26, y + 102), (x + 12, y + 76),
        (x + 4, y + 52),
    )  # fmt: skip
    sheet.shape(
        (x - 16, y - 58), (x + 4, y - 56), (x + 16, y - 40), (x + 24, y - 10), (x + 26, y + 24),
        (x + 16, y + 52), (x - 4, y + 58), (x - 22, y + 44), (x - 30, y + 14), (x - 28, y - 16),
        (x - 32, y - 38), (x - 27, y - 52),
    )  # fmt: skip
    # Beak
    sheet.shape(
        (x - 30, y - 48), (x - 42, y - 44), (x - 49, y - 32), (x - 46, y - 20), (x - 40, y - 30),
        (x - 29, y - 31),
    )  # fmt: skip
    sheet.curve((x - 30, y - 31), (x - 36, y - 24), (x - 29, y - 21))
    sheet.ring(x - 13, y - 41, 6.5)
    sheet.dot(x - 15, y - 41, 2.8)
    # Wing
    sheet.curve((x - 8, y - 12), (x + 12, y - 6), (x + 18, y + 20), (x + 10, y + 44))
    sheet.curve((x - 8, y - 12), (x - 12, y + 8), (x - 4, y + 30), (x + 10, y + 44))
    sheet.curve((x - 3, y + 4), (x + 4, y + 10), (x + 12, y + 8), kind="thin")
    sheet.curve((x - 3, y + 18), (x + 4, y + 23), (x + 12, y + 20), kind="thin")
    # Feet
    for foot in (-10, 4):
        sheet.curve((x + foot - 4, y + 56), (x + foot - 3, y + 66), (x + foot, y + 67))
        sheet.curve((x + foot + 2, y + 56), (x + foot + 3, y + 66), (x + foot + 6, y + 66))


def lease() -> Sheet:
    sheet = Sheet(
        "lease",
        424,
        "The lease is a rope through ssh",
        "Above, a coordinator holds a rope. It runs through a pipe called ssh, over a pulley "
        "on the node, and on it hangs a server, and from the server hang the ranks 0 to 3. "
        "Below, the coordinator is crossed out, its end of the rope lies loose, and on the "
        "node the server and the ranks lie on the floor in a heap.",
        "However the hand opens, it opens: at the end of a script, by Ctrl-C, by SIGKILL, by "
        "a fuse. Nobody has to send anything for the node to be left clean.",
    )
    _lease_frame(sheet, 16)
    sheet.box(12, 62, 112, 50)
    sheet.text(68, 92, "coordinator", "bold")
    sheet.curve((131, 75), (154, 78), (184, 74), kind="accent")
    sheet.curve((258, 74), (300, 76), (346, 74), kind="accent")
    sheet.curve((346, 74), (358, 78), (361, 88), (361, 118), kind="accent")
    sheet.curve((124, 80), (132, 82), (138, 80), (139, 72), (133, 68), (124, 72), kind="")
    _pulley_and_pipe(sheet, 74)
    sheet.box(326, 118, 70, 28)
    sheet.text(361, 137, "server")
    for number in range(4):
        x = 312 + 33 * number
        sheet.line(336 + 17 * number, 147, x, 166, "thin")
        sheet.box(x - 13, 166, 26, 24)
        sheet.text(x, 183.5, str(number))

    top = 218
    _lease_frame(sheet, top)
    sheet.box(12, top + 46, 112, 50)
    sheet.text(68, top + 76, "coordinator", "bold")
    sheet.cross(68, top + 71, 30)
    sheet.curve(
        (152, top + 148), (140, top + 136), (150, top + 122), (164, top + 128), (160, top + 144),
        (146, top + 120), (152, top + 84), (164, top + 62), (180, top + 58), kind="accent",
    )  # fmt: skip
    sheet.line(152, top + 148, 146, top + 156, "accent")
    sheet.line(152, top + 148, 155, top + 157, "accent")
    sheet.curve(
        (258, top + 58), (300, top + 60), (346, top + 58), (358, top + 62), (361, top + 76),
        (358, top + 96), (364, top + 112), (358, top + 124), kind="accent",
    )  # fmt: skip
    _pulley_and_pipe(sheet, top + 58)
    sheet.line(292, top + 190, 442, top + 190)
    _tumbled(sheet, 352, top + 146, 70, 28, -14, "server")
    for x, y, turn, name in ((310, 176, 24, "0"), (345, 177, -4, "1"), (382, 176, 38, "2"),
                             (418, 177, -18, "3")):  # fmt: skip
        _tumbled(sheet, x, top + y, 26, 24, turn, name)
    sheet.text(12, top + 126, "however", "accent bold", "start")
    sheet.text(12, top + 145, "it ends", "accent bold", "start")
    return sheet


def _lease_frame(sheet: Sheet, top: float) -> None:
    _dotted(sheet, 284, top, 166, 184)
    sheet.text(440, top + 22, "node", "bold", "end")


def _pulley_and_pipe(sheet: Sheet, y: float) -> None:
    sheet.ring(346, y + 14, 13, "paper")
    sheet.dot(346, y + 14, 2.5)
    sheet.line(346, y + 12, 346, y - 40 + 4)
    sheet.line(326, y - 36, 366, y - 36)
    _tube(sheet, 176, 258, y, "ssh")


def _tumbled(
    sheet: Sheet, x: float, y: float, width: float, height: float, turn: float, name: str
) -> None:
    before = len(sheet.parts)
    sheet.box(x - width / 2, y - height / 2, width, height)
    sheet.text(x, y + 5, name)
    inside = "".join(sheet.parts[before:])
    del sheet.parts[before:]
    sheet.parts.append(f'<g transform="rotate({turn} {x:g} {y:g})">{inside}</g>')


def fsdp_shards() -> Sheet:
    sheet = Sheet(
        "fsdp-shards",
        400,
        "Eight ranks breathe: the pieces of a layer in an FSDP step",
        "Three squares of eight by eight cells, a row for each rank and a column for each "
        "piece of a layer. In the first only the diagonal is filled: each rank has its own "
        "eighth. After all_gather, in the second, all cells are filled: each rank has the "
        "whole layer. After reduce_scatter, in the third, only the diagonal is left, now in "
        "the second colour: each rank has the sum of the gradients for its own eighth. Below, "
        "a line that rises and falls once for each layer forward and once for each layer "
        "backward: the memory of one rank.",
        "Nobody ever holds the model. A layer is whole for as long as it is used, and then "
        "each rank lets go of the seven eighths that are not its own. The line at the "
        "bottom is one rank's memory.",
    )
    for number, name in enumerate(("at rest", "in", "out")):
        _grid(sheet, 54 + 141 * number, 44, name)
    sheet.text(44, 30, "rank", anchor="end")
    for rank in (0, 7):
        sheet.text(44, 44 + 15 * rank + 12.5, str(rank), anchor="end")
    sheet.arrow((114, 172), (140, 189), (222, 189), (248, 174))
    sheet.arrow((262, 172), (288, 189), (370, 189), (396, 174))
    sheet.text(181, 212, "all_gather")
    sheet.text(329, 212, "reduce_scatter")
    sheet.line(24, 352, 446, 352, "thin")
    low, high = 336, 264
    points: list[tuple[float, float]] = [(26, low)]
    for layer in range(6):
        left = 42 + 66 * layer
        points += [(left, low), (left + 17, high + 24), (left + 29, high), (left + 41, high + 24),
                   (left + 58, low)]  # fmt: skip
    points.append((444, low))
    sheet.curve(*points, kind="accent")
    sheet.text(24, 246, "memory of one rank", "bold", "start")
    sheet.line(237, 254, 237, 382, "faint dashed")
    sheet.text(131, 378, "forward")
    sheet.text(342, 378, "backward")
    return sheet


def _grid(sheet: Sheet, x: float, y: float, name: str) -> None:
    cell = 15
    sheet.text(x + 4 * cell, y - 14, name, "bold")
    around: list[str] = []
    for row in range(8):
        for column in range(8):
            left, top = x + cell * column, y + cell * row
            right, bottom = left + cell - 1.5, top + cell - 1.5
            left, top = left + 1.5, top + 1.5
            corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
            if row == column:
                sheet.fill(*corners, kind="ripe" if name == "out" else "full")
            elif name == "in":
                sheet.fill(*corners, kind="wash")
                around.append(sheet.parts.pop())
    if around:
        sheet.group("breath", *around)
    for line in range(1, 8):
        sheet.line(x, y + cell * line, x + 8 * cell, y + cell * line, "faint")
        sheet.line(x + cell * line, y, x + cell * line, y + 8 * cell, "faint")
    sheet.box(x, y, 8 * cell, 8 * cell, "")


def full_letterbox() -> Sheet:
    sheet = Sheet(
        "full-letterbox",
        274,
        "A full letterbox is not a dead tenant",
        "Two houses, each with a letterbox out of which letters spill. In the left one there "
        "is light: somebody sits at a desk, and through the hatch in the door two eyes look "
        "out and say: still full. In the right one all is dark, and nobody answers. Below the "
        "left one stands slow, below the right one gone.",
        "Seen from the letterbox, the two are alike. So do not look at the letterbox; ring.",
        top=26,
    )
    for left in (10.0, 242.0):
        _house_with_letterbox(sheet, left)
    # Light, and somebody at a desk
    sheet.fill((44, 132), (96, 132), (96, 180), (44, 180), kind="wash")
    sheet.ring(68, 152, 8, "paper")
    sheet.curve((54, 178), (57, 166), (68, 163), (79, 166), (84, 174))
    sheet.line(44, 174, 96, 175, "thin")
    sheet.line(78, 172, 88, 172, "accent")
    for x in (123, 132):
        sheet.dot(x, 184, 2.4)
    sheet.curve((140, 172), (150, 158), (158, 146), kind="accent thin")
    sheet.text(162, 140, "still full", "accent bold", "start")
    # Dark, and nobody
    for step in range(5):
        sheet.line(276 + 11 * step, 136, 276 + 11 * step, 177, "faint")
    sheet.text(400, 140, "...", "bold", "start")
    sheet.text(92, 262, "slow", "bold")
    sheet.text(324, 262, "gone", "bold")
    return sheet


def _house_with_letterbox(sheet: Sheet, x: float) -> None:
    sheet.line(x, 232, x + 208, 232)
    sheet.line(x + 18, 114, x + 18, 232)
    sheet.line(x + 146, 114, x + 146, 232)
    sheet.line(x + 2, 118, x + 82, 40)
    sheet.line(x + 82, 40, x + 162, 118)
    sheet.line(x + 14, 112, x + 150, 112)
    sheet.box(x + 34, 132, 52, 48)
    sheet.box(x + 102, 166, 32, 66)
    sheet.box(x + 107, 176, 22, 15)
    # The letterbox, and what it cannot hold
    sheet.line(x + 181, 206, x + 181, 232)
    for dx, y, turn in ((168, 176, -18), (184, 172, 12), (196, 178, 34)):
        _letter(sheet, x + dx, y, turn)
    sheet.box(x + 162, 182, 38, 25)
    sheet.line(x + 168, 190, x + 194, 190)
    _letter(sheet, x + 166, 226, -6)
    _letter(sheet, x + 198, 227, 8)


def _letter(sheet: Sheet, x: float, y: float, turn: float) -> None:
    before = len(sheet.parts)
    sheet.box(x - 11, y - 7, 22, 14, "thin paper")
    sheet.curve((x - 10, y - 6), (x, y + 2), (x + 10, y - 6), kind="thin")
    inside = "".join(sheet.parts[before:])
    del sheet.parts[before:]
    sheet.parts.append(f'<g transform="rotate({turn:g} {x:g} {y:g})">{inside}</g>')


DRAW: dict[str, Callable[[], Sheet]] = {
    "descriptors-before-fork": descriptors_before_fork,
    "zombie": zombie,
    "half-a-frame": half_a_frame,
    "proof": proof,
    "handshake": handshake,
    "lease": lease,
    "fsdp-shards": fsdp_shards,
    "full-letterbox": full_letterbox,
}
