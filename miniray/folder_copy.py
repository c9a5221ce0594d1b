"""A node's copy of a coordinator's folder, which stays there: say what it lacks, and take that in.

It is in ~/.cache/miniray/sync, or in $XDG_CACHE_HOME. Beside each copy is a record of the files
that came from the coordinator; whatever else a run has left in the copy is not touched.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import stat
import sys
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from miniray.bootstrap import SILENCE_MAX_S

COPIES_MAX = 16  # of one folder, each in use by another run

# Of a file: its size, when it was changed in nanoseconds, its mode, and where it points if it is a
# link. A list, because that is what JSON makes of it.
Facts = list[Any]
Report = Callable[[dict[str, Any]], None]


def facts_of(path: Path) -> Facts | None:
    """Return the facts of a file or a link, None for what is neither."""
    with contextlib.suppress(OSError):
        found = os.lstat(path)
        link = os.readlink(path) if stat.S_ISLNK(found.st_mode) else None
        if link is not None or stat.S_ISREG(found.st_mode):
            return [found.st_size, found.st_mtime_ns, found.st_mode, link]
    return None


def bring_up_to_date(name: str, files: Mapping[str, Facts], report: Report) -> str:
    """Make this node's copy equal to the coordinator's files; return where it is.

    It is this process's alone until its end, or until that of whoever inherits its descriptors: who
    comes meanwhile gets another. Raises OSError, in words, if that cannot be done; what has arrived
    by then need not come again.
    """
    above = _folder_of_copies()
    try:
        above.mkdir(mode=0o700, parents=True, exist_ok=True)
        _refuse_if_others_write(above.parent, above)
        folder = _take_free(above, name)
        record = _Record(folder)
        lacking = [path for path, facts in files.items() if not record.has(path, facts)]
        record.expect(lacking)
        for path in record.files.keys() - files.keys():
            record.remove(path)
        older = [path for path in lacking if record.has_an_older(path)]
        has_rsync = shutil.which("rsync") is not None
        report({"lacking": lacking, "folder": str(folder), "older": older if has_rsync else []})
        try:
            _unpack(record, files)
            for path in lacking:
                record.note(path, files[path])
        finally:
            record.write()
    except (OSError, tarfile.TarError) as error:
        problem = f"cannot copy the folder to {above} there: {error}"
        raise OSError(f"{problem}; XDG_CACHE_HOME, in NodeConfig.env or --env, moves it") from error
    return str(folder)


def files_of_copy(folder: Path) -> list[str]:
    """Return the files of a copy that came from its coordinator; none if it is no copy."""
    return list(_Record(folder).files) if folder.parent == _folder_of_copies().resolve() else []


def _folder_of_copies() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "miniray/sync")


def _refuse_if_others_write(*folders: Path) -> None:
    for folder in folders:
        status = folder.stat()
        if status.st_uid != os.geteuid() or status.st_mode & 0o002:
            raise PermissionError(f"others could put code into {folder}, which is not yours alone")


def _take_free(above: Path, name: str) -> Path:
    """Return the first copy of that name that no other run has, and hold it from now on."""
    for number in range(1, COPIES_MAX + 1):
        folder = above / (name if number == 1 else f"{name}.{number}")
        folder.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        os.set_inheritable(descriptor, True)  # for who goes on here after this process, if anybody
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
        except OSError:  # not every file system has locks
            return folder
        else:
            return folder
    raise OSError(f"{COPIES_MAX} runs from one folder are under way, each with a copy of its own")


class _Record:
    """Which files of a copy came from the coordinator, and how each was, there and here."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._path = folder, folder.with_name(f"{folder.name}.json")
        self.files: dict[str, list[Facts | None] | None] = {}
        with contextlib.suppress(OSError, ValueError):  # there is none yet
            self.files = json.loads(self._path.read_text())

    def has(self, path: str, facts: Facts) -> bool:
        """Return whether a file is here as the coordinator has it, and as it came."""
        return self.files.get(path) == [facts, facts_of(self.folder / path)]

    def has_an_older(self, path: str) -> bool:
        """Return whether another version of a file is here, in the copy itself."""
        file = os.path.realpath(self.folder / path)
        return os.path.isfile(file) and file == os.path.join(os.path.realpath(self.folder), path)

    def expect(self, paths: list[str]) -> None:
        """Note that some files are about to come: whatever happens, they are the coordinator's."""
        self.files.update(dict.fromkeys(paths))
        self.write()

    def note(self, path: str, facts: Facts) -> None:
        """Note that a file is here as it came, unless it was gone before it could come."""
        here = facts_of(self.folder / path)
        self.files[path] = here and [facts, here]

    def remove(self, path: str) -> None:
        """Remove a file that the coordinator has no more, and what Python has compiled of it."""
        file = self.folder / path
        del self.files[path]
        if file.parent.resolve() != (self.folder.resolve() / path).parent:
            return  # a run has put a link there, and what is behind it is not ours
        with contextlib.suppress(OSError):  # a run was faster
            file.unlink()
        for compiled in file.parent.glob(f"__pycache__/{file.stem}.*.pyc"):
            compiled.unlink(missing_ok=True)
        for parent in (file.parent / "__pycache__", *file.parents):
            if not parent.is_relative_to(self.folder) or parent == self.folder:
                break
            with contextlib.suppress(OSError):  # it is not empty
                parent.rmdir()

    def make_way(self, path: str) -> None:
        """Remove what stands where a file is to come, but no folder."""
        file = self.folder / path
        for above in (*reversed(file.parents), file):
            is_inside = above != self.folder and above.is_relative_to(self.folder)
            if is_inside and (above.is_symlink() or above.is_file()):
                above.unlink()
        if file.is_dir():
            raise IsADirectoryError(f"{file} is a folder that a run has made; remove it there")

    def write(self) -> None:
        """Write the record, whole or not at all."""
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(self.files))
        new.replace(self._path)


def _unpack(record: _Record, files: Mapping[str, Facts]) -> None:
    incoming: Any = _Chunks()
    with tarfile.open(fileobj=incoming, mode="r|gz") as archive:
        # All of it is the coordinator's, whose code is about to run here.
        archive.extraction_filter = lambda member, path: member
        for member in archive:
            record.make_way(member.name)
            archive.extract(member, record.folder)
            record.note(member.name, files[member.name])
    while incoming.read(1 << 16):
        pass


class _Chunks:
    """What comes in on stdin up to an empty chunk; nothing is read ahead of that."""

    def __init__(self) -> None:
        self._stdin: Any = sys.stdin.buffer.raw  # type: ignore[union-attr]
        self._left, self._is_over = 0, False

    def read(self, nbytes: int) -> bytes:
        """Return some bytes, as many at most; none after the last."""
        signal.alarm(SILENCE_MAX_S)  # whose sender is lost does not stay
        try:
            if not self._left and not self._is_over:
                while not (line := self._stdin.readline()).strip():  # it only says that it is there
                    if not line:
                        sys.exit("its sender has gone")
                    signal.alarm(SILENCE_MAX_S)
                self._left = int(line)
                self._is_over = not self._left
            data: bytes = self._stdin.read(min(nbytes, self._left)) if self._left else b""
            if self._left and not data:
                sys.exit("its sender has gone")
            self._left -= len(data)
            return data
        finally:
            signal.alarm(0)
