"""The first code of ours on a node: take in MiniRay, the settings, the user's modules; start.

The coordinator sends it as one line, once it has seen that Python is there; `pack` says in which
form. The keeper sends the same to the server. It may import nothing but the standard library.
"""

import os
import sys

if __name__ == "__main__":
    # `python -c` looks for modules where it is started, and at home there may be a random.py.
    try:
        here = os.getcwd()
    except OSError:  # removed meanwhile
        here = ""
    sys.path[:] = [path for path in sys.path if path not in ("", here)]

import importlib.abc
import importlib.machinery
import importlib.util
import json
import signal
from typing import Any

SILENCE_MAX_S = 25


class StreamedCode(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Import modules from the sources {name: [file, is_package, text]} that came over stdin."""

    def __init__(self, sources: dict[str, tuple[str, bool, str]]) -> None:
        self.sources = sources

    def find_spec(
        self, name: str, path: Any = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self.sources:
            return None
        file, is_package, _ = self.sources[name]
        spec = importlib.util.spec_from_loader(name, self, origin=file, is_package=is_package)
        if spec is not None:
            spec.has_location = True
        return spec

    def exec_module(self, module: Any) -> None:
        file, _, text = self.sources[module.__name__]
        exec(compile(text, file, "exec"), module.__dict__)

    def get_source(self, name: str) -> str:
        return self.sources[name][2]


def pack(bootstrap: str, payload: bytes) -> bytes:
    """Return what a node reads from stdin: this file in one line, a length, the payload."""
    return f"exec({bootstrap!a})\n{len(payload)}\n".encode() + payload


def main() -> None:
    """Take in the payload; be the server if the command line says so, else the keeper."""
    payload = _read_payload()
    settings = json.loads(payload)
    sys.meta_path.insert(0, StreamedCode(settings["sources"]))
    from miniray import node_server

    if sys.argv[1:] == ["server"]:
        node_server.serve(settings)
    node_server.keep(settings, payload)


def _read_payload() -> bytes:
    # Nothing is read ahead: what follows is the lease.
    stdin: Any = sys.stdin.buffer.raw  # type: ignore[union-attr]
    payload = bytearray(int(stdin.readline()))
    have = 0
    while have < len(payload):
        signal.alarm(SILENCE_MAX_S)  # whose sender is lost does not stay
        have += stdin.readinto(memoryview(payload)[have:]) or sys.exit("its sender has gone")
    signal.alarm(0)
    return bytes(payload)


if __name__ == "__main__":
    main()
