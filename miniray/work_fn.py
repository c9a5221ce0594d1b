"""A work function, found by its name."""

import difflib
import importlib
from collections.abc import Callable
from typing import Any

from miniray.channel import Channel


def load_work_fn(name: str) -> Callable[[Channel], Any]:
    """Import and return the function called "package.module.function".

    Raises ValueError if that is no such name, and ImportError or TypeError if it leads nowhere.
    """
    module_name, _, function = name.rpartition(".")
    if not module_name:
        raise ValueError(f"work_fn must be MODULE.FUNCTION, got {name!r}")
    module = importlib.import_module(module_name)
    work_fn = getattr(module, function, None)
    if work_fn is None:
        close = difflib.get_close_matches(function, dir(module), 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        where = f"module {module_name} ({module.__file__})"
        raise ImportError(f"{where} has no function {function!r}{hint}")
    if not callable(work_fn):
        raise TypeError(f"{name} is a {type(work_fn).__name__}, not a function")
    found: Callable[[Channel], Any] = work_fn
    return found
