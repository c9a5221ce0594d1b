"""Which code goes along to a node."""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

SOURCES_BYTES_MAX = 16 * 1024 * 1024


def collect_sources(work_fn: str) -> dict[str, tuple[str, bool, str]]:
    """Return {module: (file, is_package, source)} of MiniRay and of the module of `work_fn`.

    A module in a package brings its package along, a lone one the modules beside it. Installed
    modules and Python's own are left to the node. Raises ValueError for more than 16 MiB.
    """
    top, dot, _ = work_fn.partition(".")
    if not dot or top == "__main__":
        raise ValueError(f"work_fn must be a module's MODULE.FUNCTION, got {work_fn!r}")
    sources = dict(_package_sources("miniray", Path(__file__).parent))
    spec = importlib.util.find_spec(top)
    if top != "miniray" and spec is not None and _is_users_own(top, spec):
        if spec.submodule_search_locations:
            sources |= _package_sources(top, Path(next(iter(spec.submodule_search_locations))))
        elif spec.origin:
            for file in Path(spec.origin).parent.glob("*.py"):
                if file.stem not in sys.stdlib_module_names and file.stem not in sources:
                    sources[file.stem] = (str(file), False, file.read_text())
    total = sum(len(text) for _, _, text in sources.values())
    if total > SOURCES_BYTES_MAX:
        raise ValueError(
            f"the code beside {work_fn} is {total} bytes, the limit is {SOURCES_BYTES_MAX}; put "
            "it in a package of its own, or install it on the nodes"
        )
    return sources


def _is_users_own(name: str, spec: importlib.machinery.ModuleSpec) -> bool:
    where = spec.origin or next(iter(spec.submodule_search_locations or []), "")
    installed = ("site-packages" in where) or ("dist-packages" in where)
    return name not in sys.stdlib_module_names and not installed


def _package_sources(name: str, folder: Path) -> dict[str, tuple[str, bool, str]]:
    sources = {name: (str(folder), True, "")}
    for file in sorted(folder.rglob("*.py")):
        parts = [name, *file.relative_to(folder).with_suffix("").parts]
        if not all(part.isidentifier() for part in parts):
            continue
        if parts[-1] == "__init__":
            sources[".".join(parts[:-1])] = (str(file), True, file.read_text())
            continue
        for end in range(1, len(parts)):  # folders without an __init__.py are packages too
            sources.setdefault(".".join(parts[:end]), (str(file.parent), True, ""))
        sources[".".join(parts)] = (str(file), False, file.read_text())
    return sources
