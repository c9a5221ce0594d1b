"""Test the tests: break the core in small ways, one at a time, and say what no test noticed.

All tests that `tests/mutants.toml` names run once, to see which of them execute which statement.
A mutant is tested in a copy of the tree, by those that execute what it changed, the quickest first.
What is found out is kept, so that a run that was interrupted goes on, and that new tests meet only
the mutants that had survived.
"""

import argparse
import ast
import dataclasses
import hashlib
import json
import math
import os
import queue
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from types import TracebackType
from typing import Any

from tools.count_lines import PACKAGE, REPOSITORY
from tools.mutants.edits import Mutant, make_mutants
from tools.mutants.reach import Reach, add_notes, places_of, read_notes

LIST = REPOSITORY / "tests" / "mutants.toml"
KEPT = REPOSITORY / ".mutants"
RESULTS, REACH = KEPT / "results.jsonl", KEPT / "reach.json"
NOT_CORE = ("__init__", "__main__")
NAMED = "made by hand"
KILLED_SHARE_MIN = 0.9
# A test that takes longer has been made to hang: those that run here take a few seconds.
TEST_S, DEADLINE_S = 30, 1800.0
MARKED = "not slow and not gpu and not netns"
NOT_THE_STAGES = "not stage"  # they have their own copies of what is broken here
TEST = re.compile(r"(?:FAILED|ERROR) (.*?)(?: - |$)")  # as pytest names one that failed
PASSED, NOT_FOUND = 0, "ERROR: not found: "

Work = tuple[Mutant, Sequence[str]]
"""A mutant and the tests for it, in the order in which they run."""


class Plan:
    """What `tests/mutants.toml` says: where the tests are, mutants by hand, and who may survive."""

    def __init__(self, path: Path = LIST) -> None:
        table = tomllib.loads(path.read_text())
        self.tests: list[str] = table["tests"]
        self.named: list[dict[str, Any]] = table.get("named", [])
        self.survivors: list[dict[str, str]] = table.get("survivor", [])

    def make_named(self) -> Iterator[Mutant]:
        """Yield each mutant that was made by hand."""
        for one in self.named:
            before = (REPOSITORY / one["file"]).read_text()
            if (count := before.count(one["old"])) != 1:
                raise ValueError(
                    f"{LIST.name}: {one['name']!r} replaces what must stand once in {one['file']} "
                    f"and stands there {count} times: {one['old']!r}; bring it up to date"
                )
            line = before[: before.index(one["old"])].count("\n") + 1
            after = before.replace(one["old"], one["new"])
            yield Mutant(one["file"], NAMED, one["name"], line, before, after)

    def gives_a_reason_for(self, mutant: Mutant) -> bool:
        """Say whether it is written down why this mutant may survive."""
        place = (mutant.file, mutant.function, mutant.old_line)
        return any(place == (one["file"], one["function"], one["line"]) for one in self.survivors)


def make_all() -> list[Mutant]:
    """Return every mutant of the core."""
    return [mutant for file, text in read_core().items() for mutant in make_mutants(file, text)]


def read_core() -> dict[str, str]:
    """Return the core's modules, by their paths in the repository."""
    paths = [path for path in sorted(PACKAGE.glob("*.py")) if path.stem not in NOT_CORE]
    return {str(path.relative_to(REPOSITORY)): path.read_text() for path in paths}


def sample(mutants: Sequence[Mutant], number: int, seed: int) -> list[Mutant]:
    """Draw that many mutants, spread as evenly over the functions as their sizes allow."""
    draw = random.Random(seed)
    functions: dict[tuple[str, str], list[Mutant]] = {}
    for mutant in mutants:
        functions.setdefault((mutant.file, mutant.function), []).append(mutant)
    piles = list(functions.values())
    for pile in piles:
        draw.shuffle(pile)
    chosen: list[Mutant] = []
    while piles and len(chosen) < number:
        draw.shuffle(piles)
        chosen += [pile.pop() for pile in piles[: number - len(chosen)]]
        piles = [pile for pile in piles if pile]
    return chosen


class Laboratory:
    """Copies of the tree, in which mutants are tested, as many at once as there are copies.

    The tests of a mutant see no process but their own: what was broken may signal the wrong one,
    or leave some behind. A namespace takes care of both, and its processes end with its first.
    """

    def __init__(
        self, copies: int, *, repository: Path = REPOSITORY, deadline_s: float = DEADLINE_S
    ) -> None:
        self._deadline_s = deadline_s
        self._directory = tempfile.mkdtemp(prefix="mutants-")
        self._trees: queue.SimpleQueue[Path] = queue.SimpleQueue()
        self._running: set[subprocess.Popen[bytes]] = set()
        for index in range(copies):
            tree = Path(self._directory, str(index))
            copy_files(repository, tree)
            # What is compiled is told by the source's hash: two mutants may share time and size.
            compiler = ["-m", "compileall", "-qq", "--invalidation-mode", "checked-hash", "."]
            subprocess.run([sys.executable, *compiler], cwd=tree)
            self._trees.put(tree)

    def how_it_died(self, mutant: Mutant, tests: Sequence[str]) -> str | None:
        """Return how the tests noticed a mutant, or None."""
        tree = self._trees.get()
        try:
            (tree / mutant.file).write_text(mutant.after)
            return self._find_failure(tree, tests)
        finally:
            (tree / mutant.file).write_text(mutant.before)
            self._trees.put(tree)

    def _find_failure(self, tree: Path, tests: Sequence[str]) -> str | None:
        """Return which test fails, and alone fails again: a busy machine makes one fail, too."""
        while failure := self._run(tree, tests):
            test = TEST.match(failure)
            if test is None or self._run(tree, [test[1]]):
                return failure
            tests = [other for other in tests if other != test[1]]
        return None

    def _run(self, tree: Path, tests: Sequence[str]) -> str | None:
        """Return which of these tests failed first, or None."""
        if not tests:
            return None
        try:
            status, said = self._pytest(tree, ["-x", "-m", "", *tests])
        except subprocess.TimeoutExpired:
            return f"hung for {self._deadline_s:.0f}s"
        if status == PASSED:
            return None
        failure = next(filter(TEST.match, said.splitlines()), None)
        if failure is None and NOT_FOUND in said:
            raise RuntimeError(f"no test ran: {tests}\n{said[-2000:]}")
        return failure or f"status {status}: {said[-200:].strip()!r}"

    def find_reach(self, files: Sequence[str], modules: Iterable[str]) -> Reach:
        """Run all tests, and return which of them execute what in these modules.

        Raises RuntimeError if one fails, also alone: it would seem to notice every mutant.
        """
        tree = self._trees.get()
        sources = {file: (tree / file).read_text() for file in modules}
        try:
            add_notes(tree, sources)
            marked = ["-m", MARKED, "-k", NOT_THE_STAGES]
            self._pytest(tree, ["-p", "tools.mutants.reach", *marked, *files])
            reach = read_notes(tree)
        finally:
            for file, source in sources.items():
                (tree / file).write_text(source)
            self._trees.put(tree)
        if failure := self._find_failure(tree, reach.failed):
            raise RuntimeError(f"a test fails without any mutant: {failure}")
        return reach

    def _pytest(self, tree: Path, arguments: Sequence[str]) -> tuple[int, str]:
        """Run pytest in a namespace of its own; return its exit status and what it said."""
        user = [] if os.geteuid() == 0 else ["--user", "--map-current-user"]
        pytest = ["-m", "pytest", "-q", f"--timeout={TEST_S}", "-p", "no:cacheprovider"]
        environment = os.environ | {"COLUMNS": "200"}
        environment["PYTHONPATH"] = os.pathsep.join(map(str, (tree, REPOSITORY)))
        with tempfile.TemporaryDirectory(prefix="m", ignore_cleanup_errors=True) as temporary:
            output = Path(temporary, "output")
            command = [
                *("unshare", *user, "--pid", "--fork", "--mount-proc", "--kill-child"),
                # The namespace's first process is a shell: a test could not be interrupted.
                *("sh", "-c", '"$@" >"$0" 2>&1; exit $?', str(output)),
                *(sys.executable, *pytest, *arguments),
            ]
            process = subprocess.Popen(
                command,
                cwd=tree,
                env=environment | {"TMPDIR": temporary},
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            self._running.add(process)
            try:
                status = process.wait(self._deadline_s)
            finally:
                process.kill()
                process.wait()
                self._running.discard(process)
            if status < 0 or not output.exists():
                raise RuntimeError(f"there was no namespace to test in: {' '.join(command)}")
            return status, output.read_text(errors="replace")

    def close(self) -> None:
        """End what runs and remove the copies."""
        for process in list(self._running):
            process.kill()
        shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> "Laboratory":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def copy_files(repository: Path, target: Path) -> None:
    """Copy what git would take into a commit now."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=repository,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (source := repository / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)


def _hash_of(folder: Path) -> str:
    files = sorted(folder.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


class Results:
    """How each mutant died, or None, in a file of JSON lines.

    A death is known for good, a survival for as long as the tests stay the same, and their limit.
    """

    def __init__(self, seconds: float, path: Path = RESULTS) -> None:
        self._path = path
        self._tests = f"{_hash_of(REPOSITORY / 'tests')}, {seconds} s"
        self.known: dict[str, str | None] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            row = json.loads(line)
            if row["death"] or row["tests"] == self._tests:
                self.known[row["mutant"]] = row["death"]

    def add(self, key: str, where: str, death: str | None) -> None:
        """Note how a mutant died, or that it did not."""
        self.known[key] = death
        row = {"mutant": key, "at": where}
        self._path.parent.mkdir(exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps({**row, "death": death, "tests": self._tests}) + "\n")


def run_all(work: Sequence[Work], jobs: int) -> Iterator[tuple[Mutant, str | None]]:
    """Test mutants, several at once; yield each with how it died, or None, and say how it goes."""
    begun = time.monotonic()
    with ThreadPoolExecutor(jobs) as pool, Laboratory(jobs) as laboratory:
        pending = {pool.submit(laboratory.how_it_died, *one): one[0] for one in work}
        try:
            for done, future in enumerate(as_completed(pending), start=1):
                mutant, death = pending[future], future.result()
                left_s = (time.monotonic() - begun) / done * (len(work) - done)
                print(
                    f"{done}/{len(work)}, {left_s / 60:.0f} min left: {mutant.file}:{mutant.line} "
                    f"{mutant.operator}: {death or 'SURVIVED'}",
                    flush=True,
                )
                yield mutant, death
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def get_reach(plan: Plan) -> Reach:
    """Return which tests execute what, as it is known for this package and these tests."""
    about = [_hash_of(PACKAGE), _hash_of(REPOSITORY / "tests"), plan.tests]
    known = json.loads(REACH.read_text()) if REACH.exists() else {}
    if known.get("about") != about:
        print("looking which tests execute what: all of them run once", flush=True)
        with Laboratory(1) as laboratory:
            reach = laboratory.find_reach(plan.tests, read_core())
        known = {"about": about, "reach": dataclasses.asdict(reach)}
        REACH.parent.mkdir(exist_ok=True)
        REACH.write_text(json.dumps(known))
    return Reach(**known["reach"])


def report(plan: Plan, mutants: Sequence[Mutant], deaths: dict[str, str | None]) -> int:
    """Print the survivors and the count; return the exit status."""
    survivors = [mutant for mutant in mutants if deaths[mutant.key] is None]
    unexplained = [mutant for mutant in survivors if not plan.gives_a_reason_for(mutant)]
    by_hand = [mutant for mutant in unexplained if mutant.function == NAMED]
    print(*(f"\n{mutant}" for mutant in unexplained), sep="\n")
    killed = len(mutants) - len(survivors)
    print(
        f"\n{killed} of {len(mutants)} mutants were killed ({killed / len(mutants):.1%}). "
        f"{len(survivors)} survived, {len(unexplained)} without a reason in tests/{LIST.name}; "
        f"{len(by_hand)} of these were made by hand, and have to be killed."
    )
    enough = killed >= KILLED_SHARE_MIN * len(mutants) or not unexplained
    return int(bool(by_hand) or not enough)


def main() -> int:
    """Make mutants, test them, and print the survivors."""
    parser = argparse.ArgumentParser(prog="python -m tools.mutants", description=__doc__)
    parser.add_argument("modules", nargs="*", help="only these of the core's modules")
    parser.add_argument("--number", type=int, default=300, help="how many mutants to draw")
    parser.add_argument("--seed", type=int, default=1, help="which ones are drawn")
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="of tests for each, the quickest"
    )
    parser.add_argument("--jobs", type=int, default=2, help="how many are tested at once")
    parser.add_argument("--named", action="store_true", help="only those made by hand")
    parser.add_argument("--fresh", action="store_true", help="forget what is known")
    options = parser.parse_args()
    if options.fresh:
        RESULTS.unlink(missing_ok=True)
    plan, results = Plan(), Results(options.seconds)

    def is_chosen(mutant: Mutant) -> bool:
        return not options.modules or Path(mutant.file).stem in options.modules

    mutants = list(filter(is_chosen, plan.make_named()))
    if not options.named:
        mutants += sample(list(filter(is_chosen, make_all())), options.number, options.seed)
    unknown = [mutant for mutant in mutants if mutant.key not in results.known]
    print(f"{len(mutants)} mutants, {len(mutants) - len(unknown)} of them known", flush=True)
    if unknown:
        reach = get_reach(plan)
        modules = {file: ast.parse(source) for file, source in read_core().items()}
        places = [places_of(mutant.file, mutant.line, modules) for mutant in unknown]
        work = [
            (mutant, reach.tests_for(place, options.seconds))
            for mutant, place in zip(unknown, places, strict=True)
        ]
        for mutant, death in run_all(work, options.jobs):
            results.add(mutant.key, f"{mutant.file}:{mutant.line}", death)
    return report(plan, mutants, results.known)


if __name__ == "__main__":
    sys.exit(main())
