"""What a rank does, from its stacks, its state and its use of the CPU."""

import dataclasses
from collections.abc import Sequence
from pathlib import PurePath

from miniray.looking.stacks import Frame, Stack, users_place

# What a rank may do; of those that wait, some wait for the others and some for the coordinator.
LOST, ENDED, STOPPED, STUCK, SILENT = "lost", "ended", "stopped", "stuck", "silent"
COLLECTIVE, PEER, RECV, SEND = "collective", "peer", "recv", "send"
BUSY, IDLE, ASKS = "busy", "idle", "asks"
WAITS = (COLLECTIVE, PEER, RECV)

_C10D = "distributed_c10d.py"
_BACKWARD = "_engine_run_backward"
_HELPERS = ("_", "wrapper", "new_")
_PEER_CALLS = {"send", "recv", "isend", "irecv", "batch_isend_irecv"}
_CHANNEL_FILES = {"channel.py": "recv", "waiting.py": "wait", "fan_out.py": "gather"}


@dataclasses.dataclass(frozen=True)
class Activity:
    """What somebody does: its kind, the call that he waits in, and his line."""

    kind: str
    call: str = ""
    place: Frame | None = None

    @property
    def waits(self) -> bool:
        """Whether it goes on when somebody else does something."""
        return self.kind in WAITS


def find_activity(stacks: Sequence[Stack], *, is_busy: bool) -> Activity:
    """Return what a running process does, from the stacks of its threads, the main one first."""
    main = stacks[0]
    place = users_place(main)
    for stack in stacks:  # gradients are reduced in a thread of autograd's
        if call := _collective(stack):
            kind = PEER if call in _PEER_CALLS else COLLECTIVE
            return Activity(kind, call, users_place(stack) or place)
    if call := _of_channel(main):
        return Activity(SEND if call == "send" else RECV, call, place)
    if main[0].function == _BACKWARD and not is_busy:  # DDP reduces gradients in C++
        return Activity(COLLECTIVE, "backward", place)
    if is_busy and place is None:
        place = next(filter(None, map(users_place, stacks)), None)
    return Activity(BUSY if is_busy else IDLE, "", place)


def _collective(stack: Stack) -> str:
    """Return the call of torch.distributed that a stack is in, as the user has written it."""
    calls = [frame.function for frame in stack if PurePath(frame.file).name == _C10D]
    named = [call for call in calls if not call.startswith(_HELPERS)]
    return (named or calls or [""])[-1]


def _of_channel(stack: Stack) -> str:
    """Return which call of MiniRay's the innermost frames are in, if it waits there."""
    found = ""
    for frame in stack:
        if not (frame.is_ours or PurePath(frame.file).name == "selectors.py"):
            break
        name = PurePath(frame.file).name
        if name == "channel.py" and frame.function in ("send", "send_frame"):
            return "send"
        if name in _CHANNEL_FILES and (frame.function == _CHANNEL_FILES[name] or not found):
            found = _CHANNEL_FILES[name]
    return found
