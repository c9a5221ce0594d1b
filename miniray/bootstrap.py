"""Run on a node before anything else: read settings and code from stdin, then serve.

This file's source is the first thing that the coordinator sends, so it may import nothing but the
standard library, and must be understood by a Python that is too old for the rest.
"""

import importlib.abc
import importlib.util
import json
import sys


class StreamedCode(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Import modules from the sources {name: [file, is_package, text]} that came over stdin."""

    def __init__(self, sources):  # type: ignore[no-untyped-def]
        self.sources = sources

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        if name not in self.sources:
            return None
        file, is_package, _ = self.sources[name]
        spec = importlib.util.spec_from_loader(name, self, origin=file, is_package=is_package)
        if spec is not None:
            spec.has_location = True
        return spec

    def exec_module(self, module):  # type: ignore[no-untyped-def]
        file, _, text = self.sources[module.__name__]
        exec(compile(text, file, "exec"), module.__dict__)

    def get_source(self, name):  # type: ignore[no-untyped-def]
        return self.sources[name][2]


def main():  # type: ignore[no-untyped-def]
    """Serve as a node."""
    stream = sys.stdin.buffer
    settings = json.loads(stream.read(int(stream.readline())).decode())
    if sys.version_info < (3, 11):  # noqa: UP036  # this file alone meets an older Python
        problem = "python there is %s, MiniRay needs 3.11; set NodeConfig(python=...)"
        report = {"error": problem % sys.version.split()[0]}
        print(settings["marker"] + json.dumps(report))
        sys.exit(1)
    finder = StreamedCode(settings["sources"])  # type: ignore[no-untyped-call]
    sys.meta_path.insert(0, finder)
    from miniray.worker_server import serve_node

    sys.exit(serve_node(settings))


if __name__ == "__main__":
    main()  # type: ignore[no-untyped-call]
