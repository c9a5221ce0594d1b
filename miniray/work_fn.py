"""A function, found by its name, and the name by which another process finds it."""

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

AnyFunction = Callable[..., Any]


def name_of(function: str | AnyFunction) -> str:
    """Return the name, "package.module.function", by which a process elsewhere finds a function.

    One of the running script, `__main__`, is named after the script's file. A name is its own.
    Raises TypeError, with what to do, for a function that nobody else can find.
    """
    if isinstance(function, str):
        return function
    module, name = (getattr(function, field, None) for field in ("__module__", "__qualname__"))
    shown = f"{module}.{name}" if module and name else repr(function)
    if not callable(function) or not module or not name:
        raise _cannot_name(shown, "it has no name", "write a function that calls it")
    if "<lambda>" in name:
        raise _cannot_name(shown, "a lambda has no name", "give it one with def")
    if "<locals>" in name:
        why = "it is made anew whenever the function around it runs"
        raise _cannot_name(shown, why, "move it out, and pass what it needs as arguments")
    if "." in name:
        why = "a method goes with an object, which stays here"
        raise _cannot_name(shown, why, "write a function that makes the object and calls it")
    if getattr(sys.modules.get(module), name, None) is not function:
        why = f"{module} has something else of that name, or nothing"
        raise _cannot_name(shown, why, "pass the one that is there")
    return f"{_name_of_main(shown) if module == '__main__' else module}.{name}"


def _cannot_name(function: str, why: str, remedy: str) -> TypeError:
    rule = "functions go by name, so it has to be one at the top of a module or cell"
    return TypeError(f"cannot call {function} in another process: {why}; {rule}: {remedy}")


def _name_of_main(function: str) -> str:
    """Return the name under which the running script can be imported, if it is one."""
    name, file = main_module()
    if name is None:
        return "__main__"  # a notebook: what is in its cells goes as text
    if file is None:  # python -m: Python has found it by that name itself
        return name
    found = importlib.util.find_spec(name) if "." not in name else None
    if found is None or found.origin is None or Path(found.origin).resolve() != file.resolve():
        other = f"; that is {found.origin}" if found else ""
        why = f"its script {file} cannot be imported as {name!r}{other}"
        raise _cannot_name(function, why, "rename the script, or move the function to a module")
    return name


def main_module() -> tuple[str | None, Path | None]:
    """Return the running script's name as a module, if it has one, and its file, if it is one."""
    main = sys.modules["__main__"]
    if (spec := getattr(main, "__spec__", None)) is not None:
        return (None if spec.name == "__main__" else spec.name), None
    file = getattr(main, "__file__", None)
    if file is None or not Path(file).is_file():
        return None, None
    return Path(file).stem, Path(file)


def load_work_fn(name: str) -> AnyFunction:
    """Import and return the function called "package.module.function".

    The running script is not imported a second time. Raises ValueError if that is no such name,
    and ImportError or TypeError if it leads nowhere.
    """
    module_name, _, function = name.rpartition(".")
    if not module_name:
        raise ValueError(f"work_fn must be MODULE.FUNCTION, got {name!r}")
    is_main = module_name == main_module()[0]
    module = sys.modules["__main__"] if is_main else importlib.import_module(module_name)
    work_fn = getattr(module, function, None)
    if work_fn is None:
        close = difflib.get_close_matches(function, dir(module), 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        where = f"module {module_name} ({getattr(module, '__file__', 'built in')})"
        raise ImportError(f"{where} has no function {function!r}{hint}")
    if not callable(work_fn):
        raise TypeError(f"{name} is a {type(work_fn).__name__}, not a function")
    found: AnyFunction = work_fn
    return found
