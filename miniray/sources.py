"""Which code goes along to a node: MiniRay's own, and what the work function's module needs.

It travels as a zip, which the node unpacks into a private folder on its path. From then on it is
Python itself that finds modules, data and lines of source there, in further processes, too.
"""

import contextlib
import importlib
import importlib.util
import io
import os
import pkgutil
import re
import sys
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

SOURCES_BYTES_MAX = 16 * 1024 * 1024
FOLDER_ENTRIES_MAX = 1000

_IMPORT = re.compile(  # but not a docstring's line "from data to weights"
    rb"^[ \t]*(?:from[ \t]+(\w+)[\w.]*[\s\\]+import\b|import[ \t]+([\w \t.,]+))", re.MULTILINE
)


def collect_sources(work_fn: str) -> bytes:
    """Return a zip of MiniRay and of the code around `work_fn`, which is "module.function"."""
    return pack(find_code(work_fn))


def find_code(work_fn: str, text: str = "") -> dict[str, Path]:
    """Return the files around `work_fn`, which is "module.function", by their names in a zip.

    That is the module's package, or for a lone module all modules and packages beside it; then what
    any of them imports that is not installed, wherever it is found here. Installed modules and
    Python's own are left to the node. Raises ValueError for code of more than 16 MiB. The packages'
    data goes along in what room is left, the smallest files first, and a warning names what has to
    stay. Data in a folder of more than 1000 files, or behind a link to a folder, always stays.
    """
    top, dot, _ = work_fn.partition(".")
    if not dot or (top == "__main__" and not text):
        raise ValueError(f"work_fn must be a module's MODULE.FUNCTION, got {work_fn!r}")
    module, _, function = work_fn.rpartition(".")
    if top in sys.stdlib_module_names:
        if _find(top) or not hasattr(importlib.import_module(module), function):
            problem = f"{work_fn}: {top} is a module of Python's own"
            raise ValueError(f"{problem}; give yours another name")
        return {}
    files = dict[str, Path]()
    wanted, done = (
        {top, *_imports(text.encode())},
        {"miniray", "__main__", *sys.stdlib_module_names},
    )
    if any(place.is_file() for place in _find(top)):
        beside = {str(place.parent) for place in _find(top)}
        wanted |= {module.name for module in pkgutil.iter_modules(beside)}
    while new := wanted - done:
        done |= new
        for places in map(_find, new):
            for place in reversed(places):  # of a namespace package the first folder wins
                found = dict(_walk(place, place.name))
                files |= found
                wanted.update(*(_imports(_read(file)) for file in found.values()))
    return {path: files[path] for path in _choose(work_fn, files)}


def list_modules(code: Iterable[str]) -> list[str]:
    """Return the names of the modules that files are, by their names in a zip."""
    paths = (path for path in code if path.endswith(".py"))
    names = (path.removesuffix("/__init__.py").removesuffix(".py") for path in paths)
    return [name.replace("/", ".") for name in names]


def _find(name: str) -> list[Path]:
    """Return where a top-level module is that is not installed: its file, or its folders."""
    with contextlib.suppress(ValueError):  # a module that somebody made by hand has no spec
        if spec := importlib.util.find_spec(name):
            places = map(Path, spec.submodule_search_locations or [str(spec.origin)])
            return [one for one in places if one.exists() and not _is_installed(one)]
    return []


def _is_installed(place: Path) -> bool:
    packages = {"site-packages", "dist-packages"}
    return not packages.isdisjoint(place.parts) or place.is_relative_to(Path(os.__file__).parent)


def _walk(entry: Path, name: str, above: tuple[Path, ...] = ()) -> Iterator[tuple[str, Path]]:
    """Yield (path in the zip, file) for a file, or for all that matters in a folder."""
    with contextlib.suppress(OSError):  # unreadable, or just gone
        if entry.is_file():
            yield name, entry
        if not entry.is_dir() or entry.resolve() in above or (entry / "pyvenv.cfg").exists():
            return  # a dangling link, a link to a folder above, a virtual environment
        entries = sorted(entry.iterdir())
        if len(entries) > FOLDER_ENTRIES_MAX or (above and entry.is_symlink()):
            entries = [one for one in entries if one.suffix == ".py"]  # else it is a data set
        for one in entries:
            # What cannot be printed has no name in another encoding.
            if not one.name.startswith((".", "__pycache__")) and one.name.isprintable():
                yield from _walk(one, f"{name}/{one.name}", (*above, entry.resolve()))


def _read(file: Path) -> bytes:
    with contextlib.suppress(OSError):
        return file.read_bytes() if file.suffix == ".py" else b""
    return b""


def _imports(code: bytes) -> Iterator[str]:
    """Yield the top-level modules that some code seems to import, whatever its encoding is."""
    for one, many in _IMPORT.findall(code):
        for name in re.findall(rb"(?:^|,)[ \t]*(\w+)", one or many):
            yield name.decode()


def _choose(work_fn: str, files: dict[str, Path]) -> list[str]:
    """Return the paths of all code, or raise ValueError, and of as much data as there is room."""
    nbytes = {path: file.stat().st_size for path, file in files.items() if file.exists()}
    chosen = sorted(nbytes, key=lambda path: (not path.endswith(".py"), nbytes[path], path))
    total, behind = sum(nbytes.values()), list[str]()
    while total > SOURCES_BYTES_MAX:
        behind.append(chosen.pop())
        total -= nbytes[behind[-1]]
    if behind:
        code = [path for path in behind if path.endswith(".py")]
        largest = (code or behind)[0]
        problem = (
            f"more than {SOURCES_BYTES_MAX >> 20} MiB would go along with {work_fn}; the largest "
            f"file is {largest} with {nbytes[largest]} bytes"
        )
        if code:
            raise ValueError(f"{problem}; move it elsewhere, or install it on the nodes")
        warnings.warn(f"{problem}; {len(behind)} files of data stay here", stacklevel=5)
    return chosen


def pack(code: Mapping[str, Path]) -> bytes:
    """Return a zip of MiniRay and of some code, with equal bytes for equal files."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path, file in {**dict(_walk(Path(__file__).parent, "miniray")), **code}.items():
            with contextlib.suppress(OSError):  # unreadable: nobody can import it here either
                archive.writestr(zipfile.ZipInfo(path), file.read_bytes(), zipfile.ZIP_DEFLATED)
        for app in (one for one in Path(__file__).parents if one.is_file()):
            with zipfile.ZipFile(app) as zipapp:  # all of it: MiniRay is there, too
                for info in zipapp.infolist():
                    archive.writestr(info, zipapp.read(info))
    return packed.getvalue()
