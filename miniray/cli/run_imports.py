"""What of torch a script will import, so that a node does it once, before it forks the ranks.

Nothing is imported or executed to find out: the script and the modules beside it are only read.
"""

import ast
import contextlib
from collections.abc import Iterator
from pathlib import Path

# What imports torch itself, whether or not a script that uses it does so, too.
ON_TORCH = {"accelerate", "deepspeed", "lightning", "peft", "pytorch_lightning", "transformers"}
ALWAYS = ("torch", "torch.distributed")
FILES_MAX = 1000


def find_torch_imports(script: Path, root: Path) -> list[str]:
    """Return the modules of torch that a script, or what it imports from below `root`, imports.

    Of a script that is not there nothing is known, but that most of them use torch.
    """
    if not script.is_file():
        return list(ALWAYS)
    found: set[str] = set()
    done: set[Path] = set()
    todo = [script]
    while todo and len(done) < FILES_MAX:
        file = todo.pop()
        done.add(file)
        for name in _imports(file):
            found.add(name)
            beside = root.joinpath(*name.split("."))
            for place in (beside.with_suffix(".py"), beside / "__init__.py"):
                if place not in done and place.is_file():
                    todo.append(place)
    tops = {name.partition(".")[0] for name in found}
    if "torch" not in tops and not tops & ON_TORCH:
        return []
    return sorted({*ALWAYS, *(name for name in found if name.partition(".")[0] == "torch")})


def _imports(file: Path) -> Iterator[str]:
    """Yield every module that a file names in an import; of a file that is none, nothing."""
    with contextlib.suppress(OSError, SyntaxError, ValueError):
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level:
                yield "torch"  # where that leads to is not followed; so it is taken for granted
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module
                # It may be a module as well: from torch.distributed import fsdp.
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
