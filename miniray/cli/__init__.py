"""The `miniray` command: a demo, a server and its status."""

import argparse
import difflib
import importlib
import sys
from collections.abc import Sequence

from miniray import __version__
from miniray.cli.common import run_command

CLOSE = 0.8  # of 1: --locl is as close to --local, and --steps is no slip for --hosts
COMMANDS = {
    "run": "run a torchrun-style script on many machines, or on many ranks here",
    "run-rank": "be one rank of a job that torchrun, srun or Kubernetes starts",
    "attach": "see a run that was detached, up to its end; or end it",
    "doctor": "say of each node whether a run would work there, and if not, what to do",
    "demo": "train a small GPT with FSDP on 2 nodes x 4 fake GPUs",
    "serve": "start a worker server on this machine",
    "stacks": "say where every rank is, and who is behind",
    "top": "show all ranks, again and again: state, CPU, memory, GPU",
    "status": "list the workers that run here, or a server's, and how each ended",
    "record": "run a script, and record what its channels do",
    "completion": "print a script for your shell that completes all this",
}
NEEDS_ALL = ("completion",)
MODULES = {"run-rank": "outer_rank"}  # the others are named as their commands are


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; return its exit status."""

    def run(_: argparse.Namespace) -> int:
        options = read(argv)
        status: int = options.run(options)
        return status

    # Reading is a part of it: it imports the commands, and there is time for a Ctrl-C.
    return run_command(run, argparse.Namespace())


def read(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read a command line; whose options are wrong sees that command's usage."""
    parser = argparse.ArgumentParser(
        prog="miniray", description="Simple distributed workers: fork, TCP, and nothing else."
    )
    parser.add_argument("--version", action="version", version=f"miniray {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    words = sys.argv[1:] if argv is None else argv
    named = [one for one in words[:1] if one in COMMANDS and one not in NEEDS_ALL]
    for name in named or COMMANDS:  # importing all takes longer than what most of them do
        module = importlib.import_module(f"miniray.cli.{MODULES.get(name, name)}")
        command = commands.add_parser(name, help=COMMANDS[name], description=module.__doc__)
        module.add_options(command)
        command.set_defaults(run=module.run, parser=parser, command=command)
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        options.command.error(describe(unknown, options))
    return options


def describe(unknown: Sequence[str], options: argparse.Namespace) -> str:
    """Say which arguments a command does not know, and what was probably meant."""
    text = f"{options.command.prog} has no {' '.join(unknown)}"
    option = unknown[0].partition("=")[0]
    commands = importlib.import_module("miniray.cli.completion").list_commands(options.parser)
    (ours,) = [one for one in commands if one.name and options.command.prog.endswith(one.name)]
    known = [name for option in ours.options for name in option.names]
    if close := difflib.get_close_matches(option, known, 1, CLOSE):
        return f"{text}; did you mean {close[0]}?"
    if hasattr(options, "arguments") and option.startswith("-"):
        return f"{text}; the script's own options come after it: SCRIPT {option}"
    return text
