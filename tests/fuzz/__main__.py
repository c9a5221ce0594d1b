"""Fuzz: python -m tests.fuzz after --seconds 60. What it finds new is put into tests/fuzz/corpus.

A crash leaves its input beside; `python -m tests.fuzz after FILE` runs that alone.
"""

import argparse
import sys
import tempfile
from pathlib import Path

CORPUS = Path(__file__).with_name("corpus")
INPUT_BYTES_MAX = 4096
MEMORY_MIB_MAX = 1024


def main() -> int:
    """Run libFuzzer, with atheris, which leaves this process when it is done."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=("before", "after"))
    parser.add_argument("inputs", nargs="*", type=Path, help="run these alone")
    parser.add_argument("--seconds", type=int, default=60, help="how long, %(default)s")
    parser.add_argument("--runs", type=int, default=-1, help="how many inputs, instead")
    parser.add_argument("--keep", action="store_true", help="keep what covers more, in the corpus")
    options = parser.parse_args()
    if options.inputs:
        from tests.fuzz.targets import TARGETS

        for path in options.inputs:
            print(f"{path}: {TARGETS[options.target](path.read_bytes())} frames")
        return 0
    try:
        import atheris
    except ImportError:
        print("python -m tests.fuzz: it needs atheris: pip install atheris", file=sys.stderr)
        return 2
    with atheris.instrument_imports(include=["miniray", "json"]):
        from tests.fuzz.targets import TARGETS
    known = CORPUS / options.target
    with tempfile.TemporaryDirectory(prefix="fuzz-") as new:
        folders = [str(known)] if options.keep else [new, str(known)]
        limit = (
            f"-max_total_time={options.seconds}" if options.runs < 0 else f"-runs={options.runs}"
        )
        arguments = [
            *(limit, f"-max_len={INPUT_BYTES_MAX}", f"-rss_limit_mb={MEMORY_MIB_MAX}"),
            *("-timeout=10", "-print_final_stats=1", f"-artifact_prefix={Path.cwd()}/"),
        ]
        atheris.Setup([sys.argv[0], *arguments, *folders], TARGETS[options.target])
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
