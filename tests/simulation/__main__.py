"""Play worlds: python -m tests.simulation --seeds 10000; one again: --world frames --seed 17."""

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable
from concurrent import futures
from typing import Any

from tests.simulation import frames, group, strangers

CHUNK_SEEDS = 1000
WORLDS: dict[str, Callable[[int], Any]] = {
    "frames": frames.play,
    "strangers": strangers.play,
    "group": group.play,
}


def main() -> int:
    """Play each world for so many seeds; print the first seed that fails, and how to repeat it."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many, %(default)s")
    parser.add_argument("--first", type=int, default=0, help="the first one, %(default)s")
    parser.add_argument("--seed", type=int, help="play this one alone")
    parser.add_argument("--world", choices=WORLDS, help="only this one")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    parser.add_argument("--jobs", type=int, default=cores, help="processes, %(default)s")
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.seeds)
    if options.seed is not None:
        seeds = range(options.seed, options.seed + 1)
    for name in WORLDS:
        if options.world in (None, name) and not play_all(name, seeds, options.jobs):
            return 1
    return 0


def play_all(name: str, seeds: range, jobs: int) -> bool:
    """Play one world for all seeds, in so many processes; print how that went, return whether."""
    began = time.perf_counter()
    chunks = [seeds[at : at + CHUNK_SEEDS] for at in range(0, len(seeds), CHUNK_SEEDS)]
    core_seconds = 0.0
    with futures.ProcessPoolExecutor(min(jobs, len(chunks))) as pool:
        for failed, seconds in pool.map(_play_chunk, [name] * len(chunks), chunks):
            core_seconds += seconds
            if failed is not None:
                pool.shutdown(cancel_futures=True)
                print(f"again: python -m tests.simulation --world {name} --seed {failed}")
                return False
    count, wall_seconds = len(seeds), time.perf_counter() - began
    print(
        f"{name}: {count:,} seeds, {count / wall_seconds:,.0f} a second, "
        f"{count / core_seconds:,.0f} a second of a core",
        flush=True,
    )
    return True


def _play_chunk(name: str, seeds: range) -> tuple[int | None, float]:
    began = time.process_time()
    return find_failure(WORLDS[name], seeds), time.process_time() - began


def find_failure(play: Callable[[int], Any], seeds: range) -> int | None:
    """Return the first seed that fails, having printed why, or None."""
    for seed in seeds:
        try:
            play(seed)
        except Exception:
            traceback.print_exc()
            return seed
    return None


if __name__ == "__main__":
    sys.exit(main())
