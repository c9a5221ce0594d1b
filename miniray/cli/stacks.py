"""Say where every rank is, however it hangs, and who of them is behind."""

import argparse
import sys

from miniray.cli.status import add_server, find_clusters

EXAMPLES = """\
examples:
  miniray stacks                    all clusters that run on this machine
  miniray stacks localhost 10000    a server that was started by hand

Ask from another terminal: it works while the coordinator waits, and while a
rank loops, sleeps, is in a collective, or holds Python's lock in C. A stopped
rank is woken to say where it is, and gets no further; --no-wake leaves it be.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    add_server(parser)
    parser.add_argument("--no-wake", action="store_true", help="leave stopped ranks alone")


def run(options: argparse.Namespace) -> int:
    """Print who is behind, and the stacks, of each cluster."""
    from miniray.looking.clusters import describe
    from miniray.looking.look import look_at

    clusters = find_clusters(options)
    if not clusters:
        print("miniray stacks: no cluster runs on this machine", file=sys.stderr)
        return 1
    for number, cluster in enumerate(clusters):
        look = look_at(cluster, wake=not options.no_wake)
        if options.host is not None and (problem := "".join(one.problem for one in look.ranks)):
            print(f"miniray stacks: {problem}", file=sys.stderr)
            return 1
        print("\n" * bool(number) + describe(cluster))
        print(look)
    return 0
