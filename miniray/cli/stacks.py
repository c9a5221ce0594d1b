"""Say where every rank is, however it hangs, and who of them is behind."""

import argparse
from collections.abc import Iterator
from typing import Any

from miniray.cli import afar
from miniray.cli.status import add_server, find_clusters

EXAMPLES = """\
examples:
  miniray stacks                    all clusters that run on this machine
  miniray stacks localhost 10000    a server that was started by hand
  miniray stacks -H node1           all that node1 coordinates, such as a run
                                    that was detached to it

Ask from another terminal: it works while the coordinator waits, and while a
rank loops, sleeps, is in a collective, or holds Python's lock in C. A stopped
rank is woken to say where it is, and gets no further; --no-wake leaves it be.
Ranks of run-rank and of Ray have no server to ask: py-spy dump --pid does.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    add_server(parser)
    parser.add_argument("--no-wake", action="store_true", help="leave stopped ranks alone")


def run(options: argparse.Namespace) -> int:
    """Print who is behind, and the stacks, of each cluster."""
    return afar.show("stacks", options)


def answer(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield each cluster as it is seen, and the exit status."""
    from miniray.looking.clusters import describe
    from miniray.looking.look import look_at

    clusters = find_clusters(options)
    if not clusters:
        yield {"say": afar.nobody("stacks", options), "status": 1}
        return
    for number, cluster in enumerate(clusters):
        look = look_at(cluster, wake=not options.no_wake)
        if options.host is not None and (problem := "".join(one.problem for one in look.ranks)):
            yield {"say": problem, "status": 1}
            return
        yield {"text": "\n" * bool(number) + f"{describe(cluster)}\n{look}"}
    yield {"status": 0}
