"""Listen on a port, and fork a worker that runs a function for every client that holds the key."""

import argparse
import gc
import importlib
import ipaddress
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from miniray.cli.common import port_number, run_command

if TYPE_CHECKING:
    from miniray.worker_server import WorkerServer

EXAMPLES = """\
examples:
  miniray serve --work-fn my_module.work_fn              on a free port, which it prints
  miniray serve --work-fn my_module.work_fn --port 10000
  MINIRAY_KEY_FILE=team.key miniray serve --work-fn my_module.work_fn --host 10.0.0.5

The client is `RemoteWorker("localhost", 10000)`, with the same key. Ctrl-C ends the workers, too.
What goes over the network is encrypted only with --encrypt, and then clients say encrypt=True.
"""
IN_CLEAR = (
    "it takes only who holds the key, but what they send goes over the network in clear; "
    "to have it encrypted: --encrypt"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `python -m miniray.worker_server`; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m miniray.worker_server", description=__doc__)
    add_options(parser)
    return run_command(run, parser.parse_args(argv))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument(
        "--work-fn",
        required=True,
        metavar="MODULE.FUNCTION",
        help="what a worker runs, with its channel as the argument; this directory is searched too",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=port_number, default=0, help="0, the default: a free one")
    parser.add_argument(
        "--max-workers", type=int, default=64, metavar="N", help="refuse more (%(default)s)"
    )
    parser.add_argument(
        *("--encrypt", "--tls"),
        action="store_true",
        help="serve clients that encrypt, and no others",
    )


def run(options: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM."""
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        server = _make_server(options)
    except Exception as error:  # importing the work function's module may raise anything
        print(f"miniray serve: {_describe(error)}", file=sys.stderr)
        return 1
    key_file = os.environ.get("MINIRAY_KEY_FILE") or "~/.miniray/key"
    print(
        f"listening on {server.host}:{server.port} with the key in {Path(key_file).expanduser()}"
        f"{', for clients that encrypt' if options.encrypt else ''}",
        flush=True,
    )
    if not options.encrypt and is_open(server.host):
        print(f"miniray serve: {IN_CLEAR}", file=sys.stderr, flush=True)
    gc.freeze()  # a worker's collector would copy every page by looking at it
    server.serve_forever()
    print("stopped; no worker was left running", flush=True)
    return 0


def is_open(host: str) -> bool:
    """Return whether other machines may connect to what listens at an address."""
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:  # the path of a Unix socket
        return False


def _make_server(options: argparse.Namespace) -> "WorkerServer":
    # By name: run as `python -m miniray.worker_server`, that module is also __main__, and only
    # an import gives the one that everybody else sees.
    worker_server = importlib.import_module("miniray.worker_server")
    server: WorkerServer = worker_server.WorkerServer(
        options.work_fn,
        host=options.host,
        port=options.port,
        max_workers=options.max_workers,
        encrypt=options.encrypt,
    )
    return server


def _describe(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"{error}; it is looked for in {os.getcwd()} and where python looks"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if type(error) in (ValueError, TypeError, ImportError):
        return str(error)
    return f"{type(error).__name__}: {error}"
