"""What goes along to a node: the code, in a zip, and if asked for a copy of a whole folder."""

import contextlib
import gzip
import hashlib
import io
import os
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from miniray import cells, inherited
from miniray.errors import ClusterError
from miniray.folder_copy import Facts, facts_of, files_of_copy
from miniray.node_config import NodeConfig
from miniray.sources import find_code, pack

FILES_MAX = 100_000
FOLDER_BYTES_MAX = 2 * 1024**3
CHUNK_BYTES = 256 * 1024
# What is never worth a copy, whatever git says; a virtual environment shows by its pyvenv.cfg.
LEFT_OUT = {
    *(".git", ".hg", ".svn", ".venv", ".tox", ".nox", "__pycache__", "node_modules"),
    *(".mypy_cache", ".pytest_cache", ".ruff_cache", ".ipynb_checkpoints"),
}


class Carrier(Protocol):
    """What carries bytes to a node: its session."""

    def send(self, data: bytes, deadline: float) -> bool:
        """Send all of the bytes, or raise TimeoutError; return False if nobody takes them."""


class Luggage:
    """The code around a work function and, with `folder`, a copy of that folder, for each node."""

    def __init__(self, work_fn: str, folder: str | os.PathLike[str] | None = None) -> None:
        self.cells = cells.collect(work_fn)
        self.code = find_code(work_fn, "\n".join(text for *_, text in self.cells))
        self.folder = None if folder is None else Folder(folder, self.code)
        # Now, and not in the time that the nodes have to start.
        self._all_code = pack(self.code)
        self._code_elsewhere = pack(self.folder.leave_out(self.code)) if self.folder else b""

    def for_node(self, config: NodeConfig, label: str) -> tuple[dict[str, Any], bytes]:
        """Return the settings of a node that are about this, and the zip that it gets.

        A node on this machine works in the folder itself; one with a workdir has its own there.
        """
        folder, place = self.folder, dict[str, Any]()
        if folder is None or config.workdir is not None:
            place = {"workdir": config.workdir, "copy": None, "import_paths": []}
            return {**place, "cells": self.cells}, self._all_code
        there = {"name": folder.name_for(label), "files": folder.files}
        place = {"workdir": None, "copy": there, "import_paths": folder.import_paths}
        if config.is_local():
            place |= {"workdir": str(folder.path), "copy": None}
        return {**place, "cells": self.cells}, self._code_elsewhere


class Folder:
    """A folder of this machine as it is now: what git knows of, or nearly all where it has no git.

    Of a copy, from which a detached run is coordinated, it is what came with it, and no output.
    `code` is what will be imported: what of that is in the folder goes along in any case. Raises
    ClusterError for a folder that cannot be listed, or is too large.
    """

    def __init__(self, folder: str | os.PathLike[str], code: Mapping[str, Path]) -> None:
        self._given, self.path = Path(os.path.abspath(folder)), Path(folder).resolve()
        if not self.path.is_dir():
            raise ClusterError(f"cannot copy {self.path} to the nodes: there is no such folder")
        paths = dict.fromkeys(_list(self.path))
        for path in self._inside(code.values()):
            paths[path] = None
            for parent in Path(path).parents:  # a link to a folder becomes a folder there
                paths.pop(parent.as_posix(), None)
        facts = ((path, facts_of(self.path / path)) for path in sorted(paths))
        self.files: dict[str, Facts] = {path: known for path, known in facts if known is not None}
        self._check_size()
        # Where modules are found here, in this order, they are found in the copy.
        roots = [Path(os.path.abspath(entry)) for entry in sys.path]
        roots += [file.parents[name.count("/")] for name, file in code.items()]
        self.import_paths = list(dict.fromkeys([".", *self._inside(roots)]))

    def name_for(self, label: str) -> str:
        """Return what the copy is called on a node, whatever machines share its file system."""
        where = f"{socket.gethostname()}:{self.path}:{label}".encode(errors="surrogateescape")
        return f"{self.path.name or 'root'}-{hashlib.sha256(where).hexdigest()[:12]}"

    def leave_out(self, code: Mapping[str, Path]) -> dict[str, Path]:
        """Return what of some code is not in the folder."""
        return {name: file for name, file in code.items() if not [*self._inside([file])]}

    def _inside(self, paths: Iterable[Path]) -> Iterator[str]:
        """Yield the paths that are in the folder, relative to it."""
        for path in paths:
            for folder in (self._given, self.path):
                if path.is_relative_to(folder):
                    yield path.relative_to(folder).as_posix()
                    break

    def _check_size(self) -> None:
        nbytes = {path: known[0] for path, known in self.files.items()}
        total = sum(nbytes.values())
        if total > FOLDER_BYTES_MAX or len(nbytes) > FILES_MAX:
            large = sorted(nbytes, key=lambda path: -nbytes[path])[:3]
            named = ", ".join(f"{path} ({nbytes[path]} bytes)" for path in large)
            much = f"{len(nbytes)} files, {total >> 20} MiB"
            limit = f"{FILES_MAX} files, {FOLDER_BYTES_MAX >> 20} MiB"
            raise ClusterError(
                f"{self.path} is too large for sync: {much}, and the limit is {limit}; the largest "
                f"are {named}. Name in .gitignore what the nodes do not need, or copy the folder "
                "yourself, once, and name it: NodeConfig(workdir=...), or miniray run --workdir"
            )

    def nbytes_of(self, paths: Iterable[str]) -> int:
        """Return how many bytes some of the files have."""
        return sum(self.files[path][0] for path in paths)

    def send(self, paths: list[str], carrier: Carrier, deadline: float) -> None:
        """Send some of the files, as a compressed tar in chunks; what is gone meanwhile is not."""
        raw = _Chunks(carrier, deadline)
        chunks = io.BufferedWriter(raw, CHUNK_BYTES)
        with gzip.GzipFile(fileobj=chunks, mode="wb", compresslevel=1, mtime=0) as packed:
            with tarfile.open(fileobj=packed, mode="w|") as archive:
                for path in paths:
                    if not raw.is_taken:
                        break
                    self._add(archive, path)
        chunks.flush()
        carrier.send(b"0\n", deadline)

    def _add(self, archive: tarfile.TarFile, path: str) -> None:
        _, changed_ns, mode, link = self.files[path]
        member = tarfile.TarInfo(path)
        member.mode, member.mtime = mode & 0o777, changed_ns / 1e9
        if link is not None:
            member.type, member.linkname = tarfile.SYMTYPE, link
            archive.addfile(member)
            return
        with contextlib.suppress(FileNotFoundError), open(self.path / path, "rb") as file:
            member.size = os.fstat(file.fileno()).st_size
            archive.addfile(member, file)


class _Chunks(io.RawIOBase):
    """A file of which a carrier sends each piece that is written, with its length before it."""

    def __init__(self, carrier: Carrier, deadline: float) -> None:
        self._carrier, self._deadline = carrier, deadline
        self.is_taken = True

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        piece = bytes(data)
        self.is_taken = self._carrier.send(b"%d\n" % len(piece) + piece, self._deadline)
        return len(piece)


def _list(folder: Path) -> Iterator[str]:
    """Yield the paths, relative to a folder, of the files and links that go along."""
    listed = files_of_copy(folder) or _ask_git(folder) or list(_walk(folder))
    environments = {os.path.dirname(path) for path in listed if path.endswith("pyvenv.cfg")}
    for path in listed:
        above = [path, *(parent.as_posix() for parent in Path(path).parents)]
        if LEFT_OUT.isdisjoint(path.split("/")) and environments.isdisjoint(above):
            whole = folder / path
            if whole.is_dir() and not whole.is_symlink():  # a submodule, or somebody's clone
                yield from (f"{path.rstrip('/')}/{inner}" for inner in _list(whole))
            else:
                yield path


def _ask_git(folder: Path) -> list[str]:
    """Return what git knows of or does not ignore; [] if the folder is none of git's.

    A folder that git ignores as a whole is none of its either.
    """
    words = ["git", "-C", str(folder), "ls-files", "-co", "--exclude-standard", "-z"]
    try:
        with inherited.lock:  # a child forked meanwhile would keep the pipes open
            said = subprocess.run(words, capture_output=True, env={**os.environ, "LC_ALL": "C"})
    except FileNotFoundError:
        return []
    if said.returncode == 0:
        return [os.fsdecode(path) for path in said.stdout.split(b"\0") if path]
    text = said.stderr.decode(errors="replace").strip()
    if "not a git repository" in text:
        return []
    raise ClusterError(f"cannot copy {folder} to the nodes: git does not list it: {text}")


def _walk(folder: Path) -> Iterator[str]:
    for where, folders, files in os.walk(folder):
        inner = Path(where).relative_to(folder)
        links = [name for name in folders if os.path.islink(os.path.join(where, name))]
        if "pyvenv.cfg" in files:
            folders[:] = []
            continue
        folders[:] = [name for name in folders if name not in LEFT_OUT]
        yield from ((inner / name).as_posix() for name in (*files, *links))
