"""Fuzz: python -m tests.fuzz after --seconds 60. What it finds new is put into tests/fuzz/corpus.

A crash leaves its input beside; `python -m tests.fuzz after FILE` runs that alone.
"""

import argparse
import importlib.util
import os
import sys
import tempfile
from pathlib import Path

CORPUS = Path(__file__).with_name("corpus")
RESULTS = Path(__file__).with_name("results.json")
INPUT_BYTES_MAX = 4096
MEMORY_MIB_MAX = 1024


def main() -> int:
    """Run inputs, or have atheris look for new ones."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=("before", "after"))
    parser.add_argument("inputs", nargs="*", type=Path, help="run these alone")
    parser.add_argument("--seconds", type=int, default=60, help="how long, %(default)s")
    parser.add_argument("--runs", type=int, default=-1, help="how many inputs, instead")
    parser.add_argument(
        "--bytes", type=int, default=INPUT_BYTES_MAX, help="of an input at most, %(default)s"
    )
    parser.add_argument("--keep", action="store_true", help="keep what covers more, in the corpus")
    parser.add_argument("--write", action="store_true", help=f"with --runs: into {RESULTS.name}")
    options = parser.parse_args()
    if options.inputs:
        from tests.fuzz.costs import Costs
        from tests.fuzz.targets import TARGETS

        costs = Costs()
        for path in options.inputs:
            costs.take(TARGETS[options.target], path.read_bytes())
        print(costs)
        return 0
    if importlib.util.find_spec("atheris") is None:
        print("python -m tests.fuzz: it needs atheris: pip install atheris", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="fuzz-") as work:
        if (child := os.fork()) == 0:
            _fuzz(options, Path(work))
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _fuzz(options: argparse.Namespace, work: Path) -> None:
    """Run libFuzzer, which leaves this process when it is done."""
    import atheris

    with atheris.instrument_imports(include=["miniray", "json"]):
        from tests.fuzz.costs import Costs
        from tests.fuzz.targets import TARGETS, WORDS
    costs, target = Costs(), TARGETS[options.target]

    def run(data: bytes) -> None:
        costs.take(target, data)
        if options.write and costs.inputs == options.runs:  # its last act
            costs.write(RESULTS, options.target)

    known, new, words = CORPUS / options.target, work / "new", work / "words"
    new.mkdir()
    words.write_text("".join(f'"{word}"\n' for word in WORDS))
    folders = [known] if options.keep else [new, known]
    limit = f"-max_total_time={options.seconds}" if options.runs < 0 else f"-runs={options.runs}"
    arguments = [
        *(limit, f"-max_len={options.bytes}", f"-rss_limit_mb={MEMORY_MIB_MAX}"),
        *(f"-dict={words}", f"-artifact_prefix={Path.cwd()}/"),
        *("-timeout=10", "-print_final_stats=1"),
    ]
    atheris.Setup([sys.argv[0], *arguments, *map(str, folders)], run)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
