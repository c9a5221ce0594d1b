"""Carry a change of one stage into all later ones, by three-way merges.

The base of each merge is the file of the stage before as it was, the two sides are that file as it
is now, and this stage's. So a stage keeps what is its own. What a stage has taken in is noted in
git's directory: whoever runs the command again carries only what is new.
"""

import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from stages import snapshots

REPOSITORY = snapshots.REPOSITORY
NOTES = "stages-carried.json"
MARK = "<<<<<<< "
# Behind each text while it is merged: what one side has changed in the last lines, and what the
# other has added below them, would else touch each other.
PADDING = "\n\n"
# What shows something of the stages, and is made from them.
GENERATORS = ("tools.count_lines", "stages table", "stages additions")


def carry(stage: int, *, since: str = "HEAD", dry_run: bool = False) -> int:
    """Carry what has changed in a stage since a revision into the later ones; return the status.

    Stops at the first stage where a person has to decide, and says where and how to go on: then
    the status is 1. Raises ValueError for what is no stage or no revision.
    """
    if not 1 <= stage <= len(snapshots.NAMES):
        raise ValueError(f"there is no stage {stage}; name 1, 2, 3 or 4")
    files = Files(since, dry_run=dry_run)
    changed = files.changed(stage)
    shared = [name for name in changed if name not in snapshots.OWN_FILES]
    for name in set(changed) - set(shared):
        print(f"stage {stage}: {name} is each stage's own, and is not carried")
    if not shared:
        print(f"stage {stage}: nothing else has changed since {since} (see --since)")
        return 0
    print(f"stage {stage}: {', '.join(shared)} changed since {since}")
    undecided = [line for name in shared for line in _conflicts(files, stage, name)]
    while not undecided and stage < len(snapshots.NAMES):
        stage += 1
        undecided = [line for name in shared for line in carry_file(files, stage, name)]
    if not undecided:
        return 0 if dry_run else refresh_tables()
    again = ["python", "-m", "stages", "carry", str(stage)]
    again += [] if since == "HEAD" else ["--since", since]
    print(
        f"stopped at stage {stage}, where a person has to decide:",
        *undecided,
        f"between marks are its own lines, and stage {stage - 1}'s as they were and are:",
        "leave what is right, without the marks, and go on with",
        f"  {shlex.join(again)}",
        sep="\n",
    )
    return 1


def carry_file(files: "Files", stage: int, name: str) -> list[str]:
    """Carry one file of the stage before into this one; return what a person has to decide."""
    if undecided := _conflicts(files, stage, name):  # from the last time
        return undecided
    ours, theirs = files.now(stage, name), files.now(stage - 1, name)
    base = files.taken(stage, name)
    if theirs in (base, ours):
        outcome = "has it already"
    elif ours is None and base is not None:
        outcome = "is not there, so nothing is carried"
    elif theirs is None and ours != base:
        outcome = "is not what it was"
        path = f"stages/{snapshots.NAMES[stage - 1]}/{name}"
        undecided = [f"  {path}: stage {stage - 1} has none any more; delete it, or keep it"]
    else:
        wanted = theirs
        if ours is not None and theirs is not None:
            wanted = merge(ours, base or "", theirs, stage)
        files.write(stage, name, wanted)
        undecided = _conflicts(files, stage, name)
        fits = "is deleted" if wanted is None else "is new" if ours is None else "has it now"
        outcome = "has a part where it does not fit" if undecided else fits
    print(f"stage {stage}: {name} {outcome}")
    files.note(stage, name, theirs)
    return undecided


def merge(ours: str, base: str, theirs: str, stage: int) -> str:
    """Return a stage's text with the change of the stage before, between marks where it must be."""
    labels = (f"stage {stage}", f"stage {stage - 1} before", f"stage {stage - 1} now")
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("ours", "base", "theirs")]
        for path, text in zip(paths, (ours, base, theirs), strict=True):
            path.write_bytes((text + PADDING).encode())
        named = [word for label in labels for word in ("-L", label)]
        argv = ["git", "merge-file", "-p", "--diff3", *named, *map(str, paths)]
        done = subprocess.run(argv, capture_output=True)
    if done.returncode > 127:  # else it is the number of conflicts
        raise ValueError(f"git merge-file failed: {done.stderr.decode().strip()}")
    return done.stdout.decode().removesuffix(PADDING)


def refresh_tables() -> int:
    """Write the tables and pages that are made from the stages anew; return the status."""
    for module in GENERATORS:
        argv = [sys.executable, "-m", *module.split(), "--write"]
        if subprocess.run(argv, cwd=REPOSITORY).returncode != 0:
            print(f"every stage has it, but python -m {module} --write failed: see above")
            return 1
    print("every stage has it, and the tables are as measured; now run the tests of the stages")
    return 0


def _conflicts(files: "Files", stage: int, name: str) -> list[str]:
    """Return a line for each place in a file where the marks of a conflict stand."""
    path = f"stages/{snapshots.NAMES[stage - 1]}/{name}"
    return [
        f"  {path}:{number}: stage {stage - 1}'s change does not fit here"
        for number, line in enumerate((files.now(stage, name) or "").splitlines(), 1)
        if line.startswith(MARK)
    ]


class Files:
    """The stages' files, as they were at a revision and as they are now.

    With `dry_run`, nothing is written, and `now` says what would be there.
    """

    def __init__(self, since: str, *, dry_run: bool) -> None:
        self._commit = _git("rev-parse", "--verify", f"{since}^{{commit}}").strip()
        self._dry_run = dry_run
        self._unwritten: dict[Path, str | None] = {}
        self._notes = REPOSITORY / _git("rev-parse", "--git-path", NOTES).strip()
        self._taken: dict[str, str | None] = {}
        if self._notes.exists():
            noted = json.loads(self._notes.read_text())
            # What was taken in before another revision is a part of it by now.
            self._taken = noted["taken"] if noted["since"] == self._commit else {}

    def changed(self, stage: int) -> list[str]:
        """Return the names of a stage's files that are not what they were."""
        folder = f"stages/{snapshots.NAMES[stage - 1]}"
        listed = _git("ls-tree", "-r", "--name-only", self._commit, "--", f"{folder}/")
        listed += _git("ls-files", "-co", "--exclude-standard", "--", f"{folder}/")
        names = sorted({line.removeprefix(f"{folder}/") for line in listed.splitlines()})
        return [name for name in names if self.now(stage, name) != self.then(stage, name)]

    def then(self, stage: int, name: str) -> str | None:
        """Return a file's text at the revision, None if it was not there."""
        path = f"stages/{snapshots.NAMES[stage - 1]}/{name}"
        if not _git("ls-tree", "--name-only", self._commit, "--", path):
            return None
        return _git("show", f"{self._commit}:./{path}")

    def now(self, stage: int, name: str) -> str | None:
        """Return a file's text, None if it is not there."""
        path = REPOSITORY / "stages" / snapshots.NAMES[stage - 1] / name
        if path in self._unwritten:
            return self._unwritten[path]
        return path.read_bytes().decode() if path.exists() else None

    def write(self, stage: int, name: str, text: str | None) -> None:
        """Give a file a new text, or delete it."""
        path = REPOSITORY / "stages" / snapshots.NAMES[stage - 1] / name
        if self._dry_run:
            self._unwritten[path] = text
        elif text is None:
            path.unlink()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode())

    def taken(self, stage: int, name: str) -> str | None:
        """Return the text of the stage before whose change this stage has taken in already."""
        before = self.then(stage - 1, name)
        if self.now(stage, name) == self.then(stage, name):
            return before  # nothing yet, or it was undone by hand
        return self._taken.get(f"{stage}/{name}", before)

    def note(self, stage: int, name: str, text: str | None) -> None:
        """Note what a stage has taken in."""
        self._taken[f"{stage}/{name}"] = text
        if not self._dry_run:
            self._notes.write_text(json.dumps({"since": self._commit, "taken": self._taken}))


def _git(*arguments: str) -> str:
    """Run git in the repository and return what it says."""
    done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True)
    if done.returncode != 0:
        raise ValueError(f"git {arguments[0]} failed: {done.stderr.decode().strip()}")
    return done.stdout.decode()
