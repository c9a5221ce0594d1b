"""Watch the job die, or live: python -m stages.story dies 1"""

import argparse
import importlib
import os
import sys

from stages import torch_here

sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # it is a text stream


def main() -> None:
    """Run one of the stories."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.story", description="Watch the job of a chapter die, or live."
    )
    commands = parser.add_subparsers(dest="how", metavar="HOW", required=True)
    for how, what in (
        ("dies", "see it die as at the beginning of a chapter"),
        ("survives", "see it survive that, at the chapter's end"),
    ):
        command = commands.add_parser(how, help=what)
        command.add_argument("chapter", type=int, choices=range(1, 6))
    commands.add_parser("everything", help="see it survive all of it in one run")
    arguments = parser.parse_args()
    needs_torch = arguments.how == "everything" or arguments.chapter == 5
    if needs_torch and (remedy := torch_here.remedy()):
        parser.error(f"this one needs torch: {remedy}")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # no remarks on how hosts are named
    if arguments.how == "everything":
        importlib.import_module("stages.story.everything").run()
        return
    chapter = importlib.import_module(f"stages.story.chapter{arguments.chapter}")
    getattr(chapter, arguments.how)()


if __name__ == "__main__":
    main()
