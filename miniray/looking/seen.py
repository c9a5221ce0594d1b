"""What was seen of a cluster at one moment: its ranks, and the process that coordinates them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from miniray.looking import activity
from miniray.looking.activity import Activity, find_activity
from miniray.looking.stacks import Stack, read

BUSY_PERCENT = 50.0


@dataclasses.dataclass
class Seen:
    """One rank, or the coordinator, as it was seen."""

    name: str
    node: str
    rank: int | None = None
    pid: int | None = None
    problem: str = ""  # why nothing more is known of it
    row: dict[str, Any] = dataclasses.field(default_factory=dict)
    cpu_percent: float | None = None
    is_busy: bool = False
    stacks: list[Stack] = dataclasses.field(default_factory=list)
    source: str = ""  # the text of its line
    why_silent: str = ""
    does: Activity = dataclasses.field(default_factory=lambda: Activity(activity.SILENT))

    @property
    def facts(self) -> dict[str, Any]:
        """What the node's kernel says of it."""
        facts: dict[str, Any] = self.row.get("look", {})
        return facts

    def measure(self, before: Mapping[str, Any]) -> None:
        """Say how much of a core it has used since it was looked at before, in per cent.

        It is busy if it has used half of one, or would have: others may want that core, too.
        """
        old, new = before.get("look", {}), self.facts
        if "cpu_s" in old and "cpu_s" in new and new["clock_s"] > old["clock_s"]:
            seconds = new["clock_s"] - old["clock_s"]
            self.cpu_percent = 100.0 * (new["cpu_s"] - old["cpu_s"]) / seconds
            queued = 100.0 * (new["queued_s"] - old["queued_s"]) / seconds
            self.is_busy = self.cpu_percent + queued >= BUSY_PERCENT

    def conclude(self, root: str = "") -> None:
        """Say what it does, from all that has been seen; the user's code is below `root`."""
        state = self.facts.get("state", "")
        self.why_silent = self.facts.get("why_silent", "")
        if self.row.get("state") == "ended":
            self.does = Activity(activity.ENDED)
        else:
            self.stacks = read(self.facts.get("stacks", ""), root)
            if self.stacks:
                self.does = find_activity(self.stacks, is_busy=self.is_busy)
            if state in ("T", "t"):
                self.does = dataclasses.replace(self.does, kind=activity.STOPPED)
            elif state == "D" and not self.stacks:
                self.does = Activity(activity.STUCK)
