"""Look at every node before a run does: say what is well, what is not, and what to do about it.

It opens the sessions that a run would open, and starts nothing else. After ten seconds at most it
is done, whatever is broken.
"""

import argparse
import contextlib
import importlib.metadata
import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent import futures
from importlib.metadata import packages_distributions

from miniray.cli.common import ERASE, port_number, repeating
from miniray.cli.doctor_checks import judge
from miniray.cli.doctor_findings import Findings, Wanted
from miniray.cli.doctor_report import as_json, as_text
from miniray.cli.doctor_session import Limits
from miniray.cli.doctor_visit import Meeting, Visit
from miniray.cli.run import USAGE_ERROR, Ended, add_how, add_where, ended_by_signals
from miniray.cli.run_plan import find_hosts, make_nodes
from miniray.node import PYTHON_MIN
from miniray.node_config import NodeConfig
from miniray.nodes import choose_label

TICK_S = 0.1
LIMIT_S, LIMIT_S_MIN = 10.0, 2.0

EXAMPLES = """\
examples:
  miniray doctor node1:4,node2:4               before miniray run -H node1:4,node2:4
  miniray doctor --hostfile hosts --python ~/venv/bin/python
  miniray doctor node1,node2 --need transformers --port 29500
  miniray doctor node1,node2 --json            for a script

Give it the options that you give to miniray run. The exit status is 1 if
anything is wrong, and 0 if not; a note is no harm to most runs.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("named", nargs="*", metavar="HOST:N,...", help="the nodes: as -H")
    add_where(parser)
    how = parser.add_argument_group("how")
    add_how(how)
    needs = parser.add_argument_group("what the run needs")
    needs.add_argument(
        "--need",
        action="append",
        default=[],
        metavar="MODULE",
        help="a module that has to be there, besides torch; may be given more than once",
    )
    needs.add_argument(
        "--port", type=port_number, default=0, help="a port that has to be free and reachable"
    )
    shown = parser.add_argument_group("what you see")
    shown.add_argument("-q", "--quiet", action="store_true", help="only what is wrong")
    shown.add_argument("--json", action="store_true", help="all of it, for a program")
    shown.add_argument(
        "--limit", type=float, default=LIMIT_S, metavar="SECONDS", help="be done by then (10)"
    )


def run(options: argparse.Namespace) -> int:
    """Look at all nodes at the same time; return 1 if anything is wrong."""
    try:
        nodes, needed = find_nodes(options), find_needed(options.need)
        if not LIMIT_S_MIN <= options.limit < math.inf:
            raise ValueError(f"--limit is a number from {LIMIT_S_MIN:.0f} up, not {options.limit}")
    except (ValueError, OSError) as error:
        print(f"miniray doctor: {error}", file=sys.stderr)
        return USAGE_ERROR
    wanted = Wanted(
        modules=tuple(dict.fromkeys(["torch", *needed])),
        needed=needed,
        port=options.port,
        tunnel=options.tunnel,
        fake_gpus=options.fake_gpus,
        limit_s=options.limit,
    )
    try:
        with ended_by_signals():
            findings = visit(nodes, wanted, options.workdir)
    except Ended as error:
        print(f"miniray doctor: ended by signal {error.number}", file=sys.stderr)
        return 128 + error.number
    checks = judge(findings, look_here(wanted), wanted)
    if options.json:
        print(as_json(findings, checks))
    else:
        columns = shutil.get_terminal_size((100, 24)).columns
        text = as_text(findings, checks, columns=columns, stream=sys.stdout, is_brief=options.quiet)
        print(text)
    return int(any(one.state == "wrong" for own in checks for one in own))


def find_nodes(options: argparse.Namespace) -> list[NodeConfig]:
    """Return the nodes that the options name; raises ValueError with what to write instead."""
    if options.named:
        if options.hosts is not None:
            raise ValueError("the hosts are named twice, the second time by -H; name them once")
        options.hosts = ",".join(options.named)
    if options.per_node is None and (options.hosts or options.hostfile):
        options.per_node = 1  # it is not about how many there are
    return make_nodes(find_hosts(options), options, options.workdir, [])


def find_needed(given: Sequence[str]) -> list[str]:
    """Return the modules that are asked for; raises ValueError for what cannot be imported."""
    needed = [name for part in given for name in part.split(",") if name]
    for name in needed:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"--need names a module, as import does, not {name!r}")
    return needed


def look_here(wanted: Wanted) -> Findings:
    """Return which versions this machine has of the modules, and what pip calls their packages."""
    here, found = Findings(NodeConfig.local(host="here"), "here"), {}
    for name in wanted.modules:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            package = package_of(name)
            found[name] = {"version": importlib.metadata.version(package), "package": package}
    here.facts["modules"] = found
    return here


def package_of(module: str) -> str:
    """Return the package that a module has come with, which may have another name.

    Raises PackageNotFoundError if it has come with none, or if several have a part of it.
    """
    name = module.partition(".")[0]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version(name)
        return name
    # All files of all packages are looked through for it.
    packages = [] if name in sys.stdlib_module_names else packages_distributions().get(name, [])
    if len(set(packages)) != 1:
        raise importlib.metadata.PackageNotFoundError(name)
    return packages[0]


def visit(nodes: Sequence[NodeConfig], wanted: Wanted, workdir: str | None) -> list[Findings]:
    """Visit all nodes at the same time, and show meanwhile which are not done."""
    limits = Limits(wanted.limit_s)
    all_findings = [
        Findings(config, name) for config, name in zip(nodes, _names(nodes), strict=True)
    ]
    meeting = Meeting([one.name for one in all_findings])
    visits = [
        Visit(findings, settings_for(findings.config, wanted, limits, workdir), limits, meeting)
        for findings in all_findings
    ]
    with _progress(visits, limits), futures.ThreadPoolExecutor(len(visits)) as pool:
        try:
            running = [pool.submit(one.run) for one in visits]
            # The kernel may give a signal to any thread, and Python hears it in this one alone,
            # which a lock does not wake for it.
            while futures.wait(running, TICK_S).not_done:
                pass
            for done in running:
                done.result()
        except BaseException:
            limits.is_over = True  # each visit notices, and ends its session
            raise
    return all_findings


def _names(nodes: Sequence[NodeConfig]) -> list[str]:
    """Return what a cluster calls each node."""
    return [choose_label(index, nodes, set()) for index in range(len(nodes))]


def settings_for(
    config: NodeConfig, wanted: Wanted, limits: Limits, workdir: str | None
) -> dict[str, object]:
    """Return what the probe on a node gets to know."""
    places = [
        {"name": "temporary files", "path": "/tmp", "variable": "TMPDIR", "below": ""},
        {"name": "shared memory", "path": "/dev/shm", "variable": "", "below": ""},
    ]
    if workdir is not None:
        one = {"name": "the folder to run in", "path": workdir, "variable": "", "below": ""}
        places.append(one)
    elif not config.is_local():
        cache = {"path": "~/.cache", "variable": "XDG_CACHE_HOME", "below": "miniray/sync"}
        places.append({"name": "your folder's copy", **cache})
    return {
        "environment": dict(config.env),
        "port": wanted.port,
        "modules": list(wanted.modules),
        "python_min": list(PYTHON_MIN),
        "python": sys.executable,  # on machines that share their files it is there, too
        "places": places,
    }


@contextlib.contextmanager
def _progress(visits: Sequence[Visit], limits: Limits) -> Iterator[None]:
    """Say in a terminal which nodes are not done, and what they do."""
    if not sys.stderr.isatty():
        yield
        return

    def tick() -> None:
        seconds = limits.total_s - limits.left(limits.total_s)
        columns = shutil.get_terminal_size().columns
        busy = ", ".join(f"{one.findings.name} ({one.doing})" for one in visits if one.doing)
        text = f"miniray doctor: {seconds:.0f} s: {busy}"
        print(f"{ERASE}{text[: columns - 1]}", end="", file=sys.stderr, flush=True)

    try:
        with repeating(tick, TICK_S):
            yield
    finally:
        print(ERASE, end="", file=sys.stderr, flush=True)
