"""The `miniray` command: a demo, a server and its status."""

import argparse
from collections.abc import Sequence

from miniray import __version__
from miniray.cli import attach, completion, demo, outer_rank, record, run, serve, status
from miniray.cli.common import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="miniray", description="Simple distributed workers: fork, TCP, and nothing else."
    )
    parser.add_argument("--version", action="version", version=f"miniray {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, module, help_text in (
        ("run", run, "run a torchrun-style script on many machines, or on many ranks here"),
        ("run-rank", outer_rank, "be one rank of a job that torchrun, srun or Kubernetes starts"),
        ("attach", attach, "see a run that was detached, up to its end; or end it"),
        ("demo", demo, "train a small GPT with FSDP on 2 nodes x 4 fake GPUs"),
        ("serve", serve, "start a worker server on this machine"),
        ("status", status, "list a server's workers and how each ended"),
        ("record", record, "run a script, and record what its channels do"),
        ("completion", completion, "print a script for your shell that completes all this"),
    ):
        command = commands.add_parser(name, help=help_text, description=module.__doc__)
        module.add_options(command)
        command.set_defaults(run=module.run, parser=parser)
    options = parser.parse_args(argv)
    return run_command(options.run, options)
