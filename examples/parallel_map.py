"""Map a function over uneven tasks, on workers here or on many nodes, none of them ever idle.

    python examples/parallel_map.py --workers 4
    python examples/parallel_map.py --hosts node1,node2 --workers 4

A worker that dies takes one task with it, which is reported; the others finish the rest.
"""

import argparse
import contextlib
import os
import signal
import sys
import time
from typing import Any

from miniray import Cluster, NodeConfig, Worker, as_completed
from miniray.errors import MiniRayError, WorkerError


def count_primes(limit: int) -> int:
    """Count the primes below `limit`, slowly."""
    if limit < 0:  # a task that kills its worker, to show what happens then
        os.kill(os.getpid(), signal.SIGKILL)
    return sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(2, limit))


def main() -> int:
    """Map over some tasks and print each result with the time it came in."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, default=4, metavar="N", help="here, or per host")
    parser.add_argument("--hosts", metavar="A,B", help="run there, over ssh")
    parser.add_argument("--tasks", type=int, default=20, metavar="N")
    parser.add_argument("--crash", action="store_true", help="have one task kill its worker")
    options = parser.parse_args()
    tasks = [2000 * (1 + 7 * number % 20) for number in range(options.tasks)]
    if options.crash:
        tasks.insert(len(tasks) // 2, -1)
    began, lost = time.monotonic(), 0
    try:
        with contextlib.ExitStack() as stack:
            workers: list[Any]
            if options.hosts:
                nodes = [NodeConfig(host, options.workers) for host in options.hosts.split(",")]
                workers = stack.enter_context(Cluster(nodes)).start(count_primes, calls=True)
            else:
                workers = [stack.enter_context(Worker()) for _ in range(options.workers)]
            for task, result in as_completed(workers, count_primes, tasks, keep_going=True):
                lost += isinstance(result, WorkerError)
                print(f"{time.monotonic() - began:6.2f} s  task {task}: {result}", flush=True)
    except (MiniRayError, RuntimeError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing was left running", file=sys.stderr)
        return 130
    print(f"{len(tasks) - lost} of {len(tasks)} tasks done")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
