"""Draw the site's diagrams: boxes for processes, lines for what connects them."""

import html
from dataclasses import dataclass, field

FONT_PX = 14


@dataclass
class Figure:
    """An SVG in the colours of the page around it, which may be light or dark."""

    width: int
    height: int
    says: str  # for those who do not see it
    parts: list[str] = field(default_factory=list)
    kind: str = ""

    def box(self, x: int, y: int, width: int, height: int, *lines: str, kind: str = "") -> None:
        """Draw a process: a rounded box with a name, and smaller lines below."""
        self.parts.append(
            f'<rect class="box {kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="8"/>'
        )
        top = y + (22 if kind == "machine" else height // 2 + 5 - 9 * (len(lines) - 1))
        for number, line in enumerate(lines):
            style = "title" if number == 0 else "small"
            self.text(x + width // 2, top + 18 * number, line, style)

    def text(self, x: int, y: int, words: str, kind: str = "small", anchor: str = "middle") -> None:
        """Write a line, by its middle or, with "start", its beginning."""
        style = f'class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}"'
        self.parts.append(f"<text {style}>{html.escape(words)}</text>")

    def line(
        self, x1: int, y1: int, x2: int, y2: int, kind: str = "wire", both: bool = False
    ) -> None:
        """Draw an arrow from one point to another, or in both directions."""
        start = ' marker-start="url(#{id}-tip)"' if both else ""
        end = ' marker-end="url(#{id}-tip)"' if "plain" not in kind else ""
        self.parts.append(
            f'<line class="{kind}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"{start}{end}/>'
        )

    def as_svg(self, name: str) -> str:
        body = "".join(self.parts).replace("{id}", name)
        marker = (
            f'<defs><marker id="{name}-tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            'markerHeight="7" orient="auto-start-reverse"><path d="M0 0L8 4L0 8z"/></marker></defs>'
        )
        kinds = " ".join(["drawing", *self.kind.split()])
        return (
            f'<figure class="{kinds}"><svg viewBox="0 0 {self.width} {self.height}" role="img" '
            f'aria-label="{html.escape(self.says)}">{marker}{body}</svg></figure>\n'
        )


def stage1() -> Figure:
    figure = Figure(640, 190, "A parent and a forked child, each with one end of a socketpair")
    figure.box(20, 40, 190, 90, "your program", "Worker: send, recv", kind="ours")
    figure.box(430, 40, 190, 90, "forked child", "work_fn(channel)")
    figure.line(214, 75, 426, 75, both=True)
    figure.text(320, 64, "socketpair")
    figure.text(320, 96, "frames: kind, length, JSON")
    figure.line(115, 134, 115, 160, "plain")
    figure.line(115, 160, 525, 160, "plain")
    figure.line(525, 160, 525, 134, "control")
    figure.text(320, 178, "fork, SIGTERM, SIGKILL, waitpid")
    return figure


def stage2() -> Figure:
    figure = Figure(
        640, 200, "A RemoteWorker and a server on two machines, over one TCP connection"
    )
    figure.box(10, 20, 220, 150, "machine A", kind="machine")
    figure.box(30, 65, 180, 80, "your program", "RemoteWorker", kind="ours")
    figure.box(410, 20, 220, 150, "machine B", kind="machine")
    figure.box(430, 65, 180, 80, "WorkerServer", "work_fn(channel)")
    figure.line(214, 105, 426, 105, both=True)
    figure.text(320, 92, "TCP")
    figure.text(320, 128, "any pieces, any time,")
    figure.text(320, 146, "or never again")
    return figure


def stage3() -> Figure:
    figure = Figure(660, 250, "A server that forks a worker for each client, and watches them all")
    figure.box(10, 30, 170, 56, "client 1", "RemoteWorker", kind="ours")
    figure.box(10, 100, 170, 56, "client 2", "RemoteWorker", kind="ours")
    figure.box(10, 180, 170, 50, "a stranger", "no key", kind="bad")
    figure.box(260, 100, 150, 130, "WorkerServer", "one poll loop", "forks, reaps")
    figure.box(480, 30, 170, 56, "worker 1", "work_fn(channel)")
    figure.box(480, 100, 170, 56, "worker 2", "work_fn(channel)")
    figure.line(184, 52, 476, 52, both=True)
    figure.line(184, 115, 256, 115)
    figure.text(220, 106, "proof")
    figure.line(414, 128, 476, 128, "control")
    figure.text(445, 146, "fork")
    figure.line(184, 205, 254, 205, "bad")
    figure.text(330, 42, "after the handshake: straight to it")
    return figure


def stage4() -> Figure:
    figure = Figure(
        690, 270, "A coordinator with one ssh session a node; its streams have three jobs"
    )
    figure.box(10, 60, 150, 140, "coordinator", "Cluster", kind="ours")
    for number, y in enumerate((10, 145)):
        figure.box(430, y, 250, 112, f"node{number + 1}", kind="machine")
        figure.box(445, y + 38, 110, 60, "server", "worker_server")
        figure.box(575, y + 32, 92, 32, f"rank {2 * number}")
        figure.box(575, y + 72, 92, 32, f"rank {2 * number + 1}")
        figure.line(557, y + 62, 573, y + 52, "control")
        figure.line(557, y + 74, 573, y + 84, "control")
    for number, (words, y) in enumerate(
        (
            ("stdin: key, settings, then the lease", 38),
            ("stdout: one ready line", 66),
            ("stderr: logs", 94),
        )
    ):
        back = number > 0
        x1, x2 = (426, 164) if back else (164, 426)
        figure.line(x1, y + 12, x2, y + 12)
        figure.text(295, y + 5, words)
    figure.line(164, 190, 426, 200, both=True)
    figure.text(295, 182, "the same, once a node")
    figure.text(295, 240, "and a TCP connection for each rank")
    return figure


def ready_line() -> Figure:
    figure = Figure(660, 176, "What a session prints: noise, then the marker and one line of JSON")
    lines = (
        ("Welcome to node1! Maintenance on Sunday.", "a greeting", ""),
        ("bash: module: command not found", "an rc file", ""),
        ("+ exec /bin/sh -c 'cd /home/me && ...'", "set -x", ""),
        ('miniray-9f3c... {"host": "10.0.0.7", "port": 40123}', "marker, report", "ours"),
    )
    for number, (words, says, kind) in enumerate(lines):
        y = 10 + 40 * number
        figure.box(130, y, 430, 32, kind=kind)
        figure.text(145, y + 21, words, anchor="start")
        figure.text(118, y + 21, says, anchor="end")
    figure.line(590, 20, 590, 112, "control")
    figure.text(600, 70, "noise", anchor="start")
    return figure


def stage5() -> Figure:
    figure = Figure(660, 300, "A coordinator that talks to eight ranks, which talk to each other")
    figure.box(245, 8, 170, 56, "coordinator", "RemoteWorker 0..7", kind="ours")
    for node, x in enumerate((10, 340)):
        figure.box(x, 120, 310, 150, f"node{node + 1}", kind="machine")
        for local in range(4):
            left = x + 14 + 74 * local
            figure.box(left, 158, 64, 92, f"rank {4 * node + local}", f"local {local}", "1/8")
            if local:
                figure.line(left - 9, 204, left - 1, 204, "plain")
    figure.line(290, 68, 165, 116, both=True)
    figure.line(370, 68, 495, 116, both=True)
    figure.text(330, 100, "orders, losses")
    figure.line(312, 204, 352, 204, "plain")
    figure.text(330, 290, "between ranks: all_gather, reduce_scatter, over NCCL (gloo when fake)")
    return figure


FIGURES = {
    "stage1": stage1,
    "stage2": stage2,
    "stage3": stage3,
    "stage4": stage4,
    "stage5": stage5,
    "ready-line": ready_line,
}
