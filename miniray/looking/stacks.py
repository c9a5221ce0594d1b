"""Read the stacks that Python's faulthandler writes, and tell the user's frames from others'."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import miniray
from miniray.worker_log import printable

_THREAD = re.compile(r"(?:Current thread|Thread) 0x.* \(most recent call first\):")
_FRAME = re.compile(r'  File "(.*)", line (\d+|\?\?\?) in (.*)')
# Where the code that came along is on a node; and the copy of a folder.
_UNPACKED = re.compile(r".*?/miniray-\w+/|.*/miniray/sync/[^/]+/")
_INSTALLED = re.compile(
    r".*/(?:site-packages|dist-packages|lib/python3\.\d+t?)/|.*/bin/miniray$|<(?!In\[).*>$"
)
_SENT = re.compile(r"miniray-\w{8}")
_PACKAGE = Path(miniray.__file__).parent
_OURS = {path.relative_to(_PACKAGE.parent).parts for path in _PACKAGE.rglob("*.py")}


@dataclasses.dataclass(frozen=True)
class Frame:
    """One call: where it stands, and in which function."""

    file: str
    line: int
    function: str
    root: str = dataclasses.field(default="", compare=False)  # the user's folder

    @property
    def is_ours(self) -> bool:
        """Whether it is MiniRay's own."""
        path = Path(self.file)
        if path.is_relative_to(_PACKAGE):
            return True
        depth = next((one for one in (2, 3) if path.parts[-one:] in _OURS), 0)
        if not depth:
            return False
        was_sent = _SENT.fullmatch(path.parents[depth - 1].name)  # also if that is below the root
        return bool(was_sent) or not (self.root and path.is_relative_to(self.root))

    @property
    def is_users(self) -> bool:
        """Whether it is the user's, and not Python's, an installed library's or MiniRay's."""
        return not _INSTALLED.match(self.file) and not self.is_ours

    @property
    def short_file(self) -> str:
        """The file's name as its author knows it."""
        if self.is_ours:
            return "/".join(Path(self.file).parts[-2:])
        if self.file.startswith("<In["):  # a notebook's cell
            return self.file[1:-1]
        bare = _INSTALLED.sub("", _UNPACKED.sub("", self.file)) or self.file
        return bare.removeprefix(f"{self.root}/") if self.root else bare

    def __str__(self) -> str:
        return f"{self.short_file}:{self.line} in {self.function}"


Stack = tuple[Frame, ...]


def read(text: str, root: str = "") -> list[Stack]:
    """Return each thread's stack, the innermost call first; the main thread is the first one.

    A dump may be cut off, or be of a Python that says more: what is no frame is passed over.
    """
    stacks: list[list[Frame]] = []
    for line in map(printable, text.splitlines()):
        if line.startswith("Stack "):  # of a thread alone: if there are several, the last is now
            stacks = [[]]
        elif _THREAD.fullmatch(line):
            stacks.append([])
        elif stacks and (found := _FRAME.fullmatch(line)):
            number = 0 if found[2] == "???" else int(found[2])
            stacks[-1].append(Frame(found[1], number, found[3], root))
    return [tuple(one) for one in reversed(stacks) if one]  # the main thread is the oldest


def is_complete(text: str) -> bool:
    """Return whether the stacks of all threads are there: the main one's comes last."""
    return text.endswith((" in <module>\n", "  ...\n"))


def users_place(stack: Sequence[Frame]) -> Frame | None:
    """Return the innermost frame of the user's, which is where he would look."""
    return next((frame for frame in stack if frame.is_users), None)
