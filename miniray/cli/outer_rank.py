"""Be one rank of a job of another launcher: torchrun, srun, a training operator.

Rank 0 coordinates: beside its own work it runs the coordinator, to which all
ranks connect.
"""

import argparse
import contextlib
import dataclasses
import importlib
import io
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, cast

from miniray import ClusterError, MiniRayError, WorkerError, WorkerExited, auth, process, wait
from miniray.cli.outer_place import Meeting, check_port, find_place
from miniray.cli.run_plan import read_keywords
from miniray.cli.run_verdict import Verdict, find_verdict
from miniray.extras.hosted import HostedCluster
from miniray.extras.rank_host import (
    PASSED_ON,
    Lost,
    Place,
    RankHost,
    as_status,
    own_address,
)  # fmt: skip
from miniray.process import Process
from miniray.work_fn import load_work_fn

USAGE_ERROR = 2
START_S = 300.0
# A signal ends the coordinator later than rank 0: this long the others have to end, too, and its
# function to see it.
OTHERS_S, SEEN_S = 15.0, 5.0
STORE_S = 5.0  # no signal is heard meanwhile
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

EXAMPLES = """\
examples:
  torchrun --nproc-per-node 4 --no-python miniray run-rank train:work
  torchrun --nproc-per-node 4 -m miniray run-rank train:work \\
      --coordinator train:main
  srun --ntasks 8 miniray run-rank train:work --coordinator train:main \\
      --arg steps=100
  in a pod of a job: miniray run-rank train:work --coordinator train:main

The work function takes a channel, as Cluster.start's does. The coordinator's
function takes a cluster, which has workers, nccl_configs(), broadcast, run, map
and the rest. Without one, each rank is sent its place and nothing more, and what
ranks send is printed.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument(
        "--coordinator", metavar="MODULE:FUNCTION", help="what rank 0 runs beside its work"
    )
    parser.add_argument(
        "--port", type=int, metavar="N", help="where rank 0 listens for the others (MASTER_PORT)"
    )
    parser.add_argument(
        "--arg", action="append", default=[], metavar="NAME=VALUE", help="for that function"
    )
    parser.add_argument(
        "--start-timeout", type=float, default=START_S, metavar="SECONDS",
        help="for all ranks to come (300)",
    )  # fmt: skip
    parser.add_argument("target", metavar="MODULE:FUNCTION", help="what each rank runs")


def run(options: argparse.Namespace) -> int:
    """Be the rank; return the exit status of the rank that failed first, or 0."""
    sys.path.insert(0, os.getcwd())  # as python -m does, and a script of ours does not
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)  # a rank may end at any moment
    try:
        place, meeting = find_place(os.environ)
        if options.port is not None:
            check_port(options.port, "--port")
            meeting = Meeting(meeting.address, options.port)
        work_fn = dotted(options.target)
        coordinator = dotted(options.coordinator or f"{__name__}:print_all")
        keywords = read_keywords([f"--arg={one}" for one in options.arg])
        if keywords and options.coordinator is None:
            raise ValueError("--arg is for the coordinator's function: there is no --coordinator")
        if not options.start_timeout > 0:
            raise ValueError(f"--start-timeout {options.start_timeout:g} is no time to wait")
        key = take_key()
    except (ValueError, OSError) as error:
        print(f"miniray run-rank: {error}", file=sys.stderr)
        return USAGE_ERROR
    directory: Directory = StoreDirectory(meeting) if meeting.is_store else Directory(meeting)
    job = Job(place, directory, key, work_fn, coordinator, keywords, options.start_timeout)
    coordinating = process.fork(lambda: coordinate(job)) if place.rank == 0 else None
    return keep_rank(job, coordinating)


def dotted(target: str) -> str:
    """Return "module.function" for "module:function"."""
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", target):
        raise ValueError(f"name a function as MODULE:FUNCTION, not {target!r}")
    return target.replace(":", ".")


def take_key() -> bytes:
    """Return the key: $MINIRAY_KEY, which ranks then do not see, or the key file's."""
    if (text := os.environ.pop("MINIRAY_KEY", "").strip()) == "":
        return auth.load_key()
    if len(text) < auth.KEY_CHARS_MIN:
        raise ValueError(f"MINIRAY_KEY has {len(text)} characters, not {auth.KEY_CHARS_MIN}")
    return text.encode()


class Directory:
    """Where rank 0 is: where the launcher says."""

    def __init__(self, meeting: Meeting) -> None:
        self.meeting = meeting

    def find(self) -> tuple[str, int]:
        """Return where rank 0 may be."""
        return self.meeting.address, self.meeting.port

    def choose(self, place: Place) -> tuple[str, int]:
        """Return where rank 0 is to listen: at an address of its own, or everywhere."""
        everywhere = "0.0.0.0"
        try:
            where = socket.getaddrinfo(self.meeting.address, 0, type=socket.SOCK_STREAM)[0]
            everywhere = "::" if where[0] == socket.AF_INET6 else everywhere
            with socket.socket(where[0]) as probe:
                probe.bind(where[4])
        except OSError:  # of a name that is not this machine's own, but leads to it
            return everywhere, self.meeting.port
        found = str(where[4][0])
        is_loopback = found.startswith("127.") or found == "::1"
        if is_loopback and not place.is_everybody_here:
            return everywhere, self.meeting.port
        return found, self.meeting.port

    def publish(self, place: Place, port: int) -> None:
        """Tell the others where rank 0 listens; here they know."""


class StoreDirectory(Directory):
    """Where rank 0 is: where it has said in the store of torchrun's agent."""

    def __init__(self, meeting: Meeting) -> None:
        super().__init__(meeting)
        # Before the fork, for the ranks need it, too.
        self._distributed: Any = importlib.import_module("torch.distributed")
        # Not one for each restart: the agents' counts may differ. What an earlier coordinator has
        # left leads nowhere, and then it is asked for again.
        self._key = "miniray/coordinator"

    def _store(self) -> Any:
        from datetime import timedelta

        where = self.meeting.address, self.meeting.port
        return self._distributed.TCPStore(
            *where, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=STORE_S)
        )

    def find(self) -> tuple[str, int]:
        try:
            address, port = self._store().get(self._key).decode().split()
        except RuntimeError as error:
            raise ConnectionError(f"torchrun's store: {error}") from None
        return address, int(port)

    def choose(self, place: Place) -> tuple[str, int]:
        return own_address(self.meeting.address, place), 0

    def publish(self, place: Place, port: int) -> None:
        self._store().set(self._key, f"{self.choose(place)[0]} {port}")


@dataclasses.dataclass(frozen=True)
class Job:
    """What this process is to be a rank of, and which one."""

    place: Place
    directory: Directory
    key: bytes
    work_fn: str
    coordinator: str
    keywords: dict[str, Any]
    timeout: float


def coordinate(job: Job) -> int:
    """Gather all ranks and call the coordinator's function; return the exit status for all."""
    host, port = job.directory.choose(job.place)
    try:
        cluster = HostedCluster(job.place.world_size, host, port, job.key)
        job.directory.publish(job.place, cluster.port)
    except (OSError, RuntimeError) as error:  # the port is taken, or torchrun's store is gone
        say(f"miniray run-rank: the coordinator {getattr(error, 'strerror', None) or error}")
        return 1
    try:
        heed_signals(cluster)
        verdict = attempt(job, cluster)
        # As soon as the first has left, torchrun ends all others, and some have not been told.
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)
        if verdict.status and verdict.summary:
            trace = f"\n{verdict.traceback}\n\n" if verdict.traceback else ""
            space = "\n" if "\n" in verdict.summary else " "
            status = f"{space}(exit status {verdict.status})"
            say(f"{trace}miniray run-rank: {verdict.summary}{status}")
        told = {"status": verdict.status, "text": verdict.summary, "traceback": verdict.traceback}
        cluster.dismiss(told, first=verdict.rank or 0)  # whose process the coordinator's is
    finally:
        cluster.release()
    return verdict.status


class ToldToEnd(BaseException):
    """A signal has ended all ranks, or came before they were there."""


def heed_signals(cluster: HostedCluster) -> None:
    """Have the coordinator outlive a signal until ranks have ended, and not much longer.

    They have the time that the launcher gives them, and what becomes of them is for the
    coordinator's function to see; it may be at something else. Whoever sends it to the
    coordinator alone has sent it to rank 0 as well, whose end is the end of all.
    """
    late: list[int] = []

    def leave_after_ranks(number: int) -> None:
        cluster.pass_on(number)
        cluster.await_ranks(OTHERS_S)
        time.sleep(SEEN_S)
        late.append(number)
        os.kill(os.getpid(), number)

    def heed(number: int, frame: Any) -> None:
        if late or not cluster.workers:
            raise KeyboardInterrupt if number == signal.SIGINT else ToldToEnd(number)
        threading.Thread(target=leave_after_ranks, args=(number,), daemon=True).start()

    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, heed)
    for number in (signal.SIGUSR1, signal.SIGUSR2):  # for ranks; of rank 0 nobody is left to hear
        signal.signal(number, signal.SIG_IGN)


def attempt(job: Job, cluster: HostedCluster) -> Verdict:
    """Have the ranks come, and the coordinator's function run; return how that went."""
    try:
        workers = cluster.gather_ranks(job.work_fn, job.timeout)
        load_work_fn(job.coordinator)(cluster, **job.keywords)
    except WorkerError as error:
        return find_verdict(error, workers)
    except ClusterError as error:
        return Verdict(None, str(error), "", 1)
    except SystemExit as leaving:
        if isinstance(leaving.code, int | None):
            return Verdict(None, "the coordinator said so", "", (leaving.code or 0) & 0xFF)
        return Verdict(None, str(leaving.code), "", 1)
    except KeyboardInterrupt:
        return Verdict(None, "the coordinator was interrupted", "", 128 + signal.SIGINT)
    except ToldToEnd as told:
        words = f"the coordinator was told to end by {signal.Signals(told.args[0]).name}"
        return Verdict(None, words, "", 128 + told.args[0])
    except BaseException as error:
        return Verdict(
            None,
            f"the coordinator raised {type(error).__name__}: {error}",
            "".join(traceback.format_exception(error)).rstrip(),
            1,
        )
    return Verdict(None, "", "", 0)


def say(text: str) -> None:
    """Print a line of our own."""
    print(text, file=sys.stderr, flush=True)


def print_all(cluster: HostedCluster) -> None:
    """Send each rank its place, and print what ranks send until all have returned."""
    for worker, config in zip(cluster.workers, cluster.nccl_configs(), strict=True):
        worker.send(config.__dict__)
    say(
        "miniray run-rank: each rank has been sent its place and will be sent nothing more, for "
        "there is no --coordinator; what ranks send is printed here"
    )
    running = dict(enumerate(cluster.workers))
    while running:
        for worker in wait(running.values()):
            rank = cluster.workers.index(worker)
            try:
                print(f"rank {rank}: {worker.recv()!r}", flush=True)
            except WorkerExited:
                del running[rank]


def keep_rank(job: Job, coordinating: Process | None) -> int:
    """Keep this rank, and pass on what the launcher says; return the exit status."""
    place, host = job.place, cast(RankHost | None, None)

    def pass_on(number: int, frame: Any) -> None:
        passed = host is not None and host.pass_on(number)
        concerns_it = not passed or number in ENDING  # which it outlives
        if concerns_it and coordinating is not None and coordinating.poll() is None:
            os.kill(coordinating.pid, number)
        if passed:
            return
        if number in ENDING and (host is None or coordinating is None):
            sys.exit(128 + number)

    def find() -> tuple[str, int]:
        if coordinating is not None and coordinating.poll() is not None:
            raise Lost("its coordinator has ended")
        return job.directory.find()

    for number in PASSED_ON:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, pass_on)
    meet_at = [own_address(job.directory.meeting.address, place)]
    try:
        host = RankHost(place, job.work_fn, job.key, find, meet_at=meet_at, timeout=job.timeout)
        status = host.run()
        if host.verdict:  # torchrun ends the others once one has left, and they are leaving
            for number in ENDING:
                signal.signal(number, signal.SIG_IGN)
        if host.verdict.get("status") and host.verdict.get("text"):
            leave_error_file(host.verdict)
        host.close()
        if not host.verdict:
            say(f"miniray run-rank: rank {place.rank}: the coordinator has gone")
    except (Lost, MiniRayError, OSError) as error:
        say(f"miniray run-rank: rank {place.rank} on {place.node}: {error}")
        status = 1
    if coordinating is not None:
        code = as_status(coordinating.wait())
        status = code or status
    return status


def leave_error_file(verdict: dict[str, Any]) -> None:
    """Write what torchrun shows of the rank that failed first."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        extra = {
            "py_callstack": verdict["traceback"] or verdict["text"],
            # torchrun counts whole seconds, and of two that failed in one it takes the lower rank.
            "timestamp": str(int(time.time()) - 1),
        }
        message = {"message": verdict["text"], "extraInfo": extra}
        with contextlib.suppress(OSError):  # torchrun will do without
            Path(file).write_text(json.dumps({"message": message}))
