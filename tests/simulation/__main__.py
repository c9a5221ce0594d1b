"""Play worlds: python -m tests.simulation --seeds 10000; one again: --world frames --seed 17."""

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from tests.simulation import frames, strangers

WORLDS: dict[str, Callable[[int], Any]] = {"frames": frames.play, "strangers": strangers.play}


def main() -> int:
    """Play each world for so many seeds; print the first seed that fails, and how to repeat it."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many, %(default)s")
    parser.add_argument("--first", type=int, default=0, help="the first one, %(default)s")
    parser.add_argument("--seed", type=int, help="play this one alone")
    parser.add_argument("--world", choices=WORLDS, help="only this one")
    options = parser.parse_args()
    first, count = options.first, options.seeds
    if options.seed is not None:
        first, count = options.seed, 1
    for name, play in WORLDS.items():
        if options.world not in (None, name):
            continue
        if (failed := find_failure(play, range(first, first + count))) is not None:
            print(f"again: python -m tests.simulation --world {name} --seed {failed}")
            return 1
    return 0


def find_failure(play: Callable[[int], Any], seeds: range) -> int | None:
    """Return the first seed that fails, having printed why, or None."""
    began = time.perf_counter()
    for seed in seeds:
        try:
            play(seed)
        except Exception:
            traceback.print_exc()
            return seed
    seconds, name = time.perf_counter() - began, play.__module__.rpartition(".")[2]
    print(f"{name}: {len(seeds):,} seeds, {len(seeds) / seconds:,.0f} a second")
    return None


if __name__ == "__main__":
    sys.exit(main())
